"""How much noise a value may be given at least, whatever c32 happens to show."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..graph import Step, Value
from ..layers import Shape
from .judge import HALF_STEP

FEW = 64  # values that are no sample of the noise
DRAWS = 8  # of the noise of such values' bottoms


def least_noise(step: Step, shapes: Mapping[Value, Shape]) -> float:
    """As a share of a value's rms: serial sums err with the root of their length."""
    terms: int = step.layer.serial_terms([shapes[o.like or o.value] for o in step.bottoms])
    return float(max(HALF_STEP * terms**0.5 / 4, HALF_STEP))


def relative_noise(y64: Tensor, c32: Tensor) -> float:
    """rms(c32 - y64) / rms(y64); 0 where that is no number."""
    y64, c32 = (x.double().reshape(-1) for x in (y64, c32))
    scale = float(y64.dot(y64))
    error = float((c32 - y64).dot(c32 - y64))
    return math.sqrt(error / scale) if scale and error < math.inf else 0.0


def brought(
    run: Callable[[list[Tensor]], Tensor], bottoms: Sequence[Tensor], noise: Sequence[float], y64: Tensor
) -> float:
    """How far a value moves, as a share of its rms, when the bottoms move by their own noise: drawn DRAWS times with a
    fixed seed. What arithmetic did in the layer itself is not in it.

    A few values are no sample: c32 may come close to y64 by luck (a loss is one number), so this counts at least.

    run  gives the value for other bottoms, all in float64
    """
    # A whole number (a label, an index) is exact.
    spread = [n * _rms(x) if not torch.equal(x, x.round()) else 0.0 for n, x in zip(noise, bottoms, strict=True)]
    scale = _rms(y64)
    if not any(spread) or not scale or not math.isfinite(scale + sum(spread)):
        return 0.0
    random = torch.Generator().manual_seed(0)
    moved = 0.0
    for _ in range(DRAWS):
        found = run(
            [
                x + sd * torch.randn(x.shape, generator=random, dtype=x.dtype) if sd else x
                for x, sd in zip(bottoms, spread, strict=True)
            ]
        )
        if found.shape == y64.shape:
            moved += _rms(found - y64) ** 2
    share = math.sqrt(moved / DRAWS) / scale
    return share if math.isfinite(share) else 0.0


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / math.sqrt(max(x.numel(), 1))
