"""Layers in float32 as Caffe computes them, where that errs more than torch: in its order of summation, by its formula.

How much more depends on the data, so it is measured. On a map of one value all rounding errors of a serial sum point
the same way; LRN's running sum keeps what it lost on large channels when small ones follow; exp(x) - 1 loses small x.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import Step
from ..modules.normalization import MVN, InPlaceLRN
from ..modules.pooling import padded

FEW = 16  # terms whose serial sum errs by no more than what passes anyway
LANES = 8  # partial sums that the BLAS under Caffe keeps


def as_caffe(step: Step, own: nn.Module) -> nn.Module | None:
    """A module that stands in for the layer's own on the CPU; None where that errs as Caffe does."""
    if isinstance(own, nn.LocalResponseNorm):
        return _RunningLRN(own)
    if isinstance(own, MVN):
        return _SerialMVN(own.variance, own.across_channels, own.eps)
    if isinstance(own, nn.ELU):
        return _PlainELU(own.alpha)
    if isinstance(own, nn.Softplus):
        return _PlainBNLL()
    if step.layer.spec.type == "Pooling" and step.layer.serial_terms([step.bottoms[0].value.shape]) != 1:
        return _SerialAverage(step, own)
    return None


class _RunningLRN(nn.Module):
    """LRN across channels: the energy of each window is the one before it, plus a channel and minus another."""

    def __init__(self, own: nn.LocalResponseNorm) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        own, channels = self.own, x.shape[1]
        half = min(own.size // 2, channels)
        size = 2 * half + 1
        square = np.zeros((channels + 2 * half, x.shape[0], *x.shape[2:]), np.float32)
        square[half : half + channels] = (x * x * (own.alpha / own.size)).transpose(0, 1).numpy()
        terms = np.empty((1 + size + 2 * (channels - 1), *square.shape[1:]), np.float32)
        terms[0], terms[1 : 1 + size] = own.k, square[:size]
        terms[1 + size :: 2], terms[2 + size :: 2] = square[size:], -square[: channels - 1]
        base = torch.from_numpy(np.add.accumulate(terms)[size::2]).transpose(0, 1)
        return base.pow(-2 * own.beta) if isinstance(own, InPlaceLRN) else x * base.pow(-own.beta)


class _SerialMVN(MVN):
    """Mean and variance as dot products with ones."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape, *(1,) * (4 - x.dim()))
        rows = x.reshape(shape[0] if self.across_channels else shape[0] * shape[1], -1)
        d = rows - _mean(rows)
        return (d / (_mean(d * d).sqrt() + self.eps) if self.variance else d).reshape(shape)


def _mean(rows: Tensor) -> Tensor:
    """The mean of each row, in LANES partial sums."""
    n = rows.shape[1]
    lanes = nn.functional.pad(rows, (0, -n % LANES)).reshape(rows.shape[0], -1, LANES).numpy()
    return torch.from_numpy(np.add.accumulate(lanes, axis=1)[:, -1].sum(1, keepdims=True)) / n


class _SerialAverage(nn.Module):
    """Average pooling, each window added up row by row."""

    def __init__(self, step: Step, own: nn.Module) -> None:
        super().__init__()
        self.step, self.own = step, own

    def forward(self, x: Tensor) -> Tensor:
        layer, sizes = self.step.layer, x.shape[2:]
        kernel, stride, pad = layer.window(len(sizes))  # type: ignore[attr-defined]
        kernel, stride, pad = (kernel, stride, pad) if kernel else (sizes, sizes, (0,) * len(sizes))
        y: Tensor = self.own(x)
        if math.prod(kernel) <= FEW:
            return y
        wide, counts = padded(x, kernel, stride, pad, layer.floor, 0.0)  # type: ignore[attr-defined]
        if list(y.shape[2:]) != counts:
            return y
        numbers = wide.numpy()
        serial, exact = np.zeros(y.shape, np.float32), np.zeros(y.shape)
        for offsets in itertools.product(*map(range, kernel)):
            places = (slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(offsets, counts, stride, strict=True))
            window = numbers[(slice(None), slice(None), *places)]
            serial += window
            exact += window
        y64: Tensor = self.own(x.double())
        return (y64 + torch.from_numpy(serial - exact) / math.prod(kernel)).float()


class _PlainELU(nn.Module):
    """exp(x) - 1 below 0."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0) + self.alpha * (x.clamp(max=0).exp() - 1)


class _PlainBNLL(nn.Module):
    """log(1 + exp(x))."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0) + (1 + (-x.abs()).exp()).log()
