"""Elementwise functions with Caffe's parameters."""

import math

import torch
from torch import Tensor, nn


class _Elementwise(nn.Module):
    """Holds a few numbers and prints them."""

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={value:g}"
            for name, value in vars(self).items()
            if isinstance(value, int | float) and name != "training"
        )


class AbsVal(nn.Module):
    """|x|."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Swish(_Elementwise):
    """x * sigmoid(beta * x)."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


class Clip(_Elementwise):
    """x limited to low..high, NaN to low, as std::max and std::min have it."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.isnan(), self.low, x.clamp(self.low, self.high))


class Power(_Elementwise):
    """(shift + scale * x) ^ power; the same number everywhere, NaN or not, where power * scale is 0."""

    def __init__(self, power: float, scale: float, shift: float) -> None:
        super().__init__()
        self.power, self.scale, self.shift = power, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        if self.power * self.scale == 0:
            return torch.full_like(x, self.shift).pow(self.power)  # 0^-1 is Inf, a root of a negative number NaN
        if self.scale != 1:
            x = x * self.scale
        if self.shift != 0:
            x = x + self.shift
        return x if self.power == 1 else x.pow(self.power)


class Exp(_Elementwise):
    """base ^ (shift + scale * x); base -1 means e."""

    def __init__(self, base: float, scale: float, shift: float) -> None:
        super().__init__()
        self.base, self.scale, self.shift = base, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        log = 1.0 if self.base == -1 else math.log(self.base)
        y = (x * (log * self.scale)).exp()
        return y if self.shift == 0 else y * math.exp(log * self.shift)


class Log(_Elementwise):
    """Logarithm of (shift + scale * x) to `base`; base -1 means e."""

    def __init__(self, base: float, scale: float, shift: float) -> None:
        super().__init__()
        self.base, self.scale, self.shift = base, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        y = (x * self.scale + self.shift).log()
        return y if self.base == -1 else y * (1 / math.log(self.base))


class Threshold(_Elementwise):
    """1 where x > threshold, else 0."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.threshold).to(x.dtype)
