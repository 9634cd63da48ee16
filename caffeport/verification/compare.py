"""Runs the net beside the reference, a layer at a time: each alone on the reference's own bottoms, and all from the
input.

Where the reference lacks a bottom, the layers from the nearest stored values on are run and judged as one segment.
Values are dropped after their last reader, so memory holds a few layers' blobs and no more.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..graph import Operand, Step, Value
from ..layers import Shape, text
from ..network import Network
from .arithmetic import TRUTH, WHOLE, YARDSTICK, Arithmetic, in_float64
from .judge import HALF_STEP, Growth, Judgement, growth, judge, judge_by_some
from .picture import Gallery
from .reference import Reference, Stored
from .some import how_many, some_of
from .yardstick import as_caffe

Values = dict[Value, Tensor]
FEW = 64  # values that are no sample of the noise
DRAWS = 8  # of the noise of such values' bottoms


@dataclass
class Comparison:
    """One top of one layer beside the reference.

    alone     fed with the reference's own bottoms; otherwise `segment` names the layers run since the last stored
              values
    reason    why it was not judged, or ""
    problem   why the layer is wrong without a number, or ""
    """

    step: Step
    top: Value | None
    alone: bool = False
    segment: tuple[str, ...] = ()
    reason: str = ""
    problem: str = ""
    judgement: Judgement | None = None
    growth: Growth | None = None
    items: int | None = None


class Walk:
    """One walk through the net, on two roads at once.

    local  values computed from the reference's own: in float64, in float32 on one thread, and in the arithmetic under
           test; of the first two only as much as the judge needs, where nobody else reads them
    whole  values computed from the inputs alone: in float64, and in float32 on the CPU; none where `streamed`, which
           takes half the memory
    """

    def __init__(
        self,
        network: Network,
        reference: Reference,
        stored: dict[Value, Stored],
        inputs: Values,
        shapes: dict[Value, Shape],
        tested: Arithmetic,
        gallery: Gallery,
        streamed: bool,
    ) -> None:
        self.network = network
        self.graph = network.graph
        self.reference = reference
        self.stored = stored
        self.shapes = shapes
        self.tested = tested
        self.gallery = gallery
        self.fed = inputs
        self.streamed = streamed
        self.plain = tested.dtype == torch.float32 and tested.device.type == "cpu" and not tested.tf32
        self.same = self.plain and torch.get_num_threads() == 1
        self.local: tuple[Values, Values, Values] = {}, {}, {}
        self.whole: tuple[Values, Values] = {}, {}
        self.known: Values = {}  # what the reference says, float32 on the CPU; inputs too
        self.since: dict[Value, tuple[str, ...]] = {}  # layers run since stored values, where a value is computed
        self.items: dict[Value, int] = {}  # values of the first items of the batch only
        self.carried: dict[
            tuple[int, Value], float
        ] = {}  # relative noise of computed values, by road (0 local, 1 whole)
        self.args: tuple[list[Tensor], list[Tensor]] = [], []  # what the layer at hand was fed, by road, in float64
        self.doubled: tuple[Step, nn.Module] | None = None  # the layer at hand in float64
        self.parted: set[Value] = set()  # where both roads differ, because the reference has been put in
        self.apart: set[Value] = set()  # local values that c32 has otherwise than d32, if `same`
        self.few: dict[Value, int] = {}  # local values of which only d32 is computed, and how many channels to judge
        self.lost: dict[Value, str] = {}  # values that could not be computed on the local road, and why
        self.last = _last_use(network)
        for value, array in inputs.items():
            self.known[value] = array
            for lane in () if streamed else self.whole:
                lane[value] = array

    def run(self, on_row: Callable[[Comparison], bool]) -> None:
        """Call `on_row` with each comparison, in the net's order, until it gives False."""
        with torch.no_grad():
            for index, step in enumerate(self.graph.steps):
                for row in self._step(step):
                    if not on_row(row):
                        return
                self._free(index)

    def outputs(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The net's outputs from the inputs on, in float64 and in float32, as far as they could be computed."""
        graph = self.graph
        can = [name for name in graph.outputs if graph.blobs[name].value in self.whole[0]]
        truth, yard = ({name: _see(graph.blobs[name], lane) for name in can} for lane in self.whole)
        return {name: x.double() for name, x in truth.items()}, {name: x.float() for name, x in yard.items()}

    # ---- one layer

    def _step(self, step: Step) -> list[Comparison]:
        problem = self._run(step)
        if not step.tops:
            return [Comparison(step, None, reason="it has no top")]
        return [self._top(step, top, problem) for top in step.tops]

    def _run(self, step: Step) -> str:
        """Compute the layer on both roads. Gives why it cannot run on the local one, if it is the layer's own fault."""
        reads = step.reads
        lost = next((self.lost[value] for value in reads if value in self.lost), "")
        problem = ""
        if lost:
            self.lost |= dict.fromkeys(step.tops, lost)
        else:
            problem = self._run_local(step)
        if self.streamed:
            return problem
        shared = not lost and not problem and not any(value in self.parted for value in reads)
        if shared:
            for mine, theirs in zip(self.local, self.whole, strict=False):
                theirs |= {top: mine[top] for top in step.tops if top in mine}
            return problem
        self.parted.update(step.tops)
        if all(value in self.whole[0] for value in reads):
            with suppress(
                RuntimeError, ValueError, IndexError
            ):  # a layer before gave another shape, which was told there
                self._compute(self.whole, step, [[_see(o, lane) for o in step.bottoms] for lane in self.whole])
        return problem

    def _run_local(self, step: Step) -> str:
        cut = {operand.value: self.items[operand.value] for operand in step.bottoms if operand.value in self.items}
        if cut and not step.layer.batch_independent:
            self.lost |= dict.fromkeys(
                step.tops, "the reference holds fewer items than the input, and this layer mixes them"
            )
            return ""
        batch = {size for value in cut if (size := self.shapes[value][0]) is not None}
        keep = min(cut.values()) if cut else None
        lanes = [[self._bottom(operand, lane, keep, batch) for operand in step.bottoms] for lane in self.local]
        alone = keep is None and all(value in self.known for value in step.reads)
        try:
            if alone and step.layer.exact():
                self._compute_once(step, lanes[0])
            elif not (alone and self._compute_for_judge(step, lanes[0])):
                self._compute(self.local, step, lanes)
        except (RuntimeError, ValueError, IndexError) as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.lost |= dict.fromkeys(step.tops, f"layer {step.key!r} cannot run")
            return f"cannot run on the reference's bottoms: {message}"
        since = dict.fromkeys(key for operand in step.bottoms for key in self.since.get(operand.value, ()))
        for top in step.tops:
            self.since[top] = (*since, step.key)
            if keep is not None:
                self.items[top] = keep
        return ""

    def _compute(self, lanes: Sequence[Values], step: Step, bottoms: Sequence[list[Tensor]]) -> None:
        self.args = (self.args[0], bottoms[0]) if lanes is self.whole else (bottoms[0], bottoms[0])
        apart = as_caffe(step, self.network.get_submodule(self.network.names[step.key])) is not None
        if lanes is self.local and (apart or any(value in self.apart for value in step.reads)):
            self.apart.update(step.tops)
        same = self.same and self.apart.isdisjoint(step.tops)
        arithmetics = (TRUTH, WHOLE) if lanes is self.whole else (TRUTH, YARDSTICK, self.tested)
        for arithmetic, lane, args in zip(arithmetics, lanes, bottoms, strict=False):
            if arithmetic is self.tested and same:
                lane |= {top: lanes[1][top] for top in step.tops if top in lanes[1]}
            else:
                module = self._double(step) if arithmetic is TRUTH else None
                lane |= zip(step.tops, arithmetic.run(self.network, step, args, module), strict=False)

    def _compute_once(self, step: Step, bottoms: list[Tensor]) -> None:
        """Compute a layer that only moves the reference's own values: one arithmetic is as good as another."""
        yard = (self.tested if self.plain else YARDSTICK).run(self.network, step, bottoms)
        ours = yard if self.plain else self.tested.run(self.network, step, bottoms)
        for lane, tops in zip(self.local, (yard, yard, ours), strict=True):
            lane |= zip(step.tops, tops, strict=False)
        self.args = bottoms, bottoms

    def _compute_for_judge(self, step: Step, bottoms: list[Tensor]) -> bool:
        """Compute d32 only of a layer that is fed the reference's own values, if nobody but `judge` reads y64 and c32
        and some channels of them are enough. Gives whether that is so.
        """
        top = step.tops[0] if len(step.tops) == 1 else None
        at = self.stored.get(top) if top else None
        apart = self.streamed or any(value in self.parted for value in step.reads)
        if not apart or top is None or at is None or at.items is not None or step.key in self.network._views:
            return False
        own = self.network.get_submodule(self.network.names[step.key])
        few = how_many(own, bottoms, self.shapes[top])
        if few:
            (self.local[2][top],) = self.tested.run(self.network, step, bottoms)
            self.few[top] = few
            self.args = bottoms, bottoms
        return bool(few)

    def _double(self, step: Step) -> nn.Module:
        """The layer in float64, made once for both roads."""
        if self.doubled is None or self.doubled[0] is not step:
            self.doubled = step, in_float64(self.network, step)
        return self.doubled[1]

    def _bottom(self, operand: Operand, lane: Values, keep: int | None, batch: set[int]) -> Tensor:
        x = self.known[operand.value] if operand.value in self.known else lane[operand.value]
        if keep is not None and x.dim() and x.shape[0] > keep and x.shape[0] in batch:
            x = x[:keep]
        if operand.like is None:
            return x
        like = self.known[operand.like] if operand.like in self.known else lane[operand.like]
        return x.reshape(like.shape) if keep is None else x.reshape(keep, *like.shape[1:])

    # ---- one top

    def _top(self, step: Step, top: Value, problem: str) -> Comparison:
        segment = self.since.get(top, ())
        row = Comparison(step, top, alone=segment == (step.key,), segment=segment, problem=problem)
        at = self.stored.get(top)
        if at is None:
            row.reason = "the reference does not hold it"
            return row
        ref = torch.from_numpy(self.reference.read(at.key))
        row.items = at.items
        if top in self.lost:
            row.reason = "" if problem else self.lost.pop(top)
            self.lost.pop(top, None)
        else:
            self._judge(row, ref)
        if top in self.whole[0]:
            ours = [lane[top][: ref.shape[0]] if at.items is not None else lane[top] for lane in self.whole]
            if ours[0].shape == ref.shape:
                row.growth = growth(ref, ours[0], ours[1], step.layer.noise_floor, self._noise(1, step, top))
        self._put(top, ref, at)
        return row

    def _judge(self, row: Comparison, ref: Tensor) -> None:
        step, top = row.step, row.top
        assert top is not None
        y64, c32 = (lane.get(top) for lane in self.local[:2])
        d32 = self.local[2][top]
        if ref.dim() and d32.dim() and (row.items is not None or top in self.items):
            items = min(ref.shape[0], d32.shape[0])
            ref, d32 = ref[:items], d32[:items]
            y64, c32 = (x if x is None else x[:items] for x in (y64, c32))
        if d32.shape != ref.shape:
            row.problem = f"gives shape {text(tuple(d32.shape))}, the reference has {text(tuple(ref.shape))}"
            return
        d32 = c32 if d32 is c32 else d32.cpu().float()
        if y64 is None or c32 is None:
            row.judgement = self._judge_by_channels(step, top, ref, d32)
        else:
            row.judgement = judge(ref, y64, c32, d32, step.layer.noise_floor, self._noise(0, step, top))
        self.gallery.show(step.key, top.blob, row.judgement, d32, ref)

    def _judge_by_channels(self, step: Step, top: Value, ref: Tensor, d32: Tensor) -> Judgement:
        """Judge a layer of which only d32 is computed yet."""
        network, bottoms, few = self.network, self.args[0], self.few.pop(top)
        own = network.get_submodule(network.names[step.key])

        def some() -> tuple[Tensor, Tensor, Tensor, Tensor]:
            part = some_of(own, bottoms, ref, few)
            d = part.of(d32)
            (y64,) = TRUTH.run(network, step, part.bottoms, in_float64(network, step, part.module))
            c32 = d if self.same else YARDSTICK.run(network, step, part.bottoms, part.module)[0]
            return part.of(ref), y64, c32, d

        def whole() -> tuple[Tensor, Tensor]:
            (y64,) = TRUTH.run(network, step, bottoms, self._double(step))
            return y64, d32 if self.same else YARDSTICK.run(network, step, bottoms)[0]

        return judge_by_some(ref, d32, some, whole, step.layer.noise_floor, self._least_noise(step))

    def _noise(self, road: int, step: Step, top: Value) -> float:
        """The least relative noise that this value of the road may be given, whatever c32 happens to show.

        Serial sums err with the root of their length. And a few values are no sample: c32 may come close to y64 by
        luck (a loss is one number), so what the noise of the bottoms brings counts at least.
        """
        least = self._least_noise(step)
        if (self.local, self.whole)[road][0][top].numel() < FEW:
            least = max(least, self._brought(road, step, top))
        self.carried[road, top] = least
        return least

    def _least_noise(self, step: Step) -> float:
        terms: int = step.layer.serial_terms([self.shapes[o.like or o.value] for o in step.bottoms])
        return float(max(HALF_STEP * terms**0.5 / 4, HALF_STEP))

    def _brought(self, road: int, step: Step, top: Value) -> float:
        """How far a value moves, as a share of its rms, when the bottoms move by their own noise: drawn DRAWS times
        with a fixed seed, in float64. What arithmetic did in the layer itself is not in it.
        """
        y64 = (self.local, self.whole)[road][0][top]
        noise = [self._relative_noise(road, operand.value) for operand in step.bottoms]
        bottoms = [x.double() for x in self.args[road]]
        # A whole number (a label, an index) is exact.
        spread = [n * _rms(x) if not torch.equal(x, x.round()) else 0.0 for n, x in zip(noise, bottoms, strict=True)]
        scale = _rms(y64)
        if not any(spread) or not scale or not math.isfinite(scale + sum(spread)):
            return 0.0
        random = torch.Generator().manual_seed(0)
        moved = 0.0
        for _ in range(DRAWS):
            drawn = [
                x + sd * torch.randn(x.shape, generator=random, dtype=x.dtype) if sd else x
                for x, sd in zip(bottoms, spread, strict=True)
            ]
            found = TRUTH.run(self.network, step, drawn, self._double(step))[step.tops.index(top)]
            if found.shape == y64.shape:
                moved += _rms(found - y64) ** 2
        share = math.sqrt(moved / DRAWS) / scale
        return share if math.isfinite(share) else 0.0

    def _relative_noise(self, road: int, value: Value) -> float:
        """rms(c32 - y64) / rms(y64) of a computed value; 0 for one that was fed."""
        lanes = (self.local, self.whole)[road]
        if value not in lanes[0] or value in (self.known if road == 0 else self.fed):
            return 0.0
        y64, c32 = (lane[value].double().reshape(-1) for lane in lanes[:2])
        scale = float(y64.dot(y64))
        error = float((c32 - y64).dot(c32 - y64))
        own: float = math.sqrt(error / scale) if scale and error < math.inf else 0.0
        return max(float(own), self.carried.get((road, value), 0.0))

    def _put(self, top: Value, ref: Tensor, at: Stored) -> None:
        """From here on readers get the reference's numbers."""
        self.known[top] = ref
        self.since.pop(top, None)
        self.carried.pop((0, top), None)
        self.apart.discard(top)
        self.items.pop(top, None)
        if at.items is not None:
            self.items[top] = at.items
        self.parted.add(top)
        for lane in self.local:
            lane.pop(top, None)

    def _free(self, index: int) -> None:
        for value in self.last.get(index, ()):
            for values in (*self.local, *self.whole, self.known):
                values.pop(value, None)


def _see(operand: Operand, lane: Values) -> Tensor:
    x = lane[operand.value]
    return x if operand.like is None else x.reshape(lane[operand.like].shape)


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / math.sqrt(max(x.numel(), 1))


def _last_use(network: Network) -> dict[int, list[Value]]:
    """For each step, by index, the values that nothing needs after it. What the outputs are made of is kept."""
    graph = network.graph
    last: dict[Value, int] = {}
    for index, step in enumerate(graph.steps):
        last |= dict.fromkeys(step.tops, index)
        last |= dict.fromkeys(step.reads, index)
    for name in graph.outputs:
        for value in graph.blobs[name].values:
            last.pop(value, None)
    uses: dict[int, list[Value]] = {}
    for value, index in last.items():
        uses.setdefault(index, []).append(value)
    return uses


def run_whole(network: Network, inputs: Values, arithmetic: Arithmetic) -> dict[str, Tensor]:
    """The net's outputs, run from its inputs in one arithmetic, a layer at a time."""
    values = dict(inputs)
    last = _last_use(network)
    with torch.no_grad():
        for index, step in enumerate(network.graph.steps):
            bottoms = [_see(operand, values) for operand in step.bottoms]
            values |= zip(step.tops, arithmetic.run(network, step, bottoms), strict=False)
            for value in last.get(index, ()):
                values.pop(value, None)
    return {name: _see(network.graph.blobs[name], values).cpu() for name in network.graph.outputs}


__all__ = ["Comparison", "Values", "Walk", "run_whole"]
