"""What is probably wrong with the first layer that fails: suppositions, each tried, named when it explains the error.

A supposition is a changed layer, input or output. It is run in float64 and put beside the reference: it explains the
error when the ratio falls below the limit. Where none does, those are named that take the ratio down to a fiftieth.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import Operand, Step, Value
from ..network import Network
from .arithmetic import TRUTH, Arithmetic, rounded, weights_rounded
from .compare import Values
from .judge import HALF_STEP
from .reference import Reference, Stored
from .report import Cause, LayerResult, Report
from .weights import file_arrays, from_file

if TYPE_CHECKING:
    from ..modules.pooling import Pool

SECONDS = 20.0  # that a diagnosis may take, about
SHARE = 50.0  # by which a supposition has to take the ratio down to be named
PLAIN = 16  # so few different weights are short by design, such as those of bilinear upsampling
WORST = 1e30  # a ratio, for a search that wants finite ones
SLIGHT = 3.0  # a ratio that passes, and that right layers rarely have
CERTAIN = 2.0  # a ratio at which a long segment is not searched any further
NAMES = {"tf32": "TF32's 10 bits", "fp16": "fp16", "bf16": "bf16"}

Modules = dict[str, nn.Module]


def diagnose(
    network: Network, source: Reference, stored: Mapping[Value, Stored], fed: Values, report: Report, tested: Arithmetic
) -> list[Cause]:
    """Causes of the report's first failure, best first; empty where none is found."""
    row = next((row for row in report.layers if row.layer == report.first_failure), None)
    if row is None:
        return []
    failing = next((r for r in report.layers if r.layer == row.layer and r.agrees(report.limits) is False), None)
    if failing is None:
        ratio = row.judgement.ratio if row.judgement else 0.0  # the data do not show it
        return _wrong_weights(network, row.layer, ratio, lambda modules: ratio) or [_wiring(row, report)]
    with torch.no_grad():
        try:
            return _causes(_Case(network, source, stored, fed, failing, report.limits.rms, tested))
        except (
            KeyError,
            RuntimeError,
            ValueError,
            IndexError,
        ):  # it lacks a value that is needed, or cannot run at all
            return []


def _wiring(row: LayerResult, report: Report) -> Cause:
    """All layers agree alone, but not the net: the layer read something else than Caffe's did."""
    growth = row.growth
    ratio = growth.ratio if growth else math.inf
    local = row.judgement.ratio if row.judgement else 1.0
    before = [r for r in report.layers[: report.layers.index(row)] if r.judgement]
    worst = max(before, key=lambda r: r.judgement.ratio if r.judgement else 0.0, default=None)
    evidence = ""
    if worst is not None and worst.judgement and worst.judgement.ratio > SLIGHT:
        evidence = f"before it {worst.layer!r} is furthest off, by {worst.judgement.ratio:.3g} times its noise"
    return Cause(
        "the layer is right by itself, so what it was given is wrong: its wiring, or a layer before it "
        "that was not judged or is slightly off",
        ratio,
        local,
        evidence,
    )


class _Case:
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


def _causes(case: _Case) -> list[Cause]:
    found: list[Cause] = []
    for step in case.steps:
        found += _wrong_weights(case.network, step.key, case.before, case.ratio)
    if any(case.explains(cause.after) for cause in found):
        return found
    for supposed in (_inputs, _changed_layers, _fitted, _residual):
        for what, after, evidence in supposed(case):
            if case.explains(after) or case.helps(after):
                found.append(Cause(what, case.before, after, evidence))
            if not case.in_time or (len(case.steps) > 1 and after <= CERTAIN):
                break
        whole = [cause for cause in found if case.explains(cause.after)]
        if whole:
            found = whole
            break
    found.sort(key=lambda cause: round(cause.after, 1))
    if found and supposed is _residual:  # which tells what differs, not why
        return [*found[:3], *_short_weights(case)][:4]
    return (found or _where(case))[:4]


Supposed = Iterator[tuple[str, float, str]]


# ---- weights: the module's beside the file's


