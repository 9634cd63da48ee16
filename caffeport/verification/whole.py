"""Runs the whole net from its inputs: in float64, in float32 on the CPU, and as the user runs it.

A value is compared with the reference by a few of its numbers, which are all that is kept of it. Calls are those of
`Network.forward`, so that BatchNorm and its Scale are one: between them there is nothing to compare.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph import Step, Value
from ..layers import Shape
from ..layers.base import Array
from ..network import Network
from ..plan import Run, converted, plan, see
from .arithmetic import CPU, YARDSTICK, Arithmetic, in_float64
from .judge import Growth, growth, sample
from .noise import FEW, brought, least_noise, relative_noise
from .reference import Stored
from .yardstick import as_caffe

Values = dict[Value, Tensor]
Outputs = dict[str, Tensor]
Slots = list[Tensor | None]
Lanes = tuple[Tensor, Tensor, Tensor]  # in float64, in float32, as the user gets it


@dataclass(frozen=True)
class _Kept:
    """Of one value: its shape, and some of its numbers on both roads."""

    shape: tuple[int, ...]
    y64: Array
    c32: Array


class _Modules(dict[str, nn.Module]):
    """The net's modules by name, each made when a call asks for it. Cleared after the call, so that the weights are
    never there a second time as a whole.
    """

    def __init__(self, make: Callable[[str], nn.Module]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> nn.Module:
        self[name] = module = self.make(name)
        return module


class Whole:
    """What the net makes of its inputs, call by call.

    ours    whether it is also run as the user runs it: the network and what is under test are float32 on the CPU
    failed  why a layer could not run, or ""; nothing is run after it
    """

    def __init__(
        self,
        network: Network,
        inputs: Values,
        stored: Mapping[Value, Stored],
        shapes: Mapping[Value, Shape],
        tested: Arithmetic,
    ) -> None:
        graph = network.graph
        self.network = network
        self.inputs = inputs
        self.stored = stored
        self.shapes = shapes
        self.failed = ""
        numbers = [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
        self.ours = tested.usual and all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in numbers)
        self.y64: Slots = [None] * graph.slots
        self.c32, self.d32 = list(self.y64), list(self.y64)
        for value, x in inputs.items():
            self.y64[value.slot], self.c32[value.slot], self.d32[value.slot] = x.double(), x, x
        self.tied = _tied(network)
        self.steps = {network.names[step.key]: step for step in graph.steps}
        self.in_float64, self.in_float32 = _Modules(self._in_float64), _Modules(self._in_float32)
        self.kept: dict[Value, _Kept] = {}
        self.noise: dict[Value, float] = {}  # the least relative one of stored tops, whatever c32 happens to show
        self.done: set[str] = set()  # layers that have been run
        # For the layers that `gives` tells of: their tops, once they have run.
        self.lent: dict[str, dict[Value, Lanes]] = {key: {} for key in _lent(network, inputs, stored) if self.ours}
        self.calls = iter(plan(graph, network.names, network._views, self._looked_at()))

    def advance(self, step: Step) -> None:
        """Run the call in which the layer is, that of the layer before having been run; all that are left where nobody
        asks for their values, since one after the other is quicker.
        """
        if self.failed or step.key in self.done:
            return
        try:
            for run, steps, free in self.calls:
                asked = not self.lent.keys() <= self.done
                self._call(run, steps, free)
                if asked:
                    break
        except (RuntimeError, ValueError, IndexError, InputError) as error:
            self.failed = str(error).splitlines()[0] if str(error) else type(error).__name__
            for lane in (self.y64, self.c32, self.d32):
                lane.clear()

    def gives(self, step: Step) -> bool:
        """Whether the layer, for which `advance` was called, is part of a segment that begins at the inputs, so that
        its values there are those of the whole net.
        """
        return step.key in self.lent and step.key in self.done

    def take(self, step: Step) -> dict[Value, Lanes]:
        """Its tops in float64, in float32 and as the user gets them; none between two layers that are one call."""
        tops, self.lent[step.key] = self.lent[step.key], {}
        return tops

    def growth(self, step: Step, top: Value, ref: Tensor) -> Growth | None:
        """How far the reference is from this top when the net runs from its inputs; None where it did not run."""
        kept = self.kept.pop(top, None)
        if kept is None or kept.shape != tuple(ref.shape):
            return None
        return growth(sample(ref), kept.y64, kept.c32, step.layer.noise_floor, self.noise[top])

    def outputs(self) -> tuple[Outputs, Outputs, Outputs | None]:
        """Of the net, at the end: in float64, in float32, and as the user gets them; empty where a layer failed."""
        blobs = {} if self.failed else {name: self.network.graph.blobs[name] for name in self.network.outputs}
        y64, c32, d32 = (
            {name: see(operand, lane) for name, operand in blobs.items()} for lane in (self.y64, self.c32, self.d32)
        )
        return y64, c32, d32 if self.ours else None

    def _in_float64(self, name: str) -> nn.Module:
        return in_float64(self.network.get_submodule(name), name in self.tied)

    def _in_float32(self, name: str) -> nn.Module:
        """On the CPU, as Caffe computes it where that errs more than ours."""
        own, step = self.network.get_submodule(name), self.steps.get(name)
        return (step and as_caffe(step, own)) or (own if self.ours else converted(own, torch.float32, CPU))

    def _looked_at(self) -> set[Value]:
        """Stored values, but for a BatchNorm that is one call with its Scale where that is stored too."""
        steps = self.network.graph.steps
        followed = {value for step in steps if all(top in self.stored for top in step.tops) for value in step.reads}
        norms = {step.tops[0] for step in steps if step.layer.spec.type == "BatchNorm" and step.key not in self.lent}
        return set(self.stored) - (norms & followed)

    def _call(self, run: Run, steps: Sequence[Step], free: Sequence[int]) -> None:
        fed = self._fed(steps)
        run(self.in_float64, self.y64)
        # What is lent is the yardstick of a segment, which never is what is under test.
        lent = any(step.key in self.lent for step in steps)
        with YARDSTICK.settings() if lent else nullcontext():
            run(self.in_float32, self.c32)
        if self.ours:
            self._run_ours(run, steps, shared=not lent or torch.get_num_threads() == 1)
        for step in steps:
            for top in step.tops:
                y64, c32, d32 = (lane[top.slot] for lane in (self.y64, self.c32, self.d32))
                if y64 is not None and c32 is not None:
                    self._keep(step, top, y64, c32, run, fed)
                    if step.key in self.lent and d32 is not None:
                        self.lent[step.key][top] = y64, c32, d32
            self.done.add(step.key)
        for modules in (self.in_float64, self.in_float32):
            modules.clear()
        for lane in (self.y64, self.c32, self.d32):
            for slot in free:
                lane[slot] = None

    def _run_ours(self, run: Run, steps: Sequence[Step], shared: bool) -> None:
        """The call as the user runs it, which has been made already where it is that of `in_float32`."""
        modules: dict[str, Any] = self.network._modules
        shared &= all(module is modules[name] for name, module in self.in_float32.items())
        if not shared or any(self.c32[value.slot] is not self.d32[value.slot] for value in steps[0].reads):
            run(modules, self.d32)
            return
        for step in steps:
            for top in step.tops:
                self.d32[top.slot] = self.c32[top.slot]

    def _fed(self, steps: Sequence[Step]) -> dict[Value, tuple[Tensor, float]]:
        """What a call reads, in float64, with its relative noise, to run it again on drawn noise; nothing where its
        tops have enough values to tell their own.
        """
        tops = [top for step in steps for top in step.tops if top in self.stored]
        if all(prod(n or 0 for n in self.shapes[top]) >= FEW for top in tops):
            return {}
        fed = {}
        for value in dict.fromkeys(steps[0].reads):
            y64, c32 = self.y64[value.slot], self.c32[value.slot]
            if y64 is not None and c32 is not None:
                noise = 0.0 if value in self.inputs else max(relative_noise(y64, c32), self.noise.get(value, 0.0))
                fed[value] = y64.clone(), noise  # the call may write over it
        return fed

    def _keep(
        self, step: Step, top: Value, y64: Tensor, c32: Tensor, run: Run, fed: Mapping[Value, tuple[Tensor, float]]
    ) -> None:
        at = self.stored.get(top)
        if at is None:
            return
        noise = least_noise(step, self.shapes)
        if fed and y64.numel() < FEW:

            def again(bottoms: list[Tensor]) -> Tensor:
                values = list(self.y64)
                for value, x in zip(fed, bottoms, strict=True):
                    values[value.slot] = x
                run(self.in_float64, values)
                found = values[top.slot]
                assert found is not None
                return found

            noise = max(noise, brought(again, [x for x, _ in fed.values()], [n for _, n in fed.values()], y64))
        self.noise[top] = noise
        if y64.shape != c32.shape:  # of as many rows as the numbers say
            return
        if at.items is not None:
            y64, c32 = y64[: at.items], c32[: at.items]
        self.kept[top] = _Kept(tuple(y64.shape), sample(y64), sample(c32))


def _tied(network: Network) -> set[str]:
    """Modules that share parameters under another shape."""
    owners = {view.layer for views in network._views.values() for view in views.values()}
    return {network.names[key] for key in {*network._views, *owners} if key in network.names}


def _lent(network: Network, inputs: Values, stored: Mapping[Value, Stored]) -> list[str]:
    """Layers of segments that begin at the inputs: no stored value has a part in what they read, and they are not
    judged alone.
    """
    lent = []
    untold: set[Value] = set()  # computed values in which no stored one has a part
    for step in network.graph.steps:
        if all(value in inputs or value in untold for value in step.reads):
            untold.update(top for top in step.tops if top not in stored)
            if any(value in untold for value in (*step.reads, *step.tops)):
                lent.append(step.key)
    return lent


def run_whole(network: Network, inputs: Values, arithmetic: Arithmetic) -> dict[str, Tensor]:
    """The net's outputs, run from its inputs in one arithmetic, a layer at a time."""
    values: Slots = [None] * network.graph.slots
    for value, x in inputs.items():
        values[value.slot] = x
    last = last_use(network)
    for index, step in enumerate(network.graph.steps):
        found = arithmetic.run(network, step, [see(operand, values) for operand in step.bottoms])
        for top, x in zip(step.tops, found, strict=False):
            values[top.slot] = x
        for value in last.get(index, ()):
            values[value.slot] = None
    return {name: see(network.graph.blobs[name], values).cpu() for name in network.graph.outputs}


def last_use(network: Network) -> dict[int, list[Value]]:
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


__all__ = ["Values", "Whole", "last_use", "run_whole"]
