"""Layers that move, cut, join or count values."""

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from ..errors import ShapeError
from .base import BOOL, FLOAT, INT64, Blob, Layer, Quirk, Shape, Size, compatible, count, merged, register, text

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue
    from ..export.source import SourceWriter


class _View(Layer):
    """A layer whose top is the bottom's memory under another shape."""

    in_place = False
    moves = True

    def shares_memory(self, bottoms: list[Shape]) -> bool:
        return True


@register("Flatten")
class Flatten(_View):
    """Several axes as one.

    Shapes   bottom (a.., b.., c..) -> top (a.., prod(b), c..)
    Params   axis 1, end_axis -1 (inclusive)
    PyTorch  torch.flatten, equal; shares memory, so a later in-place layer changes the bottom too. ONNX: Flatten or
             Reshape.
    Source   BVLC Caffe 1.0, src/caffe/layers/flatten_layer.cpp
    """

    param_field = "flatten_param"

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape = bottoms[0]
        start, end = self.axis(self.param.axis, shape), self.axis(self.param.end_axis, shape) + 1
        if end < start:
            raise ShapeError(
                f"{self}: end_axis {self.param.end_axis} lies before axis {self.param.axis} of {text(shape)}"
            )
        return [(*shape[:start], count(shape[start:end]), *shape[end:])]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        from ..modules.shape import InsertAxis

        start, end = self.axis(self.param.axis, bottoms[0]), self.axis(self.param.end_axis, bottoms[0])
        return nn.Flatten(start, end) if end >= start else InsertAxis(start)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,) = bottoms
        rank = len(x.shape)
        start, end = self.axis(self.param.axis, x.shape), self.axis(self.param.end_axis, x.shape)
        if end < start:
            return [graph.call("Unsqueeze", x, graph.axes(start))]
        if start == 1 and end == rank - 1:
            return [graph.call("Flatten", x, axis=1)]
        if end == rank - 1:
            return [graph.reshape(x, [*x.shape[:start], None], copied=range(start))]
        return [graph.view(x, [*range(start), -1, *range(end + 1, rank)])]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        x, shape = bottoms[0], writer.step.bottoms[0].shape
        start, end = self.axis(self.param.axis, shape), self.axis(self.param.end_axis, shape)
        if end < start:
            return [f"{x}.unsqueeze({start})"]
        return [f"{x}.flatten({start})" if end == len(shape) - 1 else f"{x}.flatten({start}, {end})"]


@register("Reshape")
class Reshape(_View):
    """The same values under another shape.

    Shapes   bottom -> top of the same number of values; dims axis .. axis + num_axes are replaced by `shape`
    Params   shape: 0 copies the bottom's dim at that place, one -1 is inferred; axis 0; num_axes -1 (to the end)
    Raises   ShapeError: the counts differ, two -1, a 0 beyond the bottom's axes
    PyTorch  torch.reshape, equal; shares memory. ONNX: Reshape.
    Source   BVLC Caffe 1.0, src/caffe/layers/reshape_layer.cpp
    """

    param_field = "reshape_param"

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        from ..modules.geometry import reshaped

        dims, axis, num_axes = tuple(self.param.shape.dim), self.param.axis, self.param.num_axes
        if sum(d == -1 for d in dims) > 1 or any(d < -1 for d in dims):
            raise ShapeError(f"{self}: shape {dims} has more than one -1 or a dimension below it")
        try:
            return [reshaped(bottoms[0], dims, axis, num_axes)]
        except ValueError as error:
            raise ShapeError(f"{self}: {error}") from None

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Reshape as Module

        return Module(tuple(self.param.shape.dim), self.param.axis, self.param.num_axes)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,) = bottoms
        dims, axis = self.param.shape.dim, self.param.axis
        start = axis if axis >= 0 else len(x.shape) + axis + 1
        end = len(x.shape) if self.param.num_axes == -1 else start + self.param.num_axes
        middle = [start + i if dim == 0 else -1 if dim == -1 else Size(dim) for i, dim in enumerate(dims)]
        return [graph.view(x, [*range(start), *middle, *range(end, len(x.shape))])]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        x, rank = bottoms[0], len(writer.step.bottoms[0].shape)
        dims, axis = self.param.shape.dim, self.param.axis
        start = axis if axis >= 0 else rank + axis + 1
        end = rank if self.param.num_axes == -1 else start + self.param.num_axes
        middle = [f"{x}.shape[{start + i}]" if dim == 0 else str(dim) for i, dim in enumerate(dims)]
        kept = [f"{x}.shape[{i}]" for i in range(rank)]
        return [f"{x}.reshape({', '.join([*kept[:start], *middle, *kept[end:]]) or '()'})"]


