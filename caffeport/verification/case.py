"""The first failing layer, or segment, that a diagnosis is about: run again with layers or inputs exchanged."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Operand, Step, Value
from ..network import Network
from .arithmetic import TRUTH, Arithmetic
from .judge import HALF_STEP
from .reference import Reference, Stored
from .report import LayerResult
from .whole import Values

SECONDS = 20.0  # that a diagnosis may take, about
SHARE = 50.0  # by which a supposition has to take the ratio down to be named
SLIGHT = 3.0  # a ratio that passes, and that right layers rarely have

Supposed = Iterator[tuple[str, float, str]]  # in words, the ratio under it, evidence


class Case:
    """The failing layer, or segment, and what it was given: runs it in float64 with layers exchanged."""

    def __init__(
        self,
        network: Network,
        source: Reference,
        stored: Mapping[Value, Stored],
        fed: Values,
        row: LayerResult,
        limit: float,
        tested: Arithmetic,
    ) -> None:
        by_key = {step.key: step for step in network.graph.steps}
        self.network, self.row, self.limit = network, row, limit
        self.steps = [by_key[key] for key in (row.segment or (row.layer,))]
        self.step = self.steps[-1]
        self.top = next(top for top in self.step.tops if top.blob == row.top)
        self.until = time.monotonic() + SECONDS
        written = {top for step in self.steps for top in step.tops}
        self.start: Values = {}
        for value in (value for step in self.steps for value in step.reads if value not in written):
            self.start[value] = fed[value] if value in fed else torch.from_numpy(source.read(stored[value].key))
        self.ref = torch.from_numpy(source.read(stored[self.top].key)).double()
        self._cut()
        self.inputs = [value for value in fed if value in self.start]
        self.noise, self.noise_max = (row.judgement.noise, row.judgement.noise_max) if row.judgement else (0.0, 0.0)
        self.by_device = bool(row.judgement and row.judgement.reference <= limit < row.judgement.device)
        if self.by_device:  # the reference is as we mean it, the device is off: explain what the device gives
            self.ref = self._run(tested, {}, self.start)[self.top].cpu().double()
        self.right = self._run(TRUTH, {}, self.start) if len(self.steps) > 1 else {}
        self.before = self.ratio({})

    def _cut(self) -> None:
        """Keep the items that all have; one is enough for a long segment."""
        sizes = {x.shape[0] for x in (*self.start.values(), self.ref) if x.dim()}
        if not sizes or not self.ref.dim() or not all(step.layer.batch_independent for step in self.steps):
            return
        items = 1 if len(self.steps) > 1 else min(sizes)
        if sizes != {items} and len({x.shape[0] for x in self.start.values() if x.dim()}) == 1:
            self.start = {value: x[:items] for value, x in self.start.items()}
            self.ref = self.ref[:items]

    def _run(self, arithmetic: Arithmetic, modules: Mapping[str, nn.Module], start: Values) -> Values:
        values = dict(start)
        steps = self.steps
        if (
            modules and start is self.start and self.right and arithmetic is TRUTH
        ):  # what lies before the change is known
            first = next(i for i, step in enumerate(steps) if step.key in modules)
            values, steps = dict(self.right), steps[first:]
        for step in steps:
            bottoms = [self._see(operand, values) for operand in step.bottoms]
            values |= zip(step.tops, arithmetic.run(self.network, step, bottoms, modules.get(step.key)), strict=False)
        return values

    @staticmethod
    def _see(operand: Operand, values: Values) -> Tensor:
        x = values[operand.value]
        return x if operand.like is None else x.reshape(values[operand.like].shape)

    def output(self, modules: Mapping[str, nn.Module] | None = None, start: Values | None = None) -> Tensor:
        return self._run(TRUTH, modules or {}, start or self.start)[self.top]

    def distance(self, y: Tensor) -> float:
        """The ratio by rms, or half the one by the largest error, which has twice the limit; infinite for another
        shape.
        """
        if y.shape != self.ref.shape:
            return math.inf
        finite = torch.isfinite(self.ref)
        if not torch.equal(finite, torch.isfinite(y)):
            return math.inf
        error = (self.ref - y)[finite]
        if not error.numel():
            return 0.0
        rms, largest = math.sqrt(float(error.dot(error)) / error.numel()), float(error.abs().max())
        # What is right has the noise of the reference's size at least, which ours, being wrong, may not have.
        noise = max(self.noise, HALF_STEP * float(self.ref[finite].square().mean().sqrt())) or 1.0
        noise_max = max(self.noise_max, 2 * HALF_STEP * float(self.ref[finite].abs().max())) or 1.0
        return max(rms / noise, largest / noise_max / 2)

    def ratio(self, modules: Mapping[str, nn.Module], start: Values | None = None) -> float:
        """The ratio with some layers exchanged; infinite where they cannot run."""
        try:
            return self.distance(self.output(modules, start))
        except (RuntimeError, ValueError, IndexError):
            return math.inf

    def explains(self, after: float) -> bool:
        return after <= self.limit

    def helps(self, after: float) -> bool:
        """Whether most of the error is gone, and what is left is small beside the values."""
        scale = float(self.ref.square().mean().sqrt())
        return after <= self.before / SHARE and after * self.noise <= scale / 10

    def module(self, step: Step) -> Any:
        return self.network.get_submodule(self.network.names[step.key])

    @property
    def no_bias(self) -> bool:
        """Whether the failing layer may have a bias and has none."""
        module = self.module(self.step)
        return hasattr(module, "bias") and (module.bias is None or not module.bias.any())

    @property
    def in_time(self) -> bool:
        return time.monotonic() < self.until
