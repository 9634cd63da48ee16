"""Convolutions whose shapes torch.nn.ConvNd refuses, and windows as columns."""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Sizes = tuple[int, ...]


def folded(x: Tensor, axis: int) -> tuple[Tensor, tuple[int, ...]]:
    """x with all axes before `axis` as one batch axis, and those axes' sizes."""
    batch = tuple(x.shape[:axis])
    return x.reshape(prod(batch), *x.shape[axis:]), batch


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, pad: Sizes, dilation: Sizes, group: int
) -> Tensor:
    """N-D cross-correlation, x (N, C, spatial..). A window that starts inside the padded input may hang over its end.

    A dilation of 0 makes every tap read the same place, as in Caffe.
    """
    rank = x.dim() - 2
    if rank == 0:
        n, groups = x.shape[0], weight.reshape(group, -1, weight.shape[1])
        y = torch.einsum("ngc,goc->ngo", x.reshape(n, group, -1), groups).reshape(n, -1)
        return y if bias is None else y + bias
    if not all(dilation):
        for i, d in enumerate(dilation):
            weight = weight if d else weight.sum(2 + i, keepdim=True)
        dilation = tuple(max(d, 1) for d in dilation)
    over = []
    for i in range(rank):
        extent = dilation[i] * (weight.shape[2 + i] - 1) + 1
        over.append(max(extent - x.shape[2 + i] - 2 * pad[i], 0))
    if any(over):
        sides = [(p, p + o) for p, o in zip(pad, over, strict=True)]
        x, pad = F.pad(x, [side for pair in reversed(sides) for side in pair]), (0,) * rank
    if rank <= 3:
        function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        return function(x, weight, bias, stride, pad, dilation, group)
    return conv_nd(x, weight, bias, stride, pad, dilation, group)


def conv_nd(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, pad: Sizes, dilation: Sizes, group: int
) -> Tensor:
    """Cross-correlation in more than 3 dimensions: a sum over the first axis' taps, each of one dimension less."""
    x = F.pad(x, (0, 0) * (x.dim() - 3) + (pad[0], pad[0]))
    windows = (x.shape[2] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    total: Tensor | None = None
    for tap in range(weight.shape[2]):
        start = tap * dilation[0]
        part = x[:, :, start : start + (windows - 1) * stride[0] + 1 : stride[0]]
        n = part.shape[0]
        flat = part.transpose(1, 2).reshape(n * windows, part.shape[1], *part.shape[3:])
        y = conv(flat, weight[:, :, tap], None, stride[1:], pad[1:], dilation[1:], group)
        total = y if total is None else total + y
    assert total is not None  # a kernel has at least one tap
    y = total.reshape(n, windows, *total.shape[1:]).transpose(1, 2)
    return y if bias is None else y + bias.reshape(-1, *(1,) * (y.dim() - 2))


def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, pad: Sizes, dilation: Sizes, group: int
) -> Tensor:
    """N-D transposed cross-correlation, x (N, C, spatial..)."""
    rank = x.dim() - 2
    if rank == 0:
        n, groups = x.shape[0], weight.reshape(group, -1, weight.shape[1])
        y = torch.einsum("ngc,gco->ngo", x.reshape(n, group, -1), groups).reshape(n, -1)
        return y if bias is None else y + bias
    if rank <= 3:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        return function(x, weight, bias, stride, pad, 0, group, dilation)
    # In more than 3 dimensions: a sum over the first axis' taps, each of one dimension less.
    n, size, kernel = x.shape[0], x.shape[2], weight.shape[2]
    flat = x.transpose(1, 2).reshape(n * size, x.shape[1], *x.shape[3:])
    extent = (size - 1) * stride[0] + dilation[0] * (kernel - 1) + 1
    total: Tensor | None = None
    for tap in range(kernel):
        y = conv_transpose(flat, weight[:, :, tap], None, stride[1:], pad[1:], dilation[1:], group)
        y = y.reshape(n, size, *y.shape[1:]).transpose(1, 2)
        total = y.new_zeros(n, y.shape[1], extent, *y.shape[3:]) if total is None else total
        start = tap * dilation[0]
        total[:, :, start : start + (size - 1) * stride[0] + 1 : stride[0]] += y
    assert total is not None  # a kernel has at least one tap
    y = total[:, :, pad[0] : extent - pad[0]]
    return y if bias is None else y + bias.reshape(-1, *(1,) * rank)


class _Conv(nn.Module):
    """Weights and geometry of a convolution over any axes."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        kernel: Sizes,
        stride: Sizes,
        pad: Sizes,
        dilation: Sizes,
        group: int,
        bias: bool,
        axis: int = 1,
    ) -> None:
        super().__init__()
        first = self._first(channels, outputs, group)
        self.weight = nn.Parameter(torch.empty(*first, *kernel))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.stride, self.padding, self.dilation, self.groups, self.axis = stride, pad, dilation, group, axis

    @staticmethod
    def _first(channels: int, outputs: int, group: int) -> tuple[int, int]:
        return outputs, channels // group

    def extra_repr(self) -> str:
        shape = tuple(self.weight.shape)
        window = f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
        return f"weight={shape}, {window}, groups={self.groups}, axis={self.axis}"

    def _one(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        flat, batch = folded(x, self.axis)
        y = self._one(flat)
        return y.reshape(*batch, *y.shape[1:])


class LooseConv(_Conv):
    """Convolution in any number of dimensions, over any batch axes, also where the kernel exceeds the padded input."""

    def _one(self, x: Tensor) -> Tensor:
        return conv(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class LooseConvTranspose(_Conv):
    """Transposed convolution over any batch axes."""

    @staticmethod
    def _first(channels: int, outputs: int, group: int) -> tuple[int, int]:
        return channels, outputs // group

    def _one(self, x: Tensor) -> Tensor:
        return conv_transpose(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Im2col(nn.Module):
    """Windows as columns: (N, C, spatial..) to (N, C * prod(kernel), windows..)."""

    def __init__(self, kernel: Sizes, stride: Sizes, pad: Sizes, dilation: Sizes, axis: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.dilation, self.axis = kernel, stride, pad, dilation, axis

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"

    def forward(self, x: Tensor) -> Tensor:
        x, batch = folded(x, self.axis)
        rank = x.dim() - 2
        extents = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        sides: list[int] = []
        for size, extent, p in zip(x.shape[2:], extents, self.padding, strict=True):
            sides = [p, p + max(extent - size - 2 * p, 0), *sides]  # one window may hang over the end
        x = F.pad(x, sides)
        for i, extent in enumerate(extents):
            # (.., size, ..) -> (.., windows, .., kernel): a view, whose taps lie `dilation` apart
            x = x.unfold(2 + i, extent, self.stride[i])[..., :: max(self.dilation[i], 1)]
            x = x if self.dilation[i] else x.expand(*x.shape[:-1], self.kernel[i])
        # (N, C, windows.., kernel..) -> (N, C, kernel.., windows..)
        x = x.permute(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
        columns = x.shape[1] * prod(self.kernel)
        x = x.reshape(x.shape[0], columns, *x.shape[2 + rank :])
        return x.reshape(*batch, *x.shape[1:])