@register("Split")
class Split(_View):
    """Several names for one blob.

    Shapes   bottom -> any number of tops, same
    PyTorch  the same tensor; all tops share memory, so an in-place layer on one changes all. ONNX: nothing.
    Source   BVLC Caffe 1.0, src/caffe/layers/split_layer.cpp
    """

    top_count = (1, None)
    passes_on = True

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Split as Module

        return Module(len(self.spec.top))

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return bottoms * len(self.spec.top)

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        return bottoms * len(self.spec.top)


@register("Concat")
class Concat(Layer):
    """Bottoms one after another along an axis.

    Shapes   bottoms, equal but for one axis -> top, that axis summed
    Params   axis 1 (or the old concat_dim)
    Raises   ShapeError: other dims differ, both axis and concat_dim
    PyTorch  torch.cat, equal; with one bottom it shares memory. ONNX: Concat.
    Source   BVLC Caffe 1.0, src/caffe/layers/concat_layer.cpp
    """

    param_field = "concat_param"
    bottom_count = (1, None)
    in_place = False
    moves = True

    def joined(self, shape: Shape) -> int:
        if self.param.HasField("concat_dim"):
            if self.param.HasField("axis"):
                raise ShapeError(f"{self}: give either axis or concat_dim")
            return self.axis(self.param.concat_dim, shape)
        return self.axis(self.param.axis, shape)

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        first = bottoms[0]
        axis = self.joined(first)
        shape = list(first)
        for name, other in zip(self.spec.bottom, bottoms, strict=True):
            if len(other) != len(first) or not compatible(
                (*first[:axis], *first[axis + 1 :]), (*other[:axis], *other[axis + 1 :])
            ):
                raise ShapeError(
                    f"{self}: bottoms must agree but for axis {axis}; {self.spec.bottom[0]!r} is {text(first)}, "
                    f"{name!r} is {text(other)}"
                )
            shape = list(merged((*shape[:axis], None, *shape[axis + 1 :]), (*other[:axis], None, *other[axis + 1 :])))
        sizes = [bottom[axis] for bottom in bottoms]
        shape[axis] = None if None in sizes else sum(n for n in sizes if n is not None)
        return [tuple(shape)]

    def shares_memory(self, bottoms: list[Shape]) -> bool:
        return len(bottoms) == 1

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Concat as Module

        return Module(self.joined(bottoms[0]))

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return [graph.call("Concat", *bottoms, axis=self.joined(bottoms[0].shape))] if len(bottoms) > 1 else bottoms

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        if len(bottoms) == 1:
            return bottoms
        return [f"torch.cat(({', '.join(bottoms)}), {self.joined(writer.step.bottoms[0].shape)})"]


