"""What is probably wrong with the first layer that fails: suppositions, each tried, named when it explains the error.

A supposition is a changed layer, input or output. It is run in float64 and put beside the reference: it explains the
error when the ratio falls below the limit. Where none does, those are named that take the ratio down to a fiftieth.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import Step, Value
from ..network import Network
from .arithmetic import Arithmetic
from .case import SLIGHT, Case, Supposed
from .difference import residual, short_weights, where
from .reference import Reference, Stored
from .report import Cause, LayerResult, Report
from .variants import changed_layers, fewer_bits, rearranged
from .weights import file_arrays, from_file
from .whole import Values

WORST = 1e30  # a ratio, for a search that wants finite ones
CERTAIN = 2.0  # a ratio at which a long segment is not searched any further

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
            return _causes(Case(network, source, stored, fed, failing, report.limits.rms, tested))
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
    before = [r for r in report.layers[: report.layers.index(row)] if r.judgement and not r.judgement.bound]
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


def _causes(case: Case) -> list[Cause]:
    found: list[Cause] = []
    for step in case.steps:
        found += _wrong_weights(case.network, step.key, case.before, case.ratio)
    if any(case.explains(cause.after) for cause in found):
        return found
    for supposed in (_inputs, changed_layers, _fitted, residual):
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
    if found and supposed is residual:  # which tells what differs, not why
        return [*found[:3], *short_weights(case)][:4]
    return (found or where(case))[:4]


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
    words = fewer_bits(held, own)
    if words:
        return f"rounded to {words}"
    for what, changed in rearranged(own, group):
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


# ---- the input


def _inputs(case: Case) -> Supposed:
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


def _affine_input(case: Case, value: Value, x: Tensor) -> tuple[str, float, str]:
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


# ---- one number fitted


def _fitted(case: Case) -> Supposed:
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


def _best(case: Case, step: Step, attributes: Callable[[float], dict[str, Any]], held: float) -> tuple[float, float]:
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
