"""Layers of the mobile nets and SENet, and of the sequence forks."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import ShapeError
from .base import Array, Layer, Shape, Size, compatible, register, text
from .convolution import Convolution

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue
    from ..export.source import SourceWriter


@register("ReLU6")
class ReLU6(Layer):
    """min(max(x, 0) + negative_slope * min(x, 0), 6).

    Shapes   bottom -> top, same
    Params   negative_slope 0
    PyTorch  nn.ReLU6, equal; own module with a slope. ONNX: Clip; LeakyRelu and Min.
    Source   chuanqi305/ssd and eric612/MobileNet-YOLO, src/caffe/layers/relu6_layer.cpp
    """

    param_field = "relu6_param"

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        from ..modules.mobile import LeakyReLU6

        slope = self.param.negative_slope
        return LeakyReLU6(slope) if slope else nn.ReLU6()

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        slope = self.param.negative_slope
        low = None if slope else graph.constant(0.0)
        x = graph.call("LeakyRelu", *bottoms, alpha=slope) if slope else bottoms[0]
        return [graph.call("Clip", x, low, graph.constant(6.0))]


@register("DepthwiseConvolution")
class DepthwiseConvolution(Convolution):
    """Convolution; where no group is given, weights with one channel a filter make it one group for each channel.

    Shapes   as Convolution
    Params   as Convolution; without group, depthwise if the stored weights are (C, 1, kh, kw), else group 1
    Blobs    weight (num_output, C / group, kh, kw), bias (num_output)
    Raises   ShapeError: as Convolution
    PyTorch  nn.Conv2d with groups, equal. ONNX: Conv.
    Source   yonghenglh6/DepthwiseConvolution, depthwise_conv_layer.cpp
    """

    def groups(self, bottoms: list[Shape]) -> int:
        channels = bottoms[0][self.geometry(bottoms)[0]]
        stored = self.stored_shape(0, self.geometry(bottoms)[1] + 2)
        if not self.param.HasField("group") and stored and stored[1] == 1:
            return stored[0] if channels is None else channels
        return int(self.param.group)


@register("ConvolutionDepthwise")
class ConvolutionDepthwise(Convolution):
    """Convolution with one filter for each channel; group and num_output are not read.

    Shapes   bottom (N, C, H, W) -> top (N, C, h, w), sizes as Convolution
    Params   kernel_size, stride 1, pad 0, dilation 1, bias_term true, as Convolution
    Blobs    weight (C, 1, kh, kw), bias (C)
    Raises   ShapeError: input smaller than the kernel, half-given pairs
    PyTorch  nn.Conv2d with a group for each channel, equal. ONNX: Conv.
    Source   openvinotoolkit/training_toolbox_caffe, src/caffe/layers/conv_dw_layer.cpp
    """

    def channels(self, bottoms: list[Shape]) -> int:
        stored = self.stored_shape(0, self.geometry(bottoms)[1] + 2)
        return self.known(
            bottoms[0][self.geometry(bottoms)[0]], stored[0] if stored else None, "its number of input channels"
        )

    def groups(self, bottoms: list[Shape]) -> int:
        return self.channels(bottoms)

    def outputs(self, bottoms: list[Shape]) -> int:
        return self.channels(bottoms)


@register("ShuffleChannel")
class ShuffleChannel(Layer):
    """Interleave the channels of `group` groups.

    Shapes   bottom (N, C, ...) -> top, same; channel j * group + i is channel i * C / group + j of the bottom
    Params   group 1
    Raises   ShapeError: C is no multiple of group
    PyTorch  nn.ChannelShuffle, equal. ONNX: Reshape, Transpose, Reshape.
    Source   farmingyard/ShuffleNet, shuffle_channel_layer.cpp
    """

    param_field = "shuffle_channel_param"
    fresh = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape, group = bottoms[0], self.param.group
        if len(shape) < 3 or group < 1 or (shape[1] is not None and shape[1] % group):
            raise ShapeError(f"{self}: wants N x C x ..., C a multiple of group {group}; bottom is {text(shape)}")
        return bottoms[:1]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        return nn.ChannelShuffle(self.param.group)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), group = bottoms, self.param.group
        rank, channels = len(x.shape), x.shape[1]
        split = graph.view(x, [0, Size(group), -1 if channels is None else Size(channels // group), *range(2, rank)])
        swapped = graph.call("Transpose", split, perm=(0, 2, 1, *range(3, rank + 1)))
        if x.shape.count(None) > 1:
            return [graph.call("Reshape", swapped, graph.sizes(x))]
        return [graph.reshape(swapped, x.shape)]


@register("Axpy")
class Axpy(Layer):
    """a * x + y, a holding one number for each channel.

    Shapes   a (N, C [, 1, 1]), x (N, C, H, W), y (N, C, H, W) -> top (N, C, H, W)
    Raises   ShapeError: shapes that do not fit
    PyTorch  own module: torch.addcmul. ONNX: Mul, Add.
    Source   hujie-frank/SENet, src/caffe/layers/axpy_layer.cpp
    """

    bottom_count = (3, 3)
    fresh = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        a, x, y = bottoms
        if len(x) < 2 or not compatible(x, y) or not compatible(a[:2], x[:2]) or any(n not in (None, 1) for n in a[2:]):
            raise ShapeError(
                f"{self}: a must be N x C, x and y N x C x H x W; they are {text(a)}, {text(x)} and {text(y)}"
            )
        return [x]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.mobile import Axpy as Module

        return Module()

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        a, x, y = bottoms
        after = len(x.shape) - len(a.shape)
        if after:
            a = graph.call("Unsqueeze", a, graph.axes(*range(len(a.shape), len(x.shape))))
        return [graph.call("Add", graph.call("Mul", x, a), y)]


@register("GRN")
class GRN(Layer):
    """Divide by the Euclidean norm of each pixel's channels.

    y = x / sqrt(sum(x^2) + bias)

    Shapes   bottom (N, C, ...) -> top, same
    Params   bias 1
    Raises   ShapeError: one axis only
    PyTorch  own module. ONNX: ReduceSumSquare, Add, Sqrt, Div.
    Source   openvinotoolkit/training_toolbox_caffe, src/caffe/layers/grn_layer.cpp
    """

    param_field = "grn_param"
    fresh = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if len(bottoms[0]) < 2:
            raise ShapeError(f"{self}: wants at least 2 axes, bottom is {text(bottoms[0])}")
        return bottoms[:1]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.mobile import GRN as Module

        return Module(self.param.bias)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,) = bottoms
        energy = graph.call("ReduceSumSquare", x, graph.axes(1), keepdims=1)
        return [graph.call("Div", x, graph.call("Sqrt", graph.call("Add", energy, graph.constant(self.param.bias))))]


@register("Reverse")
class Reverse(Layer):
    """Backwards along one axis.

    Shapes   bottom -> top, same
    Params   axis 0
    Raises   ShapeError: no such axis
    PyTorch  torch.flip, equal. ONNX: Slice with step -1.
    Source   kendryte/caffe, src/caffe/layers/reverse_layer.cpp
    """

    param_field = "reverse_param"
    fresh = True
    in_place = False

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.batch_independent = self.param.axis != 0  # type: ignore[misc]

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        self.axis(self.param.axis, bottoms[0])
        return bottoms[:1]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.mobile import Reverse as Module

        return Module(self.param.axis)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        axis = self.axis(self.param.axis, bottoms[0].shape)
        start, end, step = graph.axes(-1), graph.axes(-(2**63) + 1), graph.axes(-1)
        return [graph.call("Slice", *bottoms, start, end, graph.axes(axis), step)]


@register("ContinuationIndicator")
class ContinuationIndicator(Layer):
    """The markers that a recurrent layer wants: 0 at the first step, 1 at the others.

    Shapes   no bottom -> top (time_step, batch_size)
    Params   time_step, batch_size
    Raises   ShapeError: one of them is missing or 0
    PyTorch  a constant buffer. ONNX: an initializer.
    Source   kendryte/caffe, src/caffe/layers/continuation_indicator_layer.cpp
    """

    param_field = "continuation_indicator_param"
    bottom_count = (0, 0)
    batch_independent = False

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        steps, batch = self.param.time_step, self.param.batch_size
        if not steps or not batch or steps * batch >= 2**31:
            raise ShapeError(
                f"{self}: time_step {steps} and batch_size {batch} must be above 0, and what Caffe can hold"
            )
        return [(steps, batch)]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.data import Constant

        return Constant([self.markers()])

    def markers(self) -> Array:
        markers = np.ones((self.param.time_step, self.param.batch_size), np.float32)
        markers[0] = 0
        return markers

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return [graph.constant(self.markers())]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        return writer.buffers([self.markers()])
