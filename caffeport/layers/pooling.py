"""Pooling, and the pyramid of poolings."""

import math
from functools import reduce
from math import prod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import ShapeError, UnsupportedLayer
from ..formats.schema import Message
from ..modules.geometry import pooled_size, spp_window, torch_pools_alike
from .base import FLOAT, Layer, Quirk, Shape, count, register, text

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue
    from ..export.source import SourceWriter

MAX, AVE, STOCHASTIC = range(3)
LOWEST = -3.4028234663852886e38  # -FLT_MAX, where Caffe's maximum starts


def pooled_sizes(
    spatial: Shape, kernel: tuple[int, ...], stride: tuple[int, ...], pad: tuple[int, ...], floor: bool
) -> Shape:
    """`pooled_size` of every axis; open axes stay open."""
    axes = zip(spatial, kernel, stride, pad, strict=True)
    return tuple(None if i is None else pooled_size(i, k, s, p, any(pad), floor) for i, k, s, p in axes)


@register("Pooling")
class Pooling(Layer):
    """Largest or average value of each window.

    Shapes   bottom (N, C, H, W) -> top (N, C, oh, ow) [, mask of the same shape for MAX]; sizes by `pooled_size`,
             rounded up
    Params   pool MAX | AVE | STOCHASTIC; kernel_size or kernel_h and kernel_w, stride 1, pad 0 (pixels);
             global_pooling; round_mode CEIL
    Raises   ShapeError: pad not below the kernel, half-given pairs, not 4 axes. UnsupportedLayer: STOCHASTIC
    PyTorch  rounds up, keeps windows that lie outside the image when pad is 0, divides an average by the window
             clipped at image + pad;
             nn.MaxPool2d and nn.AvgPool2d with ceil_mode where they agree, own module elsewhere. ONNX: MaxPool,
             AveragePool.
    Source   BVLC Caffe 1.0, src/caffe/layers/pooling_layer.cpp
    """

    param_field = "pooling_param"
    top_count = (1, 2)
    fresh = True
    in_place = False
    rank: ClassVar[int] = 2  # number of spatial axes

    def given(self, rank: int) -> list[tuple[int, ...]]:
        """Kernel, stride and pad as the parameters state them, one number for each axis."""
        p: Message = self.param
        sizes: list[tuple[int, ...]] = []
        for name, short, default in (("kernel_size", "kernel", 0), ("stride", "stride", 1), ("pad", "pad", 0)):
            pair = [p.HasField(f"{short}_{side}") for side in "hw"]
            if any(pair) and (p.HasField(name) or not all(pair)):
                raise ShapeError(f"{self}: give either {name} or both {short}_h and {short}_w")
            sizes.append(
                (getattr(p, f"{short}_h"), getattr(p, f"{short}_w"))
                if all(pair)
                else ((getattr(p, name) if p.HasField(name) else default),) * rank
            )
        return sizes

    def window(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Kernel, stride and pad, one number for each axis; no kernel for a pooling of the whole map."""
        p: Message = self.param
        kernel, stride, pad = self.given(rank)
        if p.global_pooling:
            if (
                any(p.HasField(name) for name in ("kernel_size", "kernel_h", "kernel_w"))
                or any(pad)
                or any(s != 1 for s in stride)
            ):
                raise ShapeError(f"{self}: global_pooling goes without kernel, stride and pad")
            return (), stride, pad
        if not all(kernel) or not all(stride):
            raise ShapeError(f"{self}: kernel {text(kernel)} and stride {text(stride)} must be at least 1")
        if any(q >= k for q, k in zip(pad, kernel, strict=True)):
            raise ShapeError(f"{self}: pad {text(pad)} must be smaller than the kernel, {text(kernel)}")
        return kernel, stride, pad

    @property
    def floor(self) -> bool:
        return bool(self.param.round_mode == 1) or (self.param.HasField("ceil_mode") and not self.param.ceil_mode)

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape = bottoms[0]
        if len(shape) != 2 + self.rank:
            raise ShapeError(f"{self}: wants {2 + self.rank} axes, bottom {self.spec.bottom[0]!r} is {text(shape)}")
        method = self.param.pool
        if method == STOCHASTIC:
            raise UnsupportedLayer(f"{self}: STOCHASTIC pooling; Caffe itself runs it on a GPU only")
        if method != MAX and len(self.spec.top) > 1:
            raise ShapeError(f"{self}: only MAX pooling has a second top, the mask")
        kernel, stride, pad = self.window(self.rank)
        sizes: Shape = (1,) * self.rank if not kernel else pooled_sizes(shape[2:], kernel, stride, pad, self.floor)
        if any(n is not None and n < 1 for n in sizes):
            raise ShapeError(f"{self}: bottom {text(shape)} is too small for kernel {text(kernel)}")
        return [(*shape[:2], *sizes)] * len(self.spec.top)

    def exact(self) -> bool:
        return bool(self.param.pool == MAX)

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        from ..modules.pooling import GlobalMaxPool, MaxPoolMask, Pool

        kernel, stride, pad = self.window(self.rank)
        method, mask = self.param.pool, len(self.spec.top) == 2
        if not kernel:
            if mask:
                return GlobalMaxPool()
            adaptive: dict[tuple[int, int], type[nn.Module]] = {
                (MAX, 2): nn.AdaptiveMaxPool2d,
                (AVE, 2): nn.AdaptiveAvgPool2d,
                (MAX, 3): nn.AdaptiveMaxPool3d,
                (AVE, 3): nn.AdaptiveAvgPool3d,
            }
            return adaptive[method, self.rank](1)
        if mask:
            return MaxPoolMask(kernel, stride, pad, self.floor)
        # AvgPool3d refuses a kernel above the unpadded input, which padding may make legal.
        if not torch_pools_alike(kernel, stride, pad) or (method == AVE and self.rank == 3):
            return Pool("max" if method == MAX else "average", kernel, stride, pad, self.floor)
        stock: dict[tuple[int, int], type[nn.Module]] = {
            (MAX, 2): nn.MaxPool2d,
            (AVE, 2): nn.AvgPool2d,
            (MAX, 3): nn.MaxPool3d,
        }
        return stock[method, self.rank](_pair(kernel), _pair(stride), _pair(pad), ceil_mode=not self.floor)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        kernel, stride, pad = self.window(self.rank)
        found: list[Quirk] = []
        if not kernel:
            return found

        def add(what: str, handled: str) -> None:
            if all(quirk.what != what for quirk in found):
                found.append(Quirk(self.key, what, handled))

        for i, k, s, p in zip(bottoms[0][2:], kernel, stride, pad, strict=True):
            if p > k // 2:
                add(f"pad {p} is more than half the kernel {k}, which torch refuses", "own module that pads first")
            if i is None:
                continue
            n = pooled_size(i, k, s, p, any(pad), self.floor)
            if any(pad) and not self.floor and n < math.ceil((i + 2 * p - k) / s) + 1:
                add(
                    "the last window would start beyond image + pad and is clipped away", "ceil_mode with the same rule"
                )
            if (n - 1) * s - p >= i:
                add(
                    "the last window lies outside the image and is empty",
                    "kept, as in Caffe: -3.4e38 for MAX, NaN or 0 for AVE",
                )
            elif (n - 1) * s - p + k > i + p:
                if self.param.pool == AVE:
                    add(
                        "the last average overhangs the padded image",
                        "divided by the part inside; a cuDNN build of Caffe may divide by all",
                    )
                else:
                    add("sizes round up: the last window overhangs the padded image", "ceil_mode")
        return found

    def serial_terms(self, bottoms: list[Shape]) -> int:
        kernel, *_ = self.window(2)
        return (prod(kernel) if kernel else count(bottoms[0][2:]) or 1) if self.param.pool == AVE else 1

    def has_empty_windows(self, shape: Shape) -> bool:
        """Whether a window lies outside of the image: without padding, where the stride exceeds the kernel."""
        kernel, stride, pad = self.window(self.rank)
        if not kernel or any(pad) or self.floor or all(s <= k for s, k in zip(stride, kernel, strict=True)):
            return False
        axes = zip(shape[2:], kernel, stride, strict=True)
        return any(i is None or (pooled_size(i, k, s, 0, False) - 1) * s >= i for i, k, s in axes)

    def clips(self, shape: Shape) -> bool:
        """Whether a last window is left out because it would start beyond image + pad."""
        kernel, stride, pad = self.window(self.rank)
        if not kernel or not any(pad) or self.floor:
            return False
        for i, k, s, p in zip(shape[2:], kernel, stride, pad, strict=True):
            if p + s > k and (i is None or pooled_size(i, k, s, p, True) < math.ceil((i + 2 * p - k) / s) + 1):
                return True
        return False

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,) = bottoms
        kernel, stride, pad = self.window(self.rank)
        largest = self.param.pool == MAX
        if not kernel and len(self.spec.top) == 1:
            return [graph.call("GlobalMaxPool" if largest else "GlobalAveragePool", x)]
        if not kernel:
            height, width = x.shape[2:]
            if height is None or width is None:
                raise graph.refuse("a mask of the whole map needs fixed sizes")
            kernel, stride, pad = (height, width), (1, 1), (0, 0)
        if self.has_empty_windows(x.shape):
            if len(self.spec.top) == 2:
                raise graph.refuse("its last window lies outside the image, and ONNX has no mask for that")
            return [padded_pool(graph, x, largest, kernel, stride, pad, self.floor)]
        if self.clips(x.shape):
            graph.require(22, "a pooling window that starts in the padding is dropped, which only opset 22 says")
        attributes = {"kernel_shape": kernel, "strides": stride, "pads": (*pad, *pad), "ceil_mode": int(not self.floor)}
        if not largest:
            return [graph.call("AveragePool", x, count_include_pad=1, **attributes)]
        if len(self.spec.top) == 1:
            return [graph.call("MaxPool", x, **attributes)]
        top, index = graph.node("MaxPool", [x], 2, **attributes)
        height, width = x.shape[2:]
        if height is None or width is None:  # ONNX counts through the whole tensor, Caffe within the plane
            plane = graph.call("ReduceProd", graph.sizes(x, 2), graph.axes(0), keepdims=0)
        else:
            plane = graph.constant(height * width)
        return [top, graph.call("Cast", graph.call("Mod", index, plane), to=FLOAT)]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        module, (x,) = writer.built(), bottoms
        kind = {"MaxPool": "max", "AvgPool": "avg", "AdaptiveMaxPool": "max", "AdaptiveAvgPool": "avg"}
        axes = f"{self.rank}d"
        name = kind.get(type(module).__name__.removesuffix(axes))
        if name is None or len(self.spec.top) == 2:
            return super().source(writer, bottoms)
        if self.param.global_pooling:
            return [f"F.adaptive_{name}_pool{axes}({x}, 1)"]
        sizes = [module.kernel_size, module.stride, *([module.padding] if module.padding else [])]
        ceil = [] if self.floor else ["ceil_mode=True"]
        return [f"F.{name}_pool{axes}({', '.join([x, *map(str, sizes), *ceil])})"]


def padded_pool(
    graph: "OnnxGraph",
    x: "OnnxValue",
    largest: bool,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...],
    floor: bool,
) -> "OnnxValue":
    """Pooling in ONNX with windows outside of the image: pads first, divides averages by each window's own size."""
    spatial = x.shape[2:]
    if None in spatial:
        raise graph.refuse("its last window may lie outside the image, which ONNX can say for fixed sizes only")
    after, extents = [], []
    for i, k, s, p in zip(spatial, kernel, stride, pad, strict=True):
        n = pooled_size(i, k, s, p, any(pad), floor)  # type: ignore[arg-type]
        after.append((n - 1) * s + k - i - p)  # type: ignore[operator]
        starts = np.arange(n) * s - p
        extents.append(np.minimum(starts + k, i + p) - starts)  # type: ignore[operator]
    # Where the last windows end before the image does, the rest of it is cut off by a negative pad.
    padded = graph.call("Pad", x, graph.axes(0, 0, *pad, 0, 0, *after), graph.constant(LOWEST if largest else 0.0))
    if largest:
        return graph.call("MaxPool", padded, kernel_shape=kernel, strides=stride)
    mean = graph.call("AveragePool", padded, kernel_shape=kernel, strides=stride)
    divisors = reduce(np.multiply.outer, extents) / prod(kernel)
    return graph.call("Div", mean, graph.constant(divisors.astype(np.float32)))


def _pair(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    """(2, 2) as 2, so that the module prints as a person would write it."""
    return sizes[0] if len(set(sizes)) == 1 else sizes


@register("SPP")
class SPP(Layer):
    """Spatial pyramid pooling: bins of 1, 2 x 2, 4 x 4, ... over the whole map, flattened side by side.

    Shapes   bottom (N, C, H, W) -> top (N, C (4^height - 1) / 3); height 1: (N, C, 1, 1)
    Params   pyramid_height; pool MAX | AVE
    Raises   ShapeError: the map is too small for a level (its padding reaches the kernel; Caffe aborts)
    PyTorch  own module: each level is Caffe's Pooling with its own kernel and pad. ONNX: pools, Flatten, Concat.
    Source   BVLC Caffe 1.0, src/caffe/layers/spp_layer.cpp
    """

    param_field = "spp_param"
    fresh = True
    in_place = False

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape, height = bottoms[0], self.param.pyramid_height
        if len(shape) != 4:
            raise ShapeError(f"{self}: wants 4 axes, bottom is {text(shape)}")
        if not 1 <= height <= 16:
            raise ShapeError(f"{self}: pyramid_height is {height}, wanted is 1 or more (16 at most)")
        if self.param.pool == STOCHASTIC:
            raise UnsupportedLayer(f"{self}: STOCHASTIC pooling; Caffe itself runs it on a GPU only")
        for size in shape[2:]:
            for level in range(height if size is not None else 0):
                kernel, pad = spp_window(size, 2**level)  # type: ignore[arg-type]
                if pad >= kernel:
                    raise ShapeError(
                        f"{self}: a map of {text(shape[2:])} is too small for level {level} ({2**level} bins a side)"
                    )
        channels = shape[1]
        if height == 1:
            return [(*shape[:2], 1, 1)]
        return [(shape[0], None if channels is None else channels * (4**height - 1) // 3)]

    def exact(self) -> bool:
        return bool(self.param.pool == MAX)

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.pooling import SpatialPyramid

        return SpatialPyramid("max" if self.param.pool == MAX else "average", self.param.pyramid_height)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,) = bottoms
        height, width = x.shape[2:]
        if height is None or width is None:
            raise graph.refuse("its windows depend on the size of the map: fix height and width")
        levels = []
        for level in range(self.param.pyramid_height):
            bins = 2**level
            (tall, top), (wide, left) = spp_window(height, bins), spp_window(width, bins)
            pads = (top, left, bins * tall - height - top, bins * wide - width - left)
            attributes = {"kernel_shape": (tall, wide), "strides": (tall, wide), "pads": pads}
            if self.param.pool == MAX:
                levels.append(graph.call("MaxPool", x, **attributes))
            else:
                levels.append(graph.call("AveragePool", x, count_include_pad=1, **attributes))
        if len(levels) == 1:
            return levels
        return [graph.call("Concat", *(graph.call("Flatten", y, axis=1) for y in levels), axis=1)]
