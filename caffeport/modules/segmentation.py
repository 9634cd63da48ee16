"""Resizing, unpooling and normalisation of the segmentation nets."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .geometry import interp_size


class Interp(nn.Module):
    """Bilinear resizing with corners aligned, after a crop."""

    def __init__(
        self, size: tuple[int, int] | None, zoom: int | None, shrink: int | None, crop: tuple[int, int]
    ) -> None:
        """size: height and width; crop: pixels cut from the start and the end of both axes; None: not given."""
        super().__init__()
        self.size, self.zoom, self.shrink, self.crop = size, zoom, shrink, crop

    def extra_repr(self) -> str:
        return f"{self.size}, zoom={self.zoom}, shrink={self.shrink}, crop={self.crop}"

    def forward(self, x: Tensor) -> Tensor:
        start, end = self.crop
        x = x[:, :, start : x.shape[2] - end, start : x.shape[3] - end]
        sizes = [
            interp_size(i, s, self.zoom, self.shrink)
            for i, s in zip(x.shape[2:], self.size or (None, None), strict=True)
        ]
        return F.interpolate(x, sizes, mode="bilinear", align_corners=True)  # type: ignore[arg-type]


class CropCenter(nn.Module):
    """x without `sizes[axis]` values at both ends of each axis."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def extra_repr(self) -> str:
        return f"{self.sizes}"

    def forward(self, x: Tensor) -> Tensor:
        return x[tuple(slice(cut, size - cut) for cut, size in zip(self.sizes, x.shape, strict=True))]


def placed(x: Tensor, index: Tensor, height: int, width: int) -> Tensor:
    """Zeros (N, C, height, width) with each value of x at its index into the plane; where two meet, the later stays."""
    x, index = x.flatten(2), index.flatten(2)
    plane = x.new_zeros(*x.shape[:2], height * width)
    if x.is_cuda:  # writes to one place race there, so only the last one writes
        order = torch.arange(x.shape[2], device=x.device).expand_as(index)
        last = torch.zeros_like(plane, dtype=torch.long).scatter_reduce(2, index, order, "amax", include_self=False)
        x = torch.where(last.gather(2, index) == order, x, 0.0)
        return plane.scatter_add_(2, index, x).reshape(*x.shape[:2], height, width)
    return plane.scatter_(2, index, x).reshape(*x.shape[:2], height, width)


class MaskUpsample(nn.Module):
    """Each value of x (N, C, h, w) at its place in the mask of that shape, zeros elsewhere: (N, C, H, W)."""

    def __init__(
        self, size: tuple[int, int] | None, scale: tuple[int, int] = (1, 1), less: tuple[int, int] = (0, 0)
    ) -> None:
        """size: height and width of the top; None: `scale` times the bottom's, `less` these pixels."""
        super().__init__()
        self.size, self.scale, self.less = size, scale, less

    def extra_repr(self) -> str:
        return f"{self.size}" if self.size else f"scale={self.scale}, less={self.less}"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        height, width = self.size or (i * s - c for i, s, c in zip(x.shape[2:], self.scale, self.less, strict=True))
        return placed(x, mask.long(), height, width)


class CornerUnpool(nn.Module):
    """Each value at the first cell of its window: (N, C, h, w) to (N, C, H, W), zeros elsewhere."""

    def __init__(self, size: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def extra_repr(self) -> str:
        return f"{self.size}, stride={self.stride}"

    def forward(self, x: Tensor) -> Tensor:
        row, column = (
            (torch.arange(i, device=x.device) * s).clamp(max=n - 1)
            for i, s, n in zip(x.shape[2:], self.stride, self.size, strict=True)
        )
        index = row[:, None] * self.size[1] + column
        return placed(x, index.expand_as(x), *self.size)


class WindowUnpool(nn.Module):
    """Each value, or its share in the window (`average`), added over the whole window; windows are cut to the top."""

    def __init__(self, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], average: bool) -> None:
        super().__init__()
        self.size, self.kernel, self.stride, self.average = size, kernel, stride, average

    def extra_repr(self) -> str:
        return f"{self.size}, kernel={self.kernel}, stride={self.stride}, average={self.average}"

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.average:
            for axis, (i, k, s, size) in enumerate(zip((h, w), self.kernel, self.stride, self.size, strict=True)):
                extent = (size - torch.arange(i, device=x.device) * s).clamp(1, k)
                x = x / extent.to(x.dtype).reshape(-1, *(1,) * (1 - axis))
        spread = F.conv_transpose2d(x.reshape(n * c, 1, h, w), x.new_ones(1, 1, *self.kernel), stride=self.stride)
        spread = spread[:, :, : self.size[0], : self.size[1]]
        beyond = (0, self.size[1] - spread.shape[3], 0, self.size[0] - spread.shape[2])
        return F.pad(spread, beyond).reshape(n, c, *self.size)


class BatchBN(nn.Module):
    """(x - mean) / sqrt(variance + 1e-9) * weight + bias with the batch's statistics; gives mean and variance too."""

    def __init__(self, channels: int, tops: int) -> None:
        """tops: how many of the three are wanted."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.tops = tops

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, tops={self.tops}"

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        axes, after = [axis for axis in range(x.dim()) if axis != 1], (1,) * (x.dim() - 2)
        mean = x.mean(axes, keepdim=True)
        variance = (x * x).mean(axes, keepdim=True) - mean * mean
        scale = self.weight.reshape(-1, *after) / (variance + 1e-9).sqrt()
        y = torch.addcmul(self.bias.reshape(-1, *after), x - mean, scale)
        return y if self.tops == 1 else (y, mean, variance)[: self.tops]
