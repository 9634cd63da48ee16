"""Convolution and its like: layers that read convolution_param."""

from math import prod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import ShapeError, UnsupportedLayer
from ..formats.schema import Message
from .base import Blob, Layer, Quirk, Shape, count, register, text

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue


def per_axis(layer: Layer, param: Message, name: str, rank: int, default: int | None) -> tuple[int, ...]:
    """A spatial parameter for each of `rank` axes: `name` given never, once or once per axis, or as `name_h` and
    `name_w`.

    A member of a pair that is not given counts as 0 (as in Caffe), so `kernel_h` alone is an error.
    """
    short = "kernel" if name == "kernel_size" else name
    pair = [getattr(param, f"{short}_{side}", 0) for side in "hw"]
    given = list(getattr(param, name))
    if (
        any(param.HasField(f"{short}_{side}") for side in "hw" if hasattr(param, f"{short}_{side}"))
        and short != "dilation"
    ):
        if given or rank != 2:
            raise ShapeError(
                f"{layer}: {short}_h and {short}_w go with 2 spatial axes and without {name}; here are {rank} axes"
            )
        return tuple(pair)
    if len(given) not in (0, 1, rank):
        raise ShapeError(f"{layer}: {name} is given {len(given)} times for {rank} spatial axes")
    if not given and default is None and rank:
        raise ShapeError(f"{layer}: {name} is missing")
    return tuple(given * (rank if len(given) == 1 else 1)) if given else (default or 0,) * rank