@register("Slice")
class Slice(Layer):
    """One bottom cut along an axis.

    Shapes   bottom -> tops whose sizes along the axis add up to the bottom's
    Params   axis 1 (or the old slice_dim); slice_point: where to cut; none: equal parts
    Raises   ShapeError: points not rising, wrong number of points, parts not equal
    PyTorch  torch.split, equal; with one top it shares memory. ONNX: Split.
    Source   BVLC Caffe 1.0, src/caffe/layers/slice_layer.cpp
    """

    param_field = "slice_param"
    top_count = (1, None)
    in_place = False
    moves = True

    def cut(self, shape: Shape) -> int:
        if self.param.HasField("slice_dim"):
            if self.param.HasField("axis"):
                raise ShapeError(f"{self}: give either axis or slice_dim")
            return self.axis(self.param.slice_dim, shape)
        return self.axis(self.param.axis, shape)

    def sizes(self, size: int | None) -> list[int | None]:
        points, parts = list(self.param.slice_point), len(self.spec.top)
        if not points:
            if size is not None and size % parts:
                raise ShapeError(f"{self}: {size} values along the axis do not divide into {parts} tops")
            return [None if size is None else size // parts] * parts
        if len(points) != parts - 1:
            raise ShapeError(f"{self}: {parts} tops need {parts - 1} slice points, not {len(points)}")
        edges = [0, *points]
        if any(b <= a for a, b in pairwise(edges)) or (size is not None and points[-1] >= size):
            raise ShapeError(f"{self}: slice points {points} must rise from above 0 to below {size}")
        inner: list[int | None] = [b - a for a, b in zip(edges, points, strict=False)]
        return [*inner, None if size is None else size - points[-1]]

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape = bottoms[0]
        axis = self.cut(shape)
        return [(*shape[:axis], n, *shape[axis + 1 :]) for n in self.sizes(shape[axis])]

    def shares_memory(self, bottoms: list[Shape]) -> bool:
        return len(self.spec.top) == 1

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Slice as Module

        return Module(self.cut(bottoms[0]), tuple(self.param.slice_point), len(self.spec.top))

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), parts = bottoms, len(self.spec.top)
        axis = self.cut(x.shape)
        if parts == 1:
            return bottoms
        sizes = self.sizes(x.shape[axis])
        if None not in sizes:
            return graph.node("Split", [x, graph.axes(*sizes)], parts, axis=axis)  # type: ignore[arg-type]
        if self.param.slice_point:
            edges = [0, *self.param.slice_point, 2**31]
            pairs = [(graph.axes(a), graph.axes(b)) for a, b in pairwise(edges)]
            return [graph.call("Slice", x, start, end, graph.axes(axis)) for start, end in pairs]
        return graph.node("Split", [x], parts, axis=axis, num_outputs=parts)


@register("Crop")
class Crop(Layer):
    """The first bottom cut to the second's size, from an offset.

    Shapes   bottom (d..), reference (r..) -> top (d[:axis].., r[axis:]..)
    Params   axis 2; offset 0: one for all cropped axes or one for each (pixels)
    Raises   ShapeError: offset + size exceeds the bottom, wrong number of offsets
    PyTorch  slicing, equal. ONNX: Slice with the reference's Shape.
    Source   BVLC Caffe 1.0, src/caffe/layers/crop_layer.cpp
    """

    param_field = "crop_param"
    bottom_count = (2, 2)
    in_place = False
    moves = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape, reference = bottoms
        axis = self.axis(self.param.axis, shape)
        offsets = self.offsets(len(shape) - axis)
        if len(reference) < len(shape):
            raise ShapeError(f"{self}: reference {text(reference)} has fewer axes than {text(shape)}")
        for size, wanted, offset in zip(shape[axis:], reference[axis:], offsets, strict=False):
            if size is not None and wanted is not None and offset + wanted > size:
                raise ShapeError(
                    f"{self}: {wanted} values from offset {offset} on exceed {size}: {text(shape)} cropped to "
                    f"{text(reference)}"
                )
        return [(*shape[:axis], *reference[axis : len(shape)])]

    def offsets(self, number: int) -> tuple[int, ...]:
        given = tuple(self.param.offset)
        if len(given) not in (0, 1, number):
            raise ShapeError(f"{self}: has {len(given)} offsets for {number} cropped axes")
        return given if len(given) == number else (given or (0,)) * number

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Crop as Module

        axis = self.axis(self.param.axis, bottoms[0])
        return Module(axis, self.offsets(len(bottoms[0]) - axis))

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        x, reference = bottoms
        first = self.axis(self.param.axis, x.shape)
        offsets = self.offsets(len(x.shape) - first)
        sizes = reference.shape[first : len(x.shape)]
        start = graph.axes(*offsets)
        if None in sizes:
            end = graph.call("Add", graph.sizes(reference, first, len(x.shape)), start)
        else:
            end = graph.axes(*(n + offset for n, offset in zip(sizes, offsets, strict=True)))  # type: ignore[operator]
        return [graph.call("Slice", x, start, end, graph.axes(*range(first, len(x.shape))))]