def _wrong_weights(network: Network, key: str, before: float, ratio: Callable[[Modules], float]) -> list[Cause]:
    """How the module's numbers came from the file's, where they differ, and the ratio with the file's own."""
    step = next(step for step in network.graph.steps if step.key == key)
    wanted = from_file(step, file_arrays(network))
    module = network.get_submodule(network.names[key])
    held = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    own = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in wanted.items() if name in held}
    wrong = [
        name for name, array in own.items() if held[name].shape != array.shape or not torch.equal(held[name], array)
    ]
    if not wrong or any(held[name].shape != own[name].shape for name in wrong):
        return []
    right = deepcopy(module)
    right.load_state_dict({**held, **own})
    after = ratio({key: right})
    group = int(getattr(module, "groups", 1))
    return [
        Cause(f"{key!r}: {name} {_became(own[name], held[name], group)}", before, after, "beside the file's own")
        for name in wrong
    ]


def _became(own: Tensor, held: Tensor, group: int) -> str:
    """In words, how `held` differs from the file's `own`, of the same shape."""
    if not held.any():
        return "set to zero"
    words = _fewer_bits(held, own)
    if words:
        return f"rounded to {words}"
    for what, changed in _rearranged(own, group):
        if torch.equal(held, changed):
            return what
    different = (held != own).reshape(-1)
    factors = (held / own).reshape(-1)
    factor = factors[torch.isfinite(factors)].median() if torch.isfinite(factors).any() else torch.tensor(math.nan)
    if int(different.sum()) == 1:
        at = int(different.nonzero()[0])
        index = tuple(int(i) for i in np.unravel_index(at, own.shape))
        return (
            f"differs in one value, at {index}: {float(held.reshape(-1)[at]):.6g} for {float(own.reshape(-1)[at]):.6g}"
        )
    if torch.allclose(held, own * factor, rtol=1e-6, atol=0):
        return f"is the file's times {float(factor):.6g}"
    if torch.allclose(held - own, (held - own).median(), rtol=1e-3):
        return f"is the file's plus {float((held - own).median()):.6g}"
    return f"differs in {int(different.sum()):,} of {own.numel():,} values"


def _fewer_bits(held: Tensor, own: Tensor) -> str:
    """Which shorter form `held` is of `own`, or "": fp16 and TF32 cannot be told apart where no number is tiny."""
    forms = [form for form in NAMES if torch.equal(held, rounded(own, form))]
    return "10 bits, as fp16 and TF32 have" if forms == ["tf32", "fp16"] else NAMES[forms[-1]] if forms else ""


def _rearranged(w: Tensor, group: int) -> Iterator[tuple[str, Tensor]]:
    """The same numbers of a weight in the places where mistakes put them."""
    if w.dim() >= 3:
        spatial = tuple(range(2, w.dim()))
        yield "rotated by 180 degrees", w.flip(spatial)
        if w.dim() >= 4 and w.shape[-1] == w.shape[-2]:
            yield "with height and width exchanged", w.transpose(-1, -2)
        if w.shape[1] == 3 and group == 1:
            yield "with its input channels in the opposite order (RGB for BGR)", w.flip(1)
        if w.shape[0] == w.shape[1]:
            yield "with input and output channels exchanged", w.transpose(0, 1)
    if group > 1 and w.shape[0] % group == 0:
        parts = torch.chunk(w, group)
        orders = list(itertools.permutations(range(group)))[1:24] if group <= 4 else [tuple(reversed(range(group)))]
        for order in orders:
            yield f"with its groups in the order {', '.join(map(str, order))}", torch.cat([parts[i] for i in order])
    if w.dim() == 2:
        if w.shape[0] == w.shape[1]:
            yield "transposed", w.t()
        else:
            yield "transposed (read as inputs by outputs)", w.reshape(w.shape[1], w.shape[0]).t()
            yield "transposed (written as inputs by outputs)", w.t().reshape(w.shape)


# ---- the input


def _inputs(case: _Case) -> Supposed:
    """Pictures: channels in the opposite order; a linear layer that reads them also tells scale and offset."""
    for value in case.inputs:
        x = case.start[value].double()
        if x.dim() != 4 or x.shape[1] not in (1, 3, 4):
            continue
        if x.shape[1] == 3:
            yield (
                "the channels of the input are in the opposite order (RGB for BGR)",
                case.ratio({}, {**case.start, value: x.flip(1)}),
                "",
            )
        if case.step.layer.spec.type == "Convolution" and len(case.steps) == 1 and len(case.step.bottoms) == 1:
            yield _affine_input(case, value, x)


def _listed(values: Tensor) -> str:
    return ", ".join(f"{float(value):.5g}" for value in values)


