"""Resizing, unpooling and normalisation of the segmentation nets, and waifu2x's crop."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ShapeError
from ..formats.model_file import StoredBlob
from ..formats.schema import Message
from ..modules.geometry import interp_size
from .base import INT64, Array, Blob, Layer, Quirk, Shape, compatible, constant, count, register, text

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue


@register("Interp")
class Interp(Layer):
    """Bilinear resizing with corners aligned, after cutting off pad_beg and pad_end pixels.

    Shapes   bottom (N, C, H, W) -> top (N, C, h, w) by `interp_size`
    Params   shrink_factor or zoom_factor alone, else height and width, else both factors; pad_beg 0, pad_end 0 (at most
             0; they crop)
    Raises   ShapeError: nothing tells the size, padding above 0, nothing left after the crop, not 4 axes
    PyTorch  F.interpolate, bilinear with align_corners, within 4e-7. ONNX: Resize, linear, align_corners.
    Source   hszhao/PSPNet, src/caffe/layers/interp_layer.cpp
    """

    param_field = "interp_param"
    fresh = True
    in_place = False

    def given(self, name: str) -> int | None:
        return int(getattr(self.param, name)) if self.param.HasField(name) else None

    def wanted(self) -> tuple[int, int] | None:
        height, width = self.given("height"), self.given("width")
        return None if height is None or width is None else (height, width)

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape, p = bottoms[0], self.param
        if len(shape) != 4:
            raise ShapeError(f"{self}: wants 4 axes, bottom is {text(shape)}")
        if p.pad_beg > 0 or p.pad_end > 0:
            raise ShapeError(
                f"{self}: pad_beg and pad_end must not be above 0 (they crop), they are {p.pad_beg} and {p.pad_end}"
            )
        zoom, shrink = self.given("zoom_factor"), self.given("shrink_factor")
        if any(factor is not None and factor < 1 for factor in (zoom, shrink)):
            raise ShapeError(f"{self}: zoom_factor and shrink_factor must be at least 1")
        if zoom is None and shrink is None and self.wanted() is None:
            raise ShapeError(f"{self}: give height and width, zoom_factor or shrink_factor; nothing tells the size")
        sizes: list[int | None] = []
        for size, wanted in zip(shape[2:], self.wanted() or (None, None), strict=True):
            left = None if size is None else size + p.pad_beg + p.pad_end
            new = interp_size(left, wanted, zoom, shrink)
            if (left is not None and left < 1) or (new is not None and new < 1):
                raise ShapeError(
                    f"{self}: an axis of {size} would become {new}, with {left} of it left by pad_beg and pad_end"
                )
            sizes.append(new)
        return [(*shape[:2], *sizes)]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.segmentation import Interp as Module

        crop = (-self.param.pad_beg, -self.param.pad_end)
        return Module(self.wanted(), self.given("zoom_factor"), self.given("shrink_factor"), crop)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        if self.wanted() and (self.param.HasField("zoom_factor") != self.param.HasField("shrink_factor")):
            return [
                Quirk(
                    self.key,
                    "zoom_factor or shrink_factor alone goes before height and width",
                    "as the fork; OpenCV does the opposite",
                )
            ]
        return []

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), start, end = bottoms, -self.param.pad_beg, -self.param.pad_end
        height, width = self.tops([x.shape])[0][2:]
        if height is None or width is None:
            raise graph.refuse("its size depends on that of the map: fix height and width")
        if start or end:
            last = -end or 2**31
            x = graph.call("Slice", x, graph.axes(start, start), graph.axes(last, last), graph.axes(2, 3))
        how = {"mode": "linear", "coordinate_transformation_mode": "align_corners", "axes": (2, 3)}
        return [graph.call("Resize", x, None, None, graph.axes(height, width), **how)]


@register("CropCenter")
class CropCenter(Layer):
    """Cut crop_size values off both ends of each axis.

    Shapes   bottom (d0, d1, ...) -> top (d0 - 2 c0, d1 - 2 c1, ...)
    Params   crop_size (c), one for each axis
    Raises   ShapeError: not one crop_size for each axis, nothing left
    PyTorch  slices, equal. ONNX: Slice.
    Source   lltcggie/caffe, src/caffe/layers/crop_center_layer.cpp
    """

    param_field = "crop_center_param"
    in_place = False

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape, cuts = bottoms[0], list(self.param.crop_size)
        if len(cuts) != len(shape):
            raise ShapeError(f"{self}: wants one crop_size for each axis of {text(shape)}, has {len(cuts)}")
        if any(size is not None and size <= 2 * cut for size, cut in zip(shape, cuts, strict=True)):
            raise ShapeError(f"{self}: crop_size {text(tuple(cuts))} on both ends leaves nothing of {text(shape)}")
        return [tuple(None if size is None else size - 2 * cut for size, cut in zip(shape, cuts, strict=True))]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.segmentation import CropCenter as Module

        return Module(tuple(self.param.crop_size))

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        cuts = list(self.param.crop_size)
        axes = [axis for axis, cut in enumerate(cuts) if cut]
        if not axes:
            return [graph.call("Identity", *bottoms)]
        start, end = (graph.axes(*(sign * cuts[axis] for axis in axes)) for sign in (1, -1))
        return [graph.call("Slice", *bottoms, start, end, graph.axes(*axes))]


def same_mask(layer: Layer, bottoms: list[Shape]) -> None:
    """Raises ShapeError unless the bottoms have 4 axes and the mask, if any, fits the values."""
    if len(bottoms[0]) != 4:
        raise ShapeError(f"{layer}: wants 4 axes, bottom is {text(bottoms[0])}")
    if len(bottoms) == 2 and not compatible(*bottoms):
        raise ShapeError(
            f"{layer}: the mask, bottom {layer.spec.bottom[1]!r}, is {text(bottoms[1])}, "
            f"the values are {text(bottoms[0])}"
        )


@register("Upsample", when=lambda spec, stored: len(spec.bottom) != 1)
class MaskUpsample(Layer):
    """Each value at the place where the pooling layer found it, zeros elsewhere.

    Shapes   bottom (N, C, h, w), mask of the same shape (the pooling's second top) -> top (N, C, upsample_h,
             upsample_w)
    Params   upsample_h and upsample_w, or scale 2 (or scale_h and scale_w) with pad_out_h and pad_out_w, each one pixel
             less
    Raises   ShapeError: sizes or scales below 2, pad_out with another scale than 2, a mask of another shape
    PyTorch  a scatter, as nn.MaxUnpool2d; an index beyond the top is an error in both. ONNX: MaxUnpool with global
             indices, or ScatterElements.
    Source   alexgkendall/caffe-segnet, src/caffe/layers/upsample_layer.cpp
    """

    param_field = "upsample_param"
    variant = "SegNet (two bottoms: unpooling by mask)"
    bottom_count = (2, 2)
    fresh = True
    in_place = False

    def geometry(self) -> tuple[tuple[int, int] | None, tuple[int, int], tuple[int, int]]:
        """The size, or None with the scale and what is taken off; each for height and width."""
        p: Message = self.param
        size = (int(p.upsample_h), int(p.upsample_w)) if p.HasField("upsample_h") and p.HasField("upsample_w") else None
        scale = (p.scale, p.scale) if p.HasField("scale") else (2, 2)
        if p.HasField("scale_h") or p.HasField("scale_w"):
            scale = (p.scale_h, p.scale_w)
        less = (int(p.pad_out_h), int(p.pad_out_w))
        if min(size or scale) < 2 or (not size and any(cut and s != 2 for cut, s in zip(less, scale, strict=True))):
            raise ShapeError(
                f"{self}: upsample_h and upsample_w, or the scale, must be at least 2, and exactly 2 with pad_out"
            )
        return size, scale, less

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        same_mask(self, bottoms)
        size, scale, less = self.geometry()
        sizes: Shape = size or tuple(i and i * s - cut for i, s, cut in zip(bottoms[0][2:], scale, less, strict=True))
        return [(*bottoms[0][:2], *sizes)]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.segmentation import MaskUpsample as Module

        return Module(*self.geometry())

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        x, mask = bottoms
        return [placed(graph, x, graph.call("Cast", mask, to=INT64), self.tops([x.shape, mask.shape])[0])]


def placed(graph: "OnnxGraph", x: "OnnxValue", index: "OnnxValue", top: Shape) -> "OnnxValue":
    """In ONNX: zeros of shape `top` (N, C, H, W), each value of x at its index into the plane; the last one stays."""
    height, width = top[2:]
    if height is None or width is None:
        raise graph.refuse("its size depends on that of the map: fix height and width")
    flat = graph.view(x, [0, 1, -1])
    plane = graph.call("Concat", graph.sizes(x, 0, 2), graph.axes(height * width), axis=0)
    zeros = graph.call("Expand", graph.constant(0.0), plane)
    filled = graph.call("ScatterElements", zeros, graph.reshape(index, [0, 0, None], copied=(0, 1)), flat, axis=2)
    return graph.reshape(filled, [0, 0, height, width], copied=(0, 1))


MAX, AVE, TILE = range(3)


@register("Unpooling")
class Unpooling(Layer):
    """The reverse of pooling: each value at one place of its window, or spread over it.

    Shapes   bottom (N, C, h, w) [, mask of the same shape for MAX] -> top (N, C, unpool_h, unpool_w)
    Params   unpool MAX (at the mask's place, or the window's first cell) | AVE (value / window size, added) | TILE (the
             value, added); kernel_size or kernel_h and kernel_w, stride 1, unpool_size or unpool_h and unpool_w
    Raises   ShapeError: no kernel or no size, a pair half given, pad other than 0, a mask of another shape
    PyTorch  a scatter, or F.conv_transpose2d with ones. Caffe adds AVE and TILE onto what a pass before left. ONNX:
             ScatterElements, ConvTranspose.
    Source   HyeonwooNoh/caffe, src/caffe/layers/unpooling_layer.cpp
    """

    param_field = "unpooling_param"
    bottom_count = (1, 2)
    fresh = True
    in_place = False

    def pair(self, whole: str, short: str, default: int) -> tuple[int, int]:
        p: Message = self.param
        given = [p.HasField(f"{short}_{side}") for side in "hw"]
        if any(given) and (p.HasField(whole) or not all(given)):
            raise ShapeError(f"{self}: give either {whole} or both {short}_h and {short}_w")
        pair = (
            (getattr(p, f"{short}_h"), getattr(p, f"{short}_w")) if all(given) else (getattr(p, whole) or default,) * 2
        )
        if not all(pair) and short != "pad":
            raise ShapeError(f"{self}: {whole} (or {short}_h and {short}_w) must be given and above 0")
        return pair

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        same_mask(self, bottoms)
        if any(self.pair("pad", "pad", 0)):
            raise ShapeError(f"{self}: pad must be 0, Caffe supports no other")
        self.pair("kernel_size", "kernel", 0), self.pair("stride", "stride", 1)
        return [(*bottoms[0][:2], *self.pair("unpool_size", "unpool", 0))]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.segmentation import CornerUnpool, WindowUnpool
        from ..modules.segmentation import MaskUpsample as ByMask

        kernel, stride = self.pair("kernel_size", "kernel", 0), self.pair("stride", "stride", 1)
        size = self.pair("unpool_size", "unpool", 0)
        if self.param.unpool != MAX:
            return WindowUnpool(size, kernel, stride, average=self.param.unpool == AVE)
        return ByMask(size) if len(bottoms) == 2 else CornerUnpool(size, stride)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        if self.param.unpool == MAX:
            return []
        return [
            Quirk(
                self.key,
                "Caffe on a CPU adds onto what the pass before left in the top",
                "every call starts from zeros",
            )
        ]

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        x, *mask = bottoms
        top = self.tops([bottom.shape for bottom in bottoms])[0]
        if mask:
            return [placed(graph, x, graph.call("Cast", mask[0], to=INT64), top)]
        (channels, h, w), stride, kernel = (
            x.shape[1:],
            self.pair("stride", "stride", 1),
            self.pair("kernel_size", "kernel", 0),
        )
        height, width = self.pair("unpool_size", "unpool", 0)
        if channels is None or h is None or w is None:
            raise graph.refuse("its windows depend on the size of the map: fix height and width")
        axes = list(zip((h, w), kernel, stride, (height, width), strict=True))
        if self.param.unpool == MAX:
            row, column = (np.minimum(np.arange(i) * s, size - 1) for i, _, s, size in axes)
            index = graph.constant((row[:, None] * width + column).astype(np.int64), np.int64)
            return [placed(graph, x, graph.call("Expand", index, graph.sizes(x)), top)]
        if self.param.unpool == AVE:
            cells = np.outer(*(np.clip(size - np.arange(i) * s, 1, k) for i, k, s, size in axes))
            x = graph.call("Div", x, graph.constant(cells.astype(np.float32)))
        ones = graph.constant(np.ones((channels, 1, *kernel), np.float32))
        spread = graph.call("ConvTranspose", x, ones, kernel_shape=kernel, strides=stride, group=channels)
        more = [size - ((i - 1) * s + k) for i, k, s, size in axes]  # below 0: what lies beyond the top is cut off
        return [graph.call("Pad", spread, graph.axes(0, 0, 0, 0, 0, 0, *more), graph.constant(0.0))]


class _BN(Layer):
    """What the two layers called BN share: arrays of Caffe's shape (1, C, 1, 1)."""

    param_field = "bn_param"
    fresh = True
    arrays: tuple[str, ...] = ()
    most_axes = 4

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if not 2 <= len(bottoms[0]) <= self.most_axes:
            raise ShapeError(f"{self}: wants 2 to {self.most_axes} axes, bottom is {text(bottoms[0])}")
        return [bottoms[0], *[(1, bottoms[0][1], *(1,) * (len(bottoms[0]) - 2))] * (len(self.spec.top) - 1)]

    def channels(self, bottoms: list[Shape]) -> int:
        stored = self.stored[0].shape if self.stored else ()
        return self.known(bottoms[0][1], max(stored, default=None), "its number of channels")

    def filler(self, name: str) -> Message:
        return constant(0.0)

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        return [Blob(name, (1, self.channels(bottoms), 1, 1), self.filler(name)) for name in self.arrays]

    def weights(self, blobs: dict[str, Array]) -> dict[str, Array]:
        return {name: array.reshape(-1) for name, array in blobs.items()}