@register("Tile")
class Tile(Layer):
    """The whole blob repeated along an axis: (a b) becomes (a b a b).

    Shapes   bottom -> top, that axis times `tiles`
    Params   axis 1; tiles, required
    PyTorch  torch.Tensor.repeat, equal. ONNX: Tile.
    Source   BVLC Caffe 1.0, src/caffe/layers/tile_layer.cpp
    """

    param_field = "tile_param"
    in_place = False
    moves = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape, tiles = bottoms[0], self.param.tiles
        axis = self.axis(self.param.axis, shape)
        if tiles < 1:
            raise ShapeError(f"{self}: tiles is {tiles}, must be 1 or more")
        size = shape[axis]
        return [(*shape[:axis], None if size is None else size * tiles, *shape[axis + 1 :])]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Tile as Module

        return Module(self.axis(self.param.axis, bottoms[0]), self.param.tiles)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,) = bottoms
        repeats = [1] * len(x.shape)
        repeats[self.axis(self.param.axis, x.shape)] = self.param.tiles
        return [graph.call("Tile", x, graph.axes(*repeats))]


@register("Permute")
class Permute(Layer):
    """Axes in another order; those not named follow in their old order.

    Shapes   bottom (d0, d1, ..) -> top (d[order[0]], d[order[1]], ..)
    Params   order, repeated
    Raises   ShapeError: an axis twice, or outside of the bottom
    PyTorch  torch.permute, equal; the identity shares memory. ONNX: Transpose.
    Source   SSD fork, src/caffe/layers/permute_layer.cpp
    """

    param_field = "permute_param"
    in_place = False
    moves = True

    def order(self, rank: int) -> tuple[int, ...]:
        given = tuple(self.param.order)
        if len(set(given)) != len(given) or any(axis >= rank for axis in given):
            raise ShapeError(f"{self}: order {given} names an axis twice or outside of {rank} axes")
        return (*given, *(axis for axis in range(rank) if axis not in given))

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        return [tuple(bottoms[0][axis] for axis in self.order(len(bottoms[0])))]

    def shares_memory(self, bottoms: list[Shape]) -> bool:
        order = self.order(len(bottoms[0]))
        return order == tuple(range(len(order)))

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Permute as Module

        return Module(self.order(len(bottoms[0])))

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return [graph.call("Transpose", *bottoms, perm=self.order(len(bottoms[0].shape)))]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        order = self.order(len(writer.step.bottoms[0].shape))
        return [f"{bottoms[0]}.permute({', '.join(map(str, order))})"]


