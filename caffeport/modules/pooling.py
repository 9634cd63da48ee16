"""Caffe's pooling where torch.nn has none: windows outside the image, wide padding, masks, pyramids."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .geometry import pooled_size, spp_window, torch_pools_alike

Sizes = tuple[int, ...]
LOWEST = -3.4028234663852886e38  # -FLT_MAX, where Caffe's maximum starts


def _lowest(x: Tensor) -> float:
    """-FLT_MAX, or -Inf where the type cannot hold it."""
    return LOWEST if x.dtype in (torch.float32, torch.float64) else float("-inf")


def padded(x: Tensor, kernel: Sizes, stride: Sizes, pad: Sizes, floor: bool, value: float) -> tuple[Tensor, list[int]]:
    """x padded so that all of Caffe's windows lie inside and no others do, and the number of windows of each axis."""
    axes = list(zip(x.shape[2:], kernel, stride, pad, strict=True))
    counts = [pooled_size(i, k, s, p, any(pad), floor) for i, k, s, p in axes]
    sides = []
    for (i, k, s, p), n in zip(axes, counts, strict=True):
        sides.append((p, (n - 1) * s + k - i - p))
    return F.pad(x, [side for pair in reversed(sides) for side in pair], value=value), counts


def max_pool(x: Tensor, kernel: Sizes, stride: Sizes, pad: Sizes, floor: bool = False) -> Tensor:
    """Largest value of each window; a window outside the image gives -FLT_MAX."""
    x, _ = padded(x, kernel, stride, pad, floor, _lowest(x))
    return (F.max_pool2d if len(kernel) == 2 else F.max_pool3d)(x, kernel, stride)


def average_pool(x: Tensor, kernel: Sizes, stride: Sizes, pad: Sizes, floor: bool = False) -> Tensor:
    """Sum of each window divided by its size, where padding counts and what lies beyond image + pad does not."""
    sizes = x.shape[2:]
    x, counts = padded(x, kernel, stride, pad, floor, 0.0)
    total = (F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d)(x, kernel, stride, divisor_override=1)
    for axis, (i, k, s, p, n) in enumerate(zip(sizes, kernel, stride, pad, counts, strict=True)):
        start = torch.arange(n, device=x.device) * s - p
        extent = (start + k).clamp(max=i + p) - start
        total = total / extent.to(x.dtype).reshape(-1, *(1,) * (len(kernel) - 1 - axis))
    return total


class Pool(nn.Module):
    """Caffe's pooling for every kernel, stride and pad."""

    def __init__(self, method: str, kernel: Sizes, stride: Sizes, pad: Sizes, floor: bool = False) -> None:
        super().__init__()
        self.method, self.kernel, self.stride, self.padding, self.floor = method, kernel, stride, pad, floor

    def extra_repr(self) -> str:
        window = f"kernel={self.kernel}, stride={self.stride}, padding={self.padding}"
        return f"{self.method}, {window}, ceil_mode={not self.floor}"

    def forward(self, x: Tensor) -> Tensor:
        function = max_pool if self.method == "max" else average_pool
        return function(x, self.kernel, self.stride, self.padding, self.floor)


class MaxPoolMask(nn.Module):
    """Largest value of each window and where it was found: row * width + column in the plane, as a float.

    -1 for an empty window.
    """

    def __init__(self, kernel: Sizes, stride: Sizes, pad: Sizes, floor: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.floor = kernel, stride, pad, floor

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}, padding={self.padding}, ceil_mode={not self.floor}"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if torch_pools_alike(self.kernel, self.stride, self.padding):
            window = (self.kernel, self.stride, self.padding)
            largest, index = F.max_pool2d(x, *window, ceil_mode=not self.floor, return_indices=True)
            return largest, index.to(x.dtype)
        height, width = x.shape[2:]
        y, _ = padded(x, self.kernel, self.stride, self.padding, self.floor, _lowest(x))
        largest, index = F.max_pool2d(y, self.kernel, self.stride, return_indices=True)
        row = index.div(y.shape[3], rounding_mode="floor") - self.padding[0]
        column = index % y.shape[3] - self.padding[1]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (largest > LOWEST)
        return largest, torch.where(inside, row * width + column, -1).to(x.dtype)


class GlobalMaxPool(nn.Module):
    """Largest value of each plane and its index."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        largest, index = x.flatten(2).max(2)
        return largest[..., None, None], index[..., None, None].to(x.dtype)


class SpatialPyramid(nn.Module):
    """Bins of 1, 2 x 2, 4 x 4, ... over the map, side by side: (N, C, H, W) to (N, C * (4^height - 1) / 3)."""

    def __init__(self, method: str, height: int) -> None:
        super().__init__()
        self.method, self.height = method, height

    def extra_repr(self) -> str:
        return f"{self.method}, height={self.height}"

    def forward(self, x: Tensor) -> Tensor:
        function = max_pool if self.method == "max" else average_pool
        levels = []
        for level in range(self.height):
            bins = 2**level
            kernel, pad = zip(*(spp_window(size, bins) for size in x.shape[2:]), strict=True)
            levels.append(function(x, kernel, kernel, pad))
        return levels[0] if self.height == 1 else torch.cat([level.flatten(1) for level in levels], 1)