def in_pspnet(spec: Message, stored: Sequence[StoredBlob] | None) -> bool:
    """Whether a BN layer is PSPNet's (four arrays) and not SegNet's (two)."""
    if stored:
        return len(stored) == 4
    p = spec.bn_param
    return (
        any(p.HasField(name) for name in ("slope_filler", "bias_filler", "momentum", "frozen")) or len(spec.param) > 2
    )


@register("BN", when=in_pspnet)
class StoredBN(_BN):
    """Batch normalisation with stored statistics and a learned slope and bias, in one layer.

    y = (x - mean) / sqrt(variance + eps) * slope + bias

    Shapes   bottom (N, C, H, W), in P3D (N, C, L, H, W) -> top, same
    Params   eps 1e-5; slope_filler and bias_filler constant 0
    Blobs    slope (weight), bias, mean (running_mean), variance (running_var), each (1, C, 1, 1), in P3D (1, C); no
             factor
    Raises   ShapeError: fewer than 2 or more than 5 axes
    PyTorch  nn.BatchNorm2d, equal. ONNX: BatchNormalization.
    Source   hszhao/PSPNet, src/caffe/layers/bn_layer.cpp; ZhaofanQiu/pseudo-3d-residual-networks,
             caffe_add_layers/src/bn_layer.cpp
    """

    variant = "PSPNet (four arrays, stored statistics)"
    arrays = ("weight", "bias", "running_mean", "running_var")
    most_axes = 5

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        in_p3d = len(self.stored[0].shape) == 2 if self.stored else len(bottoms[0]) == 5
        blobs = super().blobs(bottoms)
        return [Blob(blob.name, blob.shape[:2], blob.filler) for blob in blobs] if in_p3d else blobs

    def filler(self, name: str) -> Message:
        return {"weight": self.param.slope_filler, "bias": self.param.bias_filler}.get(name, constant(0.0))

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        stock = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(len(bottoms[0]), nn.BatchNorm1d)
        return stock(self.channels(bottoms), self.param.eps)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        names = ("weight", "bias", "running_mean", "running_var")
        return [graph.call("BatchNormalization", *bottoms, *map(graph.weight, names), epsilon=self.param.eps)]