@register("Reduction")
class Reduction(Layer):
    """Sum, mean, sum of magnitudes or of squares over all axes from `axis` on.

    Shapes   bottom (a.., b..) -> top (a..); axis 0: a scalar
    Params   operation SUM | ASUM | SUMSQ | MEAN; axis 0; coeff 1
    PyTorch  flatten and sum, equal. ONNX: ReduceSum, ReduceL1, ReduceSumSquare, ReduceMean.
    Source   BVLC Caffe 1.0, src/caffe/layers/reduction_layer.cpp
    """

    param_field = "reduction_param"
    in_place = False
    batch_independent = False

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if self.param.operation not in (1, 2, 3, 4):
            raise ShapeError(f"{self}: operation {self.param.operation} is not one of Caffe's SUM, ASUM, SUMSQ, MEAN")
        return [bottoms[0][: self.axis(self.param.axis, bottoms[0])]]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Reduction as Module

        kind = {1: "sum", 2: "asum", 3: "sumsq", 4: "mean"}[self.param.operation]
        return Module(kind, self.axis(self.param.axis, bottoms[0]), self.param.coeff)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), p = bottoms, self.param
        operator = {1: "ReduceSum", 2: "ReduceL1", 3: "ReduceSumSquare", 4: "ReduceMean"}[p.operation]
        axes = graph.axes(*range(self.axis(p.axis, x.shape), len(x.shape)))
        y = graph.call(operator, x, axes, keepdims=0)
        return [y if p.coeff == 1 else graph.call("Mul", y, graph.constant(p.coeff))]


@register("ArgMax")
class ArgMax(Layer):
    """Indices (and values) of the largest values; of equal ones the last index comes first.

    Shapes   bottom (N, ...) -> top (N, 1 or 2, top_k, ..) with at least 3 axes; with axis: that axis becomes top_k
    Params   top_k 1; out_max_val false: with the values (without axis), or the values instead (with axis); axis: none
    Raises   ShapeError: top_k is 0 or above the number of values
    PyTorch  torch.argmax and topk take the first of equal values, Caffe the last. ONNX: ArgMax with select_last_index,
             TopK.
    Source   BVLC Caffe 1.0, src/caffe/layers/argmax_layer.cpp
    """

    param_field = "argmax_param"
    in_place = False
    differentiable = False
    moves = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape, k = bottoms[0], self.param.top_k
        if not shape:
            raise ShapeError(f"{self}: a scalar has no largest value")
        if self.param.HasField("axis"):
            axis = self.axis(self.param.axis, shape)
            size, result = shape[axis], (*shape[:axis], k, *shape[axis + 1 :])
        else:
            size = count(shape[1:])
            rank = max(3, len(shape))
            result = (shape[0], 2 if self.param.out_max_val else 1, k, *(1,) * (rank - 3))
        if k < 1 or (size is not None and k > size):
            raise ShapeError(f"{self}: top_k is {k}, must be 1 to {size}")
        return [result]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import ArgMax as Module

        axis = self.axis(self.param.axis, bottoms[0]) if self.param.HasField("axis") else None
        return Module(self.param.top_k, bool(self.param.out_max_val), axis)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        return [
            Quirk(self.key, "of equal values the last index comes first; torch and ONNX take the first", "own module")
        ]

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), p = bottoms, self.param
        whole = not p.HasField("axis")
        axis = 1 if whole else self.axis(p.axis, x.shape)
        y = graph.call("Flatten", x, axis=1) if whole else x
        if p.top_k == 1:
            index = graph.call("ArgMax", y, axis=axis, keepdims=1, select_last_index=1)
            largest = graph.call("ReduceMax", y, graph.axes(axis), keepdims=1) if p.out_max_val else None
        else:
            size = count(x.shape[1:]) if whole else x.shape[axis]
            # TopK takes the first of equal values, Caffe the last: reversed, they agree.
            start, end, step = graph.axes(-1), graph.axes(-(2**63) + 1), graph.axes(-1)
            backwards = graph.call("Slice", y, start, end, graph.axes(axis), step)
            largest, place = graph.node("TopK", [backwards, graph.axes(p.top_k)], 2, axis=axis)
            last = (
                graph.call("Sub", graph.sizes(y, axis, axis + 1), graph.axes(1))
                if size is None
                else graph.constant(size - 1)
            )
            index = graph.call("Sub", last, place)
        found = graph.call("Cast", index, to=FLOAT)
        if not whole:
            return [largest if p.out_max_val else found]  # type: ignore[list-item]
        rows = [found, largest] if p.out_max_val else [found]
        rows = [graph.call("Unsqueeze", row, graph.axes(1, *range(3, max(3, len(x.shape))))) for row in rows]
        return [graph.call("Concat", *rows, axis=1) if len(rows) > 1 else rows[0]]


