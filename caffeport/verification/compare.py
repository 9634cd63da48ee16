"""Runs the net beside the reference, a layer at a time, each on the reference's own bottoms.

Where the reference lacks a bottom, the layers from the nearest stored values on are run and judged as one segment.
Values are dropped after their last reader, so memory holds a few layers' blobs and no more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from ..graph import Operand, Step, Value
from ..layers import Shape, text
from ..network import Network
from .arithmetic import TRUTH, YARDSTICK, Arithmetic, in_float64
from .judge import CLOSE, Growth, Judgement, Limits, judge, judge_by_some
from .noise import FEW, brought, least_noise, relative_noise
from .picture import Gallery
from .reference import Reference, Stored
from .some import ITS_OWN, how_many, some_of
from .whole import Values, Whole, last_use
from .yardstick import as_caffe


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
    """One walk through the net.

    local  values computed from the reference's own: in float64, in float32 on one thread, and in the arithmetic under
           test; of the first two only as much as the judge needs, where nobody else reads them. Those of a segment
           that begins at the inputs are `whole`'s
    whole  what the net makes of its inputs alone; None to do without
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
        whole: Whole | None,
        limits: Limits,
    ) -> None:
        self.network = network
        self.graph = network.graph
        self.reference = reference
        self.stored = stored
        self.shapes = shapes
        self.tested = tested
        self.gallery = gallery
        self.whole = whole
        self.close = min(CLOSE, limits.rms, limits.largest)
        self.same = tested.usual and torch.get_num_threads() == 1
        self.local: tuple[Values, Values, Values] = {}, {}, {}
        self.known: Values = dict(inputs)  # what the reference says, float32 on the CPU; inputs too
        self.since: dict[Value, tuple[str, ...]] = {}  # layers run since stored values, where a value is computed
        self.items: dict[Value, int] = {}  # values of the first items of the batch only
        self.args: list[Tensor] = []  # what the layer at hand was fed, for float64
        self.doubled: tuple[Step, nn.Module] | None = None  # the layer at hand in float64
        self.apart: set[Value] = set()  # local values that c32 has otherwise than d32, if `same`
        self.few: dict[Value, int] = {}  # local values of which only d32 is computed, and how many channels to judge
        self.lost: dict[Value, str] = {}  # values that could not be computed on the local road, and why
        self.last = last_use(network)
        self.ending: list[Value] = []  # what nothing needs after the layer at hand

    def run(self, on_row: Callable[[Comparison], bool]) -> None:
        """Call `on_row` with each comparison, in the net's order, until it gives False."""
        for index, step in enumerate(self.graph.steps):
            self.ending = self.last.get(index, [])
            for row in self._step(step):
                if not on_row(row):
                    return
            for values in (*self.local, self.known):
                self._free(values)

    # ---- one layer

    def _step(self, step: Step) -> list[Comparison]:
        problem = self._run(step)
        if not step.tops:
            return [Comparison(step, None, reason="it has no top")]
        return [self._top(step, top, problem) for top in step.tops]

    def _run(self, step: Step) -> str:
        """Compute the layer. Gives why it cannot run, if it is the layer's own fault."""
        if self.whole is not None:
            self.whole.advance(step)
            if self.whole.gives(step):
                self._take(step, self.whole)
                return ""
        lost = next((self.lost[value] for value in step.reads if value in self.lost), "")
        if lost:
            self.lost |= dict.fromkeys(step.tops, lost)
            return ""
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
                self._compute(step, lanes, whole_batch=keep is None)
        except (RuntimeError, ValueError, IndexError) as error:
            if keep is not None:
                self.lost |= dict.fromkeys(step.tops, "the reference holds fewer items than this layer needs")
                return ""
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.lost |= dict.fromkeys(step.tops, f"layer {step.key!r} cannot run")
            return f"cannot run on the reference's bottoms: {message}"
        self._note_segment(step)
        if keep is not None:
            self.items |= dict.fromkeys(step.tops, keep)
        return ""

    def _note_segment(self, step: Step) -> None:
        since = dict.fromkeys(key for operand in step.bottoms for key in self.since.get(operand.value, ()))
        self.since |= dict.fromkeys(step.tops, (*since, step.key))

    def _take(self, step: Step, whole: Whole) -> None:
        """The layer's values are those of the whole net."""
        self._note_segment(step)
        for top, values in whole.take(step).items():
            for lane, x in zip(self.local, values, strict=True):
                lane[top] = x
            if values[1] is not values[2]:
                self.apart.add(top)

    def _compute(self, step: Step, bottoms: Sequence[list[Tensor]], whole_batch: bool) -> None:
        # Where the noise of few values will not be drawn, no arithmetic's bottoms are there longer than it needs them.
        many = whole_batch and all(prod(n or 0 for n in self.shapes[top]) >= FEW for top in step.tops)
        self.args = [] if many else bottoms[0]
        apart = as_caffe(step, self.network.get_submodule(self.network.names[step.key])) is not None
        if apart or any(value in self.apart for value in step.reads):
            self.apart.update(step.tops)
        same = self.same and self.apart.isdisjoint(step.tops)
        for arithmetic, lane, args in zip((TRUTH, YARDSTICK, self.tested), self.local, bottoms, strict=True):
            if arithmetic is self.tested and same:
                lane |= {top: self.local[1][top] for top in step.tops if top in self.local[1]}
            else:
                module = self._double(step) if arithmetic is TRUTH else None
                lane |= zip(step.tops, arithmetic.run(self.network, step, args, module), strict=False)
            if many:
                args.clear()
                self._free(lane)

    def _compute_once(self, step: Step, bottoms: list[Tensor]) -> None:
        """Compute a layer that only moves the reference's own values: one arithmetic is as good as another."""
        yard = (self.tested if self.tested.usual else YARDSTICK).run(self.network, step, bottoms)
        ours = yard if self.tested.usual else self.tested.run(self.network, step, bottoms)
        for lane, tops in zip(self.local, (yard, yard, ours), strict=True):
            lane |= zip(step.tops, tops, strict=False)
        self.args = bottoms

    def _compute_for_judge(self, step: Step, bottoms: list[Tensor]) -> bool:
        """Compute d32 only of a layer that is fed the reference's own values, if nobody but `judge` reads y64 and c32
        and some channels of them are enough. Gives whether that is so.
        """
        top = step.tops[0] if len(step.tops) == 1 else None
        at = self.stored.get(top) if top else None
        if top is None or at is None or at.items is not None or step.key in self.network._views:
            return False
        own = self.network.get_submodule(self.network.names[step.key])
        few = how_many(own, bottoms, self.shapes[top])
        if few:
            (self.local[2][top],) = self.tested.run(self.network, step, bottoms)
            self.few[top] = few
            self.args = bottoms
        return bool(few)

    def _double(self, step: Step) -> nn.Module:
        """The layer in float64, made once."""
        if self.doubled is None or self.doubled[0] is not step:
            own = self.network.get_submodule(self.network.names[step.key])
            self.doubled = step, in_float64(own, step.key in self.network._views)
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
        if self.whole is not None:
            row.growth = self.whole.growth(step, top, ref)
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
        if any(x is not None and x.shape != ref.shape for x in (y64, c32)):
            row.reason = "by a rounding error it has another number of rows in float64, so that its noise is not known"
            return
        d32 = c32 if d32 is c32 else d32.cpu().float()
        if y64 is None or c32 is None:
            row.judgement = self._judge_by_channels(step, top, ref, d32)
        else:
            row.judgement = judge(ref, y64, c32, d32, step.layer.noise_floor, self._noise(step, top), self.close)
        self.gallery.show(step.key, top.blob, row.judgement, d32, ref)

    def _judge_by_channels(self, step: Step, top: Value, ref: Tensor, d32: Tensor) -> Judgement:
        """Judge a layer of which only d32 is computed yet."""
        network, bottoms, few = self.network, self.args, self.few.pop(top)
        own = network.get_submodule(network.names[step.key])
        # What sums up nothing gives the same on any number of threads.
        same = self.same or (self.tested.usual and type(own) in ITS_OWN)

        def some() -> tuple[Tensor, Tensor, Tensor, Tensor]:
            part = some_of(own, bottoms, ref, few)
            d = part.of(d32)
            (y64,) = TRUTH.run(network, step, part.bottoms, in_float64(part.module, tied=False))
            c32 = d if same else YARDSTICK.run(network, step, part.bottoms, part.module)[0]
            return part.of(ref), y64, c32, d

        def whole() -> tuple[Tensor, Tensor]:
            (y64,) = TRUTH.run(network, step, bottoms, self._double(step))
            return y64, d32 if same else YARDSTICK.run(network, step, bottoms)[0]

        floor, relative = step.layer.noise_floor, least_noise(step, self.shapes)
        return judge_by_some(ref, d32, some, whole, floor, relative, self.close, same)

    def _noise(self, step: Step, top: Value) -> float:
        """The least relative noise that the value may be given, whatever c32 happens to show."""
        if self.whole is not None and self.whole.gives(step):
            return self.whole.noise[top]
        least = least_noise(step, self.shapes)
        y64 = self.local[0][top]
        if y64.numel() < FEW:

            def again(bottoms: list[Tensor]) -> Tensor:
                return TRUTH.run(self.network, step, bottoms, self._double(step))[step.tops.index(top)]

            noise = [self._relative_noise(operand.value) for operand in step.bottoms]
            least = max(least, brought(again, [x.double() for x in self.args], noise, y64))
        return least

    def _relative_noise(self, value: Value) -> float:
        """Of a computed value; 0 for one that was fed."""
        if value in self.known or value not in self.local[0]:
            return 0.0
        return relative_noise(self.local[0][value], self.local[1][value])

    def _put(self, top: Value, ref: Tensor, at: Stored) -> None:
        """From here on readers get the reference's numbers."""
        self.known[top] = ref
        self.since.pop(top, None)
        self.apart.discard(top)
        self.items.pop(top, None)
        if at.items is not None:
            self.items[top] = at.items
        for lane in self.local:
            lane.pop(top, None)

    def _free(self, values: Values) -> None:
        for value in self.ending:
            values.pop(value, None)


__all__ = ["Comparison", "Walk"]