@register("BN", when=lambda spec, stored: not in_pspnet(spec, stored))
class BatchBN(_BN):
    """A learned scale and shift (INFERENCE), or normalisation by the batch's own statistics before them (LEARN).

    INFERENCE: y = x * scale + shift
    LEARN: y = (x - mean) / sqrt(variance + 1e-9) * scale + shift, variance = E(x^2) - E(x)^2

    Shapes   bottom (N, C, H, W) -> top, same [, mean (1, C, 1, 1) [, variance (1, C, 1, 1)]]
    Params   bn_mode LEARN | INFERENCE; scale_filler and shift_filler constant 0
    Blobs    scale (weight), shift (bias), each (1, C, 1, 1)
    Raises   ShapeError: fewer than 2 or more than 4 axes, further tops with INFERENCE
    PyTorch  own module; LEARN takes the batch's statistics in TEST too. ONNX: Mul, Add, with ReduceMean for LEARN.
    Source   alexgkendall/caffe-segnet and HyeonwooNoh/caffe, src/caffe/layers/bn_layer.cpp
    """

    variant = "SegNet, DeconvNet (two arrays, no stored statistics)"
    top_count = (1, 3)
    arrays = ("weight", "bias")

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.learns = self.param.bn_mode == 0
        self.batch_independent = not self.learns  # type: ignore[misc]

    def filler(self, name: str) -> Message:
        return self.param.scale_filler if name == "weight" else self.param.shift_filler

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.normalization import Scale
        from ..modules.segmentation import BatchBN as Module

        channels = self.channels(bottoms)
        if self.learns:
            return Module(channels, len(self.spec.top))
        return Scale((channels,), len(bottoms[0]) - 2, bias=True)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        if not self.learns:
            return []
        values = count((bottoms[0][0], *bottoms[0][2:]))
        some = "the batch's" if values is None else f"this batch's {values}"
        return [
            Quirk(
                self.key,
                f"bn_mode LEARN normalises by {some} values of each channel, in TEST too",
                "as the fork; see bn_mode: INFERENCE",
            )
        ]

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,) = bottoms
        rank = len(x.shape)
        shape = (self.channels([x.shape]), *(1,) * (rank - 2))
        weight, bias = graph.weight("weight", shape), graph.weight("bias", shape)
        if not self.learns:
            return [graph.call("Add", graph.call("Mul", x, weight), bias)]
        axes = graph.axes(*(axis for axis in range(rank) if axis != 1))
        mean = graph.call("ReduceMean", x, axes, keepdims=1)
        square = graph.call("ReduceMean", graph.call("Mul", x, x), axes, keepdims=1)
        variance = graph.call("Sub", square, graph.call("Mul", mean, mean))
        deviation = graph.call("Sqrt", graph.call("Add", variance, graph.constant(1e-9)))
        scaled = graph.call("Mul", graph.call("Sub", x, mean), graph.call("Div", weight, deviation))
        return [graph.call("Add", scaled, bias), mean, variance][: len(self.spec.top)]