def _affine_input(case: _Case, value: Value, x: Tensor) -> tuple[str, float, str]:
    """Fit the reference as the layer of a * x + b, with a and b for each channel: both enter the output linearly."""
    channels = x.shape[1]

    def answer(fed: Tensor) -> Tensor:
        return case.output({}, {**case.start, value: fed})

    nothing = answer(torch.zeros_like(x))
    columns = []
    for part in (x, torch.ones_like(x)):
        for c in range(channels):
            only = torch.zeros_like(x)
            only[:, c] = part[:, c]
            columns.append((answer(only) - nothing).reshape(-1))
    basis, wanted = torch.stack(columns, 1), (case.ref - nothing).reshape(-1)
    if wanted.shape[0] != basis.shape[0] or not (torch.isfinite(wanted).all() and torch.isfinite(basis).all()):
        return "", math.inf, ""
    solution = torch.linalg.lstsq(basis.t() @ basis, (basis.t() @ wanted)[:, None], driver="gelsd").solution[:, 0]
    after = case.distance((nothing.reshape(-1) + basis @ solution).reshape(case.ref.shape))
    scale, offset = solution[:channels], solution[channels:]
    same_scale = bool(((scale - 1).abs() < 1e-4).all())
    no_offset = bool((offset.abs() < 1e-4 * float(x.abs().max() + 1)).all())
    if same_scale:
        return (
            "a mean was subtracted from the input on one side only",
            after,
            f"the reference saw x + ({_listed(offset)}) by channel",
        )
    if no_offset:
        return "the input was scaled differently", after, f"the reference saw x * ({_listed(scale)}) by channel"
    return (
        "the input was scaled and shifted differently",
        after,
        f"the reference saw x * ({_listed(scale)}) + ({_listed(offset)}) by channel",
    )


# ---- changed layers


class _Rounding(nn.Module):
    """A module whose bottoms are rounded first, and its top afterwards too if `whole`."""

    def __init__(self, module: nn.Module, form: str, whole: bool = False) -> None:
        super().__init__()
        self.module, self.form, self.whole = module, form, whole

    def forward(self, *bottoms: Tensor) -> Tensor:
        top: Tensor = self.module(*(rounded(x.float(), self.form).to(x.dtype) for x in bottoms))
        return rounded(top.float(), self.form).to(top.dtype) if self.whole else top


class _Average(nn.Module):
    """Average pooling that divides by the whole kernel, or by the part of it inside the image."""

    def __init__(self, pool: "Pool", whole: bool) -> None:
        super().__init__()
        self.pool, self.whole = pool, whole

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.pool(x)
        if self.whole:
            return mean * _extent(self.pool, x) / math.prod(self.pool.kernel)
        share: Tensor = self.pool(torch.ones_like(x))  # what lies inside the image of that by which Caffe divides
        return mean / share


def _extent(pool: "Pool", x: Tensor) -> Tensor:
    """By what Caffe divides in each window of an average pooling over x."""
    from ..modules.geometry import pooled_size

    extents = []
    for i, k, s, p in zip(x.shape[2:], pool.kernel, pool.stride, pool.padding, strict=True):
        n = pooled_size(i, k, s, p, any(pool.padding), pool.floor)
        starts = torch.arange(n) * s - p
        extents.append(((starts + k).clamp(max=i + p) - starts).double())
    return extents[0][:, None] * extents[1][None]


def _changed(module: nn.Module, **attributes: Any) -> nn.Module:
    """A copy of the module with other attributes."""
    new: nn.Module = deepcopy(module)
    for name, value in attributes.items():
        held = getattr(new, name)
        setattr(new, name, nn.Parameter(value, requires_grad=False) if isinstance(held, nn.Parameter) else value)
    return new


Variants = Iterator[tuple[str, nn.Module]]


def _other_settings(case: _Case, step: Step) -> Variants:
    """What the net's text says, read in another way."""
    module, type_ = case.module(step), step.layer.spec.type
    if type_ == "LRN" and hasattr(module, "alpha"):
        n = module.size if hasattr(module, "k") else module.size**2
        yield "alpha was not divided by the size on the reference's side", _changed(module, alpha=module.alpha * n)
        yield "alpha was not divided by the size on our side", _changed(module, alpha=module.alpha / n)
        for size in (3, 5, 7, 9):
            if size != module.size:
                yield f"local_size {size} for {module.size}", _changed(module, size=size)
    if type_ == "Pooling":
        yield from _other_pooling(step, module)


def _other_eps(case: _Case, step: Step) -> Variants:
    module = case.module(step)
    if step.layer.spec.type == "BatchNorm" and hasattr(module, "eps"):
        for eps in (1e-3, 1e-5, 2e-5, 1e-4, 1e-6, 1e-9, 1e-10):
            if not math.isclose(eps, module.eps, rel_tol=1e-3):
                yield f"eps {eps:g} for {module.eps:.3g}", _changed(module, eps=eps)


