"""Layers of the mobile nets, SENet and the sequence forks."""

import torch
from torch import Tensor, nn


class LeakyReLU6(nn.Module):
    """min(max(x, 0) + slope * min(x, 0), 6)."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def extra_repr(self) -> str:
        return f"{self.slope:g}"

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(x, self.slope).clamp(max=6)


class Axpy(nn.Module):
    """a * x + y, where a holds one number for each channel of each item."""

    def forward(self, a: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(y, a.reshape(*x.shape[:2], *(1,) * (x.dim() - 2)), x)


class GRN(nn.Module):
    """x / sqrt(sum of x^2 over the channels + bias)."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = bias

    def extra_repr(self) -> str:
        return f"{self.bias:g}"

    def forward(self, x: Tensor) -> Tensor:
        return x * (x * x).sum(1, keepdim=True).add(self.bias).rsqrt()


class Reverse(nn.Module):
    """x backwards along one axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def extra_repr(self) -> str:
        return f"{self.axis}"

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(self.axis)
