"""What the difference itself tells where no supposition explains it: a factor, an offset, a channel, a border."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .case import Case, Supposed
from .report import Cause
from .variants import fewer_bits

PLAIN = 16  # so few different weights are short by design, such as those of bilinear upsampling


def residual(case: Case) -> Supposed:
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


def _factors(case: Case, factors: Tensor, squares: Tensor) -> str:
    """Factors by channel, where `squares` are the sums of squares of ours."""
    moved = _moved(case, (factors - 1) * (squares * len(squares) / case.ref.numel()).sqrt())
    if len(moved) == 1:
        factor = float(factors[moved[0]])
        return f"only channel {moved[0]} differs, by a factor of {factor:.6g}: a weight or scale of it"
    span = f"{float(factors.min()):.5g} to {float(factors.max()):.5g}"
    return f"a factor for each channel, {span}: a scale was ignored or is another"


def _moved(case: Case, changes: Tensor) -> list[int]:
    """The channels whose change is more than noise."""
    least = max(1e-3 * float(changes.abs().max()), 4 * case.noise)
    moved: list[int] = (changes.abs() > least).nonzero().reshape(-1).tolist()
    return moved


def _shift(case: Case, shifts: Tensor) -> str:
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


def where(case: Case) -> list[Cause]:
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
    found = [*short_weights(case)]
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


def short_weights(case: Case) -> Iterator[Cause]:
    """Weights that are all numbers of a shorter form: bits were lost before we got them, if the reference's are
    longer.
    """
    for step in case.steps:
        weight = getattr(case.module(step), "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2 or torch.unique(weight).numel() < PLAIN:
            continue
        if words := fewer_bits(weight, weight):
            yield Cause(f"{step.key!r}: all its weights are rounded to {words} already", case.before, case.before)


def _one_weight(case: Case, y: Tensor, channel: int) -> list[Cause]:
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