def _other_weights(case: _Case, step: Step) -> Variants:
    """The learned arrays with fewer bits, in other places, or missing."""
    module = case.module(step)
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() >= 2:
        for form, words in NAMES.items() if not case.by_device else ():
            yield f"weights rounded to {words}", weights_rounded(module, form)
        for form, words in NAMES.items():
            yield f"inputs and weights rounded to {words}", _Rounding(weights_rounded(module, form), form)
        for form in ("bf16", "fp16"):
            yield f"computed in {form} throughout", _Rounding(weights_rounded(module, form, axes=0), form, whole=True)
        for what, w in _rearranged(weight.detach(), int(getattr(module, "groups", 1))):
            yield f"its weights are {what}", _changed(module, weight=w.contiguous())
        yield from _flattened(case, step, weight.detach())
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor) and bias.any():
        yield "the reference has no bias here", _changed(module, bias=torch.zeros_like(bias))


def _flattened(case: _Case, step: Step, weight: Tensor) -> Variants:
    """A fully connected layer whose columns expect the map in another order."""
    operand = step.bottoms[0] if step.bottoms else None
    shape = (
        tuple(case.start[operand.value].shape)
        if operand and operand.value in case.start and operand.like is None
        else ()
    )
    changed = partial(_changed, case.module(step))
    if weight.dim() == 2 and len(shape) == 4 and weight.shape[1] == math.prod(shape[1:]) and max(shape[2:]) > 1:
        c, h, w = shape[1:]
        yield (
            "the map was flattened as height, width, channels",
            changed(weight=weight.reshape(-1, h, w, c).permute(0, 3, 1, 2).reshape(weight.shape).contiguous()),
        )
        yield (
            "the map is flattened as height, width, channels here",
            changed(weight=weight.reshape(-1, c, h, w).permute(0, 2, 3, 1).reshape(weight.shape).contiguous()),
        )


def _other_pooling(step: Step, module: nn.Module) -> Variants:
    from ..modules.pooling import Pool

    kernel, stride, pad = step.layer.window(2)  # type: ignore[attr-defined]
    method = "max" if step.layer.spec.pooling_param.pool == 0 else "average"
    if not kernel:
        return
    yield "sizes are rounded up in the reference", Pool(method, kernel, stride, pad, False)
    yield "sizes are rounded down in the reference", Pool(method, kernel, stride, pad, True)
    other, floor = ("average", "max")[method == "average"], step.layer.floor  # type: ignore[attr-defined]
    yield f"the reference takes the {other} of each window", Pool(other, kernel, stride, pad, floor)
    if method == "average":
        right = Pool("average", kernel, stride, pad, floor)
        yield "averages are divided by the window cut at image + pad in the reference", right
        yield "averages are divided by the whole kernel in the reference", _Average(right, whole=True)
        yield (
            "averages are divided by the part of the window inside the image in the reference",
            _Average(right, whole=False),
        )


def _changed_layers(case: _Case) -> Supposed:
    """Each layer in each other way; those of which there are few come first, since a long segment may take too long."""
    name = len(case.steps) > 1
    for variants in (_other_settings, _other_eps, _other_weights):
        for step in reversed(case.steps):
            for what, module in variants(case, step):
                yield (f"{step.key!r}: {what}" if name else what), case.ratio({step.key: module}), ""
                if not case.in_time:
                    return


# ---- one number fitted


def _fitted(case: _Case) -> Supposed:
    """The value of one parameter that fits best."""
    for step in case.steps[-8:]:
        module, type_ = case.module(step), step.layer.spec.type
        name = f"{step.key!r}: " if len(case.steps) > 1 else ""
        if type_ in ("BatchNorm", "LRN", "ReLU", "ELU"):
            for attribute in ("eps", "k", "alpha", "beta", "negative_slope"):
                held = getattr(module, attribute, None)
                if isinstance(held, int | float) and held > 0:
                    value, after = _best(case, step, partial(_named, attribute), held)
                    yield f"{name}{attribute} {value:.4g} for {held:.4g}", after, ""
        if type_ == "BatchNorm" and hasattr(module, "running_var"):
            mean, variance = module.running_mean, module.running_var
            value, after = _best(case, step, partial(_scaled, mean, variance), 1.0)
            yield f"{name}the scale factor: mean and variance are to be multiplied by {value:.4g}", after, ""


