"""Suppositions about a layer: that its text is read otherwise, or that its weights lie otherwise or have fewer bits."""

import itertools
import math
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..graph import Step
from .arithmetic import rounded, weights_rounded
from .case import Case, Supposed

if TYPE_CHECKING:
    from ..modules.pooling import Pool

NAMES = {"tf32": "TF32's 10 bits", "fp16": "fp16", "bf16": "bf16"}

Variants = Iterator[tuple[str, nn.Module]]


def fewer_bits(held: Tensor, own: Tensor) -> str:
    """Which shorter form `held` is of `own`, or "": fp16 and TF32 cannot be told apart where no number is tiny."""
    forms = [form for form in NAMES if torch.equal(held, rounded(own, form))]
    return "10 bits, as fp16 and TF32 have" if forms == ["tf32", "fp16"] else NAMES[forms[-1]] if forms else ""


def rearranged(w: Tensor, group: int) -> Iterator[tuple[str, Tensor]]:
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


def _other_settings(case: Case, step: Step) -> Variants:
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


def _other_eps(case: Case, step: Step) -> Variants:
    module = case.module(step)
    if step.layer.spec.type == "BatchNorm" and hasattr(module, "eps"):
        for eps in (1e-3, 1e-5, 2e-5, 1e-4, 1e-6, 1e-9, 1e-10):
            if not math.isclose(eps, module.eps, rel_tol=1e-3):
                yield f"eps {eps:g} for {module.eps:.3g}", _changed(module, eps=eps)


def _other_weights(case: Case, step: Step) -> Variants:
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
        for what, w in rearranged(weight.detach(), int(getattr(module, "groups", 1))):
            yield f"its weights are {what}", _changed(module, weight=w.contiguous())
        yield from _flattened(case, step, weight.detach())
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor) and bias.any():
        yield "the reference has no bias here", _changed(module, bias=torch.zeros_like(bias))


def _flattened(case: Case, step: Step, weight: Tensor) -> Variants:
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


def changed_layers(case: Case) -> Supposed:
    """Each layer in each other way; those of which there are few come first, since a long segment may take too long."""
    name = len(case.steps) > 1
    for variants in (_other_settings, _other_eps, _other_weights):
        for step in reversed(case.steps):
            for what, module in variants(case, step):
                yield (f"{step.key!r}: {what}" if name else what), case.ratio({step.key: module}), ""
                if not case.in_time:
                    return