class Convolutional(Layer):
    """What Convolution, Deconvolution and Im2col share: the window's geometry."""

    param_field = "convolution_param"
    bottom_count: ClassVar[tuple[int, int | None]] = (1, None)
    top_count: ClassVar[tuple[int, int | None]] = (1, None)
    same_shape_bottoms = True
    per_bottom = True
    fresh = True
    in_place = False
    transposed = False

    def geometry(self, bottoms: list[Shape]) -> tuple[int, int]:
        """The channel axis and the number of spatial axes."""
        axis = self.axis(self.param.axis, bottoms[0])
        return axis, len(bottoms[0]) - axis - 1

    def window(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Kernel, stride, pad and dilation, one number for each spatial axis."""
        kernel = per_axis(self, self.param, "kernel_size", rank, None)
        stride = per_axis(self, self.param, "stride", rank, 1)
        pad = per_axis(self, self.param, "pad", rank, 0)
        dilation = per_axis(self, self.param, "dilation", rank, 1)
        if rank == 2 and self.param.HasField("hole_h"):
            dilation = (self.param.hole_h, self.param.hole_w)
        elif rank == 2 and self.param.HasField("dilation_h"):
            dilation = (self.param.dilation_h, self.param.dilation_w)
        elif self.param.HasField("hole"):
            dilation = (self.param.hole,) * rank
        if any(k < 1 for k in kernel) or any(s < 1 for s in stride):
            raise ShapeError(
                f"{self}: kernel {text(kernel)} and stride {text(stride)} must be at least 1 on every axis"
            )
        return kernel, stride, pad, dilation

    def sizes(self, spatial: Shape) -> Shape:
        """Output size of each spatial axis; raises ShapeError where it is below 1."""
        kernel, stride, pad, dilation = self.window(len(spatial))
        out: list[int | None] = []
        for i, k, s, p, d in zip(spatial, kernel, stride, pad, dilation, strict=True):
            out.append(None if i is None else self.size(i, k, s, p, d))
        if any(n is not None and n < 1 for n in out):
            raise ShapeError(
                f"{self}: input of {text(spatial)} is too small for kernel {text(kernel)} with pad {text(pad)}"
            )
        return tuple(out)

    def size(self, size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
        """Number of windows along one axis.

        Divides as C does: a kernel one larger than the input still gives one window.
        """
        return int((size + 2 * pad - (dilation * (kernel - 1) + 1)) / stride) + 1

    def refuse_fused(self) -> None:
        """Intel's fused nets hide a ReLU or a sum in the convolution."""
        for name in ("relu", "coeff"):
            if getattr(self.param, name):
                raise UnsupportedLayer(
                    f"{self}: {name} is set: a layer of Intel's Caffe with another one fused in; use the unfused net"
                )


@register("Convolution")
class Convolution(Convolutional):
    """Cross-correlation with zero padding, in any number of dimensions.

    Shapes   bottoms (N.., C, spatial..) -> tops (N.., num_output, spatial..), (i + 2 pad - dilation (k-1) - 1) //
             stride + 1 each
    Params   num_output; kernel_size, stride 1, pad 0, dilation 1 (pixels; once, or once per axis, or _h and _w); group
             1;
             bias_term true; axis 1: the channel axis, all before it is batch
    Blobs    weight (num_output, C / group, kernel..), bias (num_output)
    Raises   ShapeError: channels do not divide by group, input smaller than the kernel, half-given pairs
    PyTorch  nn.Conv1d, nn.Conv2d, nn.Conv3d, equal. ONNX: Conv, equal.
    Source   BVLC Caffe 1.0, src/caffe/layers/base_conv_layer.cpp, conv_layer.cpp
    """

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        self.refuse_fused()
        axis, _ = self.geometry(bottoms)
        if len(self.spec.top) != len(bottoms):
            raise ShapeError(f"{self}: {len(bottoms)} bottoms need as many tops, not {len(self.spec.top)}")
        shape = bottoms[0]
        return [(*shape[:axis], self.outputs(bottoms), *self.sizes(shape[axis + 1 :]))] * len(bottoms)

    def outputs(self, bottoms: list[Shape]) -> int:
        if not self.param.num_output:
            raise ShapeError(f"{self}: num_output is missing or 0")
        return int(self.param.num_output)

    def channels(self, bottoms: list[Shape]) -> int:
        axis, rank = self.geometry(bottoms)
        stored = self.stored_shape(0, rank + 2)
        per_group = 0 if self.transposed else 1
        known = stored[per_group] * (self.groups(bottoms) if per_group else 1) if stored else None
        return self.known(bottoms[0][axis], known, "its number of input channels")

    def groups(self, bottoms: list[Shape]) -> int:
        return int(self.param.group)

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        channels, group, outputs = self.channels(bottoms), self.groups(bottoms), self.outputs(bottoms)
        if group < 1 or channels % group or outputs % group:
            raise ShapeError(f"{self}: {channels} input and {outputs} output channels do not divide by group {group}")
        kernel, *_ = self.window(self.geometry(bottoms)[1])
        first = (channels, outputs // group) if self.transposed else (outputs, channels // group)
        weight = Blob("weight", (*first, *kernel), self.param.weight_filler)
        return [weight, Blob("bias", (outputs,), self.param.bias_filler)] if self.param.bias_term else [weight]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        from ..modules.convolution import LooseConv

        axis, rank = self.geometry(bottoms)
        kernel, stride, pad, dilation = self.window(rank)
        channels, outputs, bias = self.channels(bottoms), self.outputs(bottoms), bool(self.param.bias_term)
        group = self.groups(bottoms)
        fits = all(
            i is None or i + 2 * p >= d * (k - 1) + 1
            for i, k, p, d in zip(bottoms[0][axis + 1 :], kernel, pad, dilation, strict=True)
        )
        if axis == 1 and 1 <= rank <= 3 and fits and all(dilation):
            stock = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
            return stock(channels, outputs, kernel, stride, pad, dilation, group, bias)  # type: ignore[arg-type]
        return LooseConv(channels, outputs, kernel, stride, pad, dilation, group, bias, axis)

    def multiply_adds(self, bottoms: list[Shape], tops: list[Shape]) -> int | None:
        weight = self.blobs(bottoms)[0].shape
        per_output = prod(weight[1:])
        outputs = count(tops[0])
        return None if outputs is None else outputs * per_output * len(tops)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        if not self.spec.top:
            return []
        axis, rank = self.geometry(bottoms)
        kernel, _, pad, dilation = self.window(rank)
        found = []
        for i, k, p, d in zip(bottoms[0][axis + 1 :], kernel, pad, dilation, strict=True):
            if i is not None and i + 2 * p < d * (k - 1) + 1:
                found.append(
                    Quirk(
                        self.key,
                        "the kernel is larger than the padded input and still gives one output",
                        "computed with zeros outside",
                    )
                )
        return found[:1]

    def pads(self, spatial: Shape) -> Shape:
        """Padding before and after each axis; more after it where a kernel exceeds the padded input."""
        kernel, _, pad, dilation = self.window(len(spatial))
        after = []
        for i, k, p, d in zip(spatial, kernel, pad, dilation, strict=True):
            over = 0 if i is None or self.transposed else max(d * (k - 1) + 1 - i - 2 * p, 0)
            after.append(p + over)
        return (*pad, *after)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        shapes = [bottom.shape for bottom in bottoms]
        axis, rank = self.geometry(shapes)
        kernel, stride, _, dilation = self.window(rank)
        weight, bias = graph.weight("weight"), graph.weight("bias") if self.param.bias_term else None
        still = [2 + i for i, d in enumerate(dilation) if not d]
        if still:  # all taps read the same place
            weight = graph.call("ReduceSum", weight, graph.axes(*still), keepdims=1)
            kernel = tuple(k if d else 1 for k, d in zip(kernel, dilation, strict=True))
        if not rank:  # a product over the channels, as a convolution of one pixel
            weight = graph.weight("weight", (*weight.shape, 1))  # type: ignore[arg-type]
        tops = []
        for x, top in zip(bottoms, self.tops(shapes), strict=True):
            plain = axis == 1 and rank
            y = x if plain else graph.reshape(x, [None, *x.shape[axis:], *(1,) * (not rank)])
            y = graph.call(
                "ConvTranspose" if self.transposed else "Conv", y, weight, bias,
                kernel_shape=kernel or (1,), strides=stride or (1,), pads=self.pads(x.shape[axis + 1 :]) or (0, 0),
                dilations=tuple(max(d, 1) for d in dilation) or (1,), group=self.groups(shapes),
            )  # fmt: skip
            tops.append(y if plain else graph.reshape(y, top))
        return tops


@register("Deconvolution")
class Deconvolution(Convolution):
    """Transposed convolution.

    Shapes   bottoms (N, C, spatial..) -> tops (N, num_output, spatial..), stride (i-1) + dilation (k-1) + 1 - 2 pad
             each
    Params   as Convolution; num_output counts output channels
    Blobs    weight (C, num_output / group, kernel..), bias (num_output)
    Raises   ShapeError: as Convolution; an output below 1
    PyTorch  nn.ConvTranspose1d to 3d, equal (output_padding 0). ONNX: ConvTranspose, equal.
    Source   BVLC Caffe 1.0, src/caffe/layers/deconv_layer.cpp
    """

    transposed = True

    def size(self, size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
        return stride * (size - 1) + dilation * (kernel - 1) + 1 - 2 * pad

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        from ..modules.convolution import LooseConvTranspose

        axis, rank = self.geometry(bottoms)
        kernel, stride, pad, dilation = self.window(rank)
        channels, outputs, bias = self.channels(bottoms), self.outputs(bottoms), bool(self.param.bias_term)
        group = self.groups(bottoms)
        if axis == 1 and 1 <= rank <= 3 and all(dilation):
            stock = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
            return stock(channels, outputs, kernel, stride, pad, 0, group, bias, dilation)  # type: ignore[arg-type]
        return LooseConvTranspose(channels, outputs, kernel, stride, pad, dilation, group, bias, axis)

    def multiply_adds(self, bottoms: list[Shape], tops: list[Shape]) -> int | None:
        weight = self.blobs(bottoms)[0].shape
        inputs = count(bottoms[0])
        return None if inputs is None else inputs * prod(weight[1:]) * len(tops)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        return []


@register("Im2col")
class Im2col(Convolutional):
    """The windows of a convolution as columns.

    Shapes   bottom (N, C, H, W) -> top (N, C kh kw, oh, ow); channel c kh kw + row kw + column
    Params   kernel_size, stride, pad, dilation as Convolution
    PyTorch  F.unfold and a reshape, equal. ONNX: Conv with one-hot weights.
    Source   BVLC Caffe 1.0, src/caffe/layers/im2col_layer.cpp
    """

    bottom_count = (1, 1)
    top_count = (1, 1)
    moves = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        axis, rank = self.geometry(bottoms)
        if not rank:
            raise ShapeError(f"{self}: no axes behind channel axis {axis} of a bottom of shape {text(bottoms[0])}")
        kernel, *_ = self.window(rank)
        channels = bottoms[0][axis]
        columns = None if channels is None else channels * prod(kernel)
        return [(*bottoms[0][:axis], columns, *self.sizes(bottoms[0][axis + 1 :]))]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.convolution import Im2col as Module

        axis, rank = self.geometry(bottoms)
        kernel, stride, pad, dilation = self.window(rank)
        return Module(kernel, stride, pad, dilation, axis)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        axis, rank = self.geometry([bottoms[0].shape])
        kernel, stride, pad, dilation = self.window(rank)
        channels, taps = bottoms[0].shape[axis], prod(kernel)
        if axis != 1 or channels is None or not all(dilation):
            raise graph.refuse("only with axis 1, known channels and a dilation above 0")
        chosen = np.tile(np.eye(taps, dtype=np.float32), (channels, 1)).reshape(channels * taps, 1, *kernel)
        sizes = {"kernel_shape": kernel, "strides": stride, "pads": (*pad, *pad), "dilations": dilation}
        return [graph.call("Conv", *bottoms, graph.constant(chosen), group=channels, **sizes)]