def _named(attribute: str, value: float) -> dict[str, Any]:
    return {attribute: value}


def _scaled(mean: Tensor, variance: Tensor, factor: float) -> dict[str, Any]:
    return {"running_mean": mean * factor, "running_var": variance * factor}


def _best(case: _Case, step: Step, attributes: Callable[[float], dict[str, Any]], held: float) -> tuple[float, float]:
    """The positive number that brings the layer closest to the reference, near or far from the one it holds."""
    from scipy.optimize import minimize_scalar

    def at(log: float) -> float:
        module = deepcopy(case.module(step))
        for name, value in attributes(math.exp(log)).items():
            setattr(module, name, value)
        ratio = case.ratio({step.key: module}) if case.in_time else math.inf
        return math.log(min(max(ratio, 1e-9), WORST))

    middle = math.log(held)
    grid = [middle + d for d in (-9.2, -6.9, -4.6, -2.3, -1.15, -0.35, 0.35, 1.15, 2.3, 4.6, 6.9, 9.2)]
    start = min(grid, key=at)
    found = minimize_scalar(
        at, bounds=(start - 2.5, start + 2.5), method="bounded", options={"xatol": 1e-9, "maxiter": 80}
    )
    return math.exp(float(found.x)), math.exp(float(found.fun)) if found.fun < math.log(WORST) else math.inf


# ---- the difference itself


def _residual(case: _Case) -> Supposed:
    """The reference as ours times a factor, plus an offset: over all, or by channel."""
    y, ref = case.output(), case.ref
    if y.shape != ref.shape or not torch.isfinite(y).all() or not torch.isfinite(ref).all():
        return
    by_channel = y.dim() >= 2 and y.numel() >= 2 * y.shape[1]
    axes = [axis for axis in range(y.dim()) if axis != 1]
    if by_channel:
        shifts = (ref - y).mean(axes, keepdim=True)
        after = case.distance(y + shifts)
        if case.explains(after):
            yield _shift(case, shifts.reshape(-1)), after, ""
            moved = _moved(case, shifts.reshape(-1))
            for cause in _one_weight(case, y, moved[0]) if len(moved) == len(case.steps) == 1 else ():
                yield cause.what, cause.after, ""
            return
    factor = float((y * ref).sum() / (y * y).sum()) if y.any() else 0.0
    yield f"a constant factor: the reference is ours times {factor:.6g}", case.distance(y * factor), ""
    offset = float((ref - y).mean())
    yield f"a constant offset: the reference is ours plus {offset:.6g}", case.distance(y + offset), ""
    if by_channel:
        squares = (y * y).sum(axes, keepdim=True)
        factors = (y * ref).sum(axes, keepdim=True) / squares.clamp(min=1e-300)
        yield _factors(case, factors.reshape(-1), squares.reshape(-1)), case.distance(y * factors), ""


def _factors(case: _Case, factors: Tensor, squares: Tensor) -> str:
    """Factors by channel, where `squares` are the sums of squares of ours."""
    moved = _moved(case, (factors - 1) * (squares * len(squares) / case.ref.numel()).sqrt())
    if len(moved) == 1:
        factor = float(factors[moved[0]])
        return f"only channel {moved[0]} differs, by a factor of {factor:.6g}: a weight or scale of it"
    span = f"{float(factors.min()):.5g} to {float(factors.max()):.5g}"
    return f"a factor for each channel, {span}: a scale was ignored or is another"


def _moved(case: _Case, changes: Tensor) -> list[int]:
    """The channels whose change is more than noise."""
    least = max(1e-3 * float(changes.abs().max()), 4 * case.noise)
    moved: list[int] = (changes.abs() > least).nonzero().reshape(-1).tolist()
    return moved


def _shift(case: _Case, shifts: Tensor) -> str:
    """An offset by channel, as the bias that it is where the layer may have one."""
    largest = float(shifts.abs().max())
    moved = _moved(case, shifts)
    if not hasattr(case.module(case.step), "bias"):
        return f"an offset in {len(moved)} of {shifts.numel()} channels, up to {largest:.4g}"
    if len(moved) == 1:
        return f"the bias of channel {moved[0]} is off by {float(shifts[moved[0]]):.6g}"
    if case.no_bias:
        return f"a bias was dropped: the reference has one, up to {largest:.4g}"
    return f"the bias differs in {len(moved)} of {shifts.numel()} channels"


