"""Moving, cutting, joining and counting values."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from .geometry import reshaped


class InsertAxis(nn.Module):
    """A view with one more axis of size 1."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(self.axis)


class Reshape(nn.Module):
    """The axes from `axis` on (`num_axes` of them, -1: all) replaced by `dims`.

    0 copies an axis, -1 is what is left.
    """

    def __init__(self, dims: tuple[int, ...], axis: int = 0, num_axes: int = -1) -> None:
        super().__init__()
        self.dims, self.axis, self.num_axes = dims, axis, num_axes

    def extra_repr(self) -> str:
        return f"{self.dims}, axis={self.axis}, num_axes={self.num_axes}"

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(reshaped(tuple(x.shape), self.dims, self.axis, self.num_axes))  # type: ignore[arg-type]


class Split(nn.Module):
    """The same tensor several times."""

    def __init__(self, tops: int) -> None:
        super().__init__()
        self.tops = tops

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return (x,) * self.tops if self.tops > 1 else x


class Concat(nn.Module):
    """Inputs one after another along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def extra_repr(self) -> str:
        return f"axis={self.axis}"

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, self.axis) if len(xs) > 1 else xs[0]


class Slice(nn.Module):
    """Parts along an axis, cut at `points`, or equal parts."""

    def __init__(self, axis: int, points: tuple[int, ...], parts: int) -> None:
        super().__init__()
        self.axis, self.points, self.parts = axis, points, parts

    def extra_repr(self) -> str:
        return f"axis={self.axis}, " + (f"points={self.points}" if self.points else f"parts={self.parts}")

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.parts == 1:
            return x
        if not self.points:
            return torch.split(x, x.shape[self.axis] // self.parts, self.axis)
        edges = (0, *self.points, x.shape[self.axis])
        return torch.split(x, [b - a for a, b in pairwise(edges)], self.axis)


class Crop(nn.Module):
    """x cut to the second input's size from `axis` on, beginning at the offsets."""

    def __init__(self, axis: int, offsets: tuple[int, ...]) -> None:
        super().__init__()
        self.axis, self.offsets = axis, offsets

    def extra_repr(self) -> str:
        return f"axis={self.axis}, offsets={self.offsets}"

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        for i, offset in enumerate(self.offsets, self.axis):
            x = x.narrow(i, offset, reference.shape[i])
        return x


class Tile(nn.Module):
    """The whole repeated along an axis."""

    def __init__(self, axis: int, tiles: int) -> None:
        super().__init__()
        self.axis, self.tiles = axis, tiles

    def extra_repr(self) -> str:
        return f"axis={self.axis}, tiles={self.tiles}"

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.tiles, self.axis)


class Permute(nn.Module):
    """Axes in another order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order

    def extra_repr(self) -> str:
        return f"{self.order}"

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class Reduction(nn.Module):
    """Sum, mean, sum of magnitudes or of squares of all axes from `axis` on, times a coefficient."""

    def __init__(self, kind: str, axis: int, coeff: float) -> None:
        super().__init__()
        self.kind, self.axis, self.coeff = kind, axis, coeff

    def extra_repr(self) -> str:
        return f"{self.kind}, axis={self.axis}, coeff={self.coeff:g}"

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "asum":
            x = x.abs()
        elif self.kind == "sumsq":
            x = x * x
        x = x.flatten(self.axis)
        y = x.mean(-1) if self.kind == "mean" else x.sum(-1)
        return y if self.coeff == 1 else y * self.coeff


class ArgMax(nn.Module):
    """Indices of the k largest values as floats, of equal ones the last first.

    Over an axis, or over all but the batch.
    """

    def __init__(self, k: int, values: bool, axis: int | None) -> None:
        super().__init__()
        self.k, self.values, self.axis = k, values, axis

    def extra_repr(self) -> str:
        return f"k={self.k}, values={self.values}, axis={self.axis}"

    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if self.axis is None else self.axis
        y = x.flatten(1) if self.axis is None and x.dim() > 1 else x.reshape(x.shape[0], -1) if self.axis is None else x
        reverse = y.flip(axis)
        if self.k == 1:
            index = reverse.argmax(axis, keepdim=True)  # the first of equal values, by its documentation
        else:
            index = reverse.argsort(dim=axis, descending=True, stable=True).narrow(axis, 0, self.k)
        largest = reverse.gather(axis, index)
        found = (y.shape[axis] - 1 - index).to(x.dtype)
        if self.axis is not None:
            return largest if self.values else found
        rows = torch.stack([found, largest], 1) if self.values else found.unsqueeze(1)
        return rows.reshape(*rows.shape, *(1,) * (max(x.dim(), 3) - 3))


class BatchReindex(nn.Module):
    """Items of the batch picked by index."""

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(0, index.long())


class Filter(nn.Module):
    """Items of the batch whose selector, the last input, is not 0."""

    def forward(self, *xs: Tensor) -> Tensor | tuple[Tensor, ...]:
        *data, selector = xs
        keep = selector.reshape(-1) != 0
        kept = tuple(x[keep] for x in data)
        return kept if len(kept) > 1 else kept[0]


class Silence(nn.Module):
    """Takes anything, gives nothing."""

    def forward(self, *xs: Tensor) -> tuple[Tensor, ...]:
        return ()


class Parameter(nn.Module):
    """A learned array."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}"

    def forward(self) -> Tensor:
        return self.weight