@register("BatchReindex")
class BatchReindex(Layer):
    """Items of the batch picked by index.

    Shapes   bottom (N, ...), index (M) -> top (M, ...)
    Raises   ShapeError: the index has more than one axis
    PyTorch  torch.index_select, equal. ONNX: Gather.
    Source   BVLC Caffe 1.0, src/caffe/layers/batch_reindex_layer.cpp
    """

    bottom_count = (2, 2)
    in_place = False
    batch_independent = False
    moves = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if len(bottoms[1]) != 1:
            raise ShapeError(f"{self}: the index must have one axis, it is {text(bottoms[1])}")
        if not bottoms[0]:
            raise ShapeError(f"{self}: a scalar has no items to pick")
        return [(*bottoms[1], *bottoms[0][1:])]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import BatchReindex as Module

        return Module()

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        x, index = bottoms
        return [graph.call("Gather", x, graph.call("Cast", index, to=INT64), axis=0)]


@register("Filter")
class Filter(Layer):
    """Items of the batch whose selector is not 0.

    Shapes   bottoms (N, ...).., selector (N, 1..) -> tops (M, ...).., M known at run time only
    Raises   ShapeError: the selector has more than one value an item, batch sizes differ
    PyTorch  boolean indexing, equal. ONNX: Compress.
    Source   BVLC Caffe 1.0, src/caffe/layers/filter_layer.cpp
    """

    bottom_count = (2, None)
    top_count = (1, None)
    in_place = False
    batch_independent = False
    moves = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        *data, selector = bottoms
        if len(self.spec.top) != len(data):
            raise ShapeError(
                f"{self}: {len(data)} bottoms before the selector need as many tops, not {len(self.spec.top)}"
            )
        if any(n not in (1, None) for n in selector[1:]):
            raise ShapeError(f"{self}: the selector must have one value an item, it is {text(selector)}")
        for name, shape in zip(self.spec.bottom, data, strict=False):
            if not compatible(shape[:1], selector[:1]):
                raise ShapeError(f"{self}: bottom {name!r} is {text(shape)}, the selector {text(selector)}")
        return [(None, *shape[1:]) for shape in data]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Filter as Module

        return Module()

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        *data, selector = bottoms
        keep = graph.call("Cast", graph.reshape(selector, [None]), to=BOOL)
        return [graph.call("Compress", x, keep, axis=0) for x in data]


@register("Silence")
class Silence(Layer):
    """Nothing: keeps blobs from becoming outputs.

    Shapes   any number of bottoms, no top
    PyTorch  nothing. ONNX: nothing.
    Source   BVLC Caffe 1.0, src/caffe/layers/silence_layer.cpp
    """

    bottom_count = (1, None)
    top_count = (0, 0)
    judges = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        return []

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Silence as Module

        return Module()

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return []

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        return []


@register("Parameter")
class Parameter(Layer):
    """A learned array as a blob.

    Shapes   no bottom -> top of the given shape
    Params   shape
    Blobs    weight (shape)
    PyTorch  nn.Parameter. ONNX: an initializer.
    Source   BVLC Caffe 1.0, include/caffe/layers/parameter_layer.hpp
    """

    param_field = "parameter_param"
    bottom_count = (0, 0)
    batch_independent = False
    moves = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape = tuple(self.param.shape.dim)
        if any(n < 1 for n in shape) or prod(shape) >= 2**31:
            raise ShapeError(f"{self}: shape {text(shape)} cannot be held by Caffe")
        return [shape]

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        return [Blob("weight", tuple(self.param.shape.dim))]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Parameter as Module

        return Module(tuple(self.param.shape.dim))

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return [graph.weight("weight")]