def _where(case: _Case) -> list[Cause]:
    """Nothing explains it: at least, where it lies."""
    try:
        y = case.output()
    except (RuntimeError, ValueError, IndexError):
        return []
    ref = case.ref
    if y.shape != ref.shape:
        return []
    for value, x in case.start.items():
        if not torch.isfinite(x).all() and not torch.equal(torch.isfinite(ref), torch.isfinite(y)):
            bad = int((~torch.isfinite(x)).sum())
            text = f"{value.blob!r}, which it reads, holds NaN or Inf at {bad:,} of {x.numel():,} places"
            return [Cause(text, case.before, case.before, "what comes of them is no layer's rule")]
    strange = ~torch.isfinite(ref) & torch.isfinite(y)
    if strange.any():
        first = tuple(strange.nonzero()[0].tolist())
        places = f"{int(strange.sum()):,} of {ref.numel():,} places, first at {first}"
        text = f"the reference holds NaN or Inf at {places}, where finite inputs give finite numbers"
        return [Cause(text, case.before, case.before, "the reference is damaged, or Caffe went wrong there")]
    wrong = (ref - y).abs() > case.limit * max(case.noise, case.noise_max, 1e-300)
    if not wrong.any():
        return []
    found = [*_short_weights(case)]
    if ref.dim() >= 2:
        channels = wrong.transpose(0, 1).reshape(ref.shape[1], -1).any(1).nonzero().reshape(-1).tolist()
        if len(channels) == 1 and len(case.steps) == 1:
            found += _one_weight(case, y, channels[0])
        if not found and ref.shape[1] > 1 and len(channels) <= max(1, ref.shape[1] // 20):
            found.append(
                Cause(
                    f"only channel {', '.join(map(str, channels[:6]))} of {ref.shape[1]} differs: a weight "
                    f"or bias of it",
                    case.before,
                    case.before,
                )
            )
    if not found and ref.dim() >= 2 and ref.numel() == ref.shape[1] and case.no_bias:
        text = "a bias was dropped, or its weights are others: one value of each channel does not tell which"
        found.append(Cause(text, case.before, case.before))
    if ref.dim() == 4 and min(ref.shape[2:]) > 2:
        plane = wrong.any(1).any(0)
        border = torch.ones_like(plane)
        border[1:-1, 1:-1] = False
        last = torch.zeros_like(plane)
        last[-1], last[:, -1] = True, True
        if not (plane & ~last).any():
            found.append(
                Cause(
                    "only the last row or column differs: how sizes are rounded, or what a cut window counts",
                    case.before,
                    case.before,
                )
            )
        elif not (plane & ~border).any():
            found.append(Cause("only the border differs: padding", case.before, case.before))
    return found


def _short_weights(case: _Case) -> Iterator[Cause]:
    """Weights that are all numbers of a shorter form: bits were lost before we got them, if the reference's are
    longer.
    """
    for step in case.steps:
        weight = getattr(case.module(step), "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2 or torch.unique(weight).numel() < PLAIN:
            continue
        if words := _fewer_bits(weight, weight):
            yield Cause(f"{step.key!r}: all its weights are rounded to {words} already", case.before, case.before)


def _one_weight(case: _Case, y: Tensor, channel: int) -> list[Cause]:
    """The weight of that output channel whose change explains the error best, if it does."""
    module, x = case.module(case.step), case._see(case.step.bottoms[0], case.start).double()
    error = (case.ref - y)[:, channel].reshape(-1)
    if isinstance(module, nn.Linear) and x.shape[0] >= 4:
        columns = x.reshape(x.shape[0], -1).t()
    elif isinstance(module, nn.Conv2d) and module.groups == 1:
        padding: Any = module.padding
        taps = nn.functional.unfold(x, module.kernel_size, module.dilation, padding, module.stride)  # (N, taps, places)
        columns = taps.transpose(0, 1).reshape(taps.shape[1], -1)
    else:
        return []
    energy = columns.square().sum(1)
    change = (columns @ error) / energy.clamp(min=1e-300)
    best = int((change.square() * energy).argmax())
    fitted = y.clone()
    fitted[:, channel] += (change[best] * columns[best]).reshape(fitted[:, channel].shape)
    after = case.distance(fitted)
    if not case.explains(after):
        return []
    at = (channel, *(int(i) for i in np.unravel_index(best, module.weight.shape[1:])))
    return [Cause(f"one value of its weights, at {at}, is off by {float(change[best]):.5g}", case.before, after)]
