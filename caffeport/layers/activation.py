"""Elementwise functions of one bottom."""

import math
from typing import TYPE_CHECKING

from ..errors import ShapeError
from .base import FLOAT, Array, Blob, Layer, Quirk, Shape, constant, register, text

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue
    from ..export.source import SourceWriter


@register("ReLU")
class ReLU(Layer):
    """max(x, 0) + negative_slope * min(x, 0).

    Shapes   bottom -> top, same
    Params   negative_slope 0
    PyTorch  nn.ReLU or nn.LeakyReLU, equal for finite values. ONNX: Relu, LeakyRelu.
    Source   BVLC Caffe 1.0, src/caffe/layers/relu_layer.cpp
    """

    wraps = True
    param_field = "relu_param"

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.overwrites = not self.param.negative_slope  # type: ignore[misc]

    def exact(self) -> bool:
        return not self.param.negative_slope

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        slope = self.param.negative_slope
        return nn.LeakyReLU(slope) if slope else nn.ReLU()

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        slope = self.param.negative_slope
        return [graph.call("LeakyRelu", *bottoms, alpha=slope) if slope else graph.call("Relu", *bottoms)]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        slope = self.param.negative_slope
        return [f"F.leaky_relu({bottoms[0]}, {writer.number(slope)})" if slope else f"F.relu({bottoms[0]})"]


@register("PReLU")
class PReLU(Layer):
    """max(x, 0) + a * min(x, 0) with a learned slope for each channel, or one for all.

    Shapes   bottom (N, C, ...) -> top, same
    Params   channel_shared false; filler constant 0.25
    Blobs    weight (C), or a scalar where shared
    PyTorch  nn.PReLU, equal. ONNX: PRelu with the slope shaped (C, 1, 1).
    Source   BVLC Caffe 1.0, src/caffe/layers/prelu_layer.cpp
    """

    param_field = "prelu_param"

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if len(bottoms[0]) < 2:
            raise ShapeError(f"{self}: wants at least 2 axes, bottom is {text(bottoms[0])}")
        return bottoms[:1]

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        filler = self.param.filler if self.param.HasField("filler") else constant(0.25)
        if self.param.channel_shared:
            return [Blob("weight", (), filler)]
        stored = self.stored_shape(0, 1)
        return [
            Blob(
                "weight", (self.known(bottoms[0][1], stored[0] if stored else None, "its number of channels"),), filler
            )
        ]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        return nn.PReLU(*self.blobs(bottoms)[0].shape or (1,))

    def weights(self, blobs: dict[str, Array]) -> dict[str, Array]:
        return {"weight": blobs["weight"].reshape(-1)}  # nn.PReLU wants one axis for a shared slope too

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        rank = len(bottoms[0].shape)
        shape = self.blobs([bottoms[0].shape])[0].shape
        return [graph.call("PRelu", *bottoms, graph.weight("weight", (*shape, *(1,) * (rank - 2)) if shape else (1,)))]


def shifted(graph: "OnnxGraph", x: "OnnxValue", scale: float, shift: float) -> "OnnxValue":
    """x * scale + shift in ONNX, without what changes nothing."""
    if scale != 1:
        x = graph.call("Mul", x, graph.constant(float(scale)))
    return x if shift == 0 else graph.call("Add", x, graph.constant(float(shift)))


class _Function(Layer):
    """Base of functions that a module of caffeport.modules.activation computes from their parameters."""

    function = ""
    fields: tuple[str, ...] = ()

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules import activation

        module: nn.Module = getattr(activation, self.function)(*(getattr(self.param, name) for name in self.fields))
        return module


@register("ELU")
class ELU(Layer):
    """max(x, 0) + alpha * (exp(min(x, 0)) - 1).

    Shapes   bottom -> top, same
    Params   alpha 1
    PyTorch  nn.ELU, within 1e-7 (expm1). ONNX: Elu.
    Source   BVLC Caffe 1.0, src/caffe/layers/elu_layer.cpp
    """

    wraps = True
    param_field = "elu_param"

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        return nn.ELU(self.param.alpha)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return [graph.call("Elu", *bottoms, alpha=self.param.alpha)]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        alpha = self.param.alpha
        return [f"F.elu({bottoms[0]})" if alpha == 1 else f"F.elu({bottoms[0]}, {writer.number(alpha)})"]


@register("Sigmoid")
class Sigmoid(Layer):
    """1 / (1 + exp(-x)).

    Shapes   bottom -> top, same
    PyTorch  nn.Sigmoid, equal; later Caffe builds compute it through tanh, with an absolute error of 3e-8. ONNX:
             Sigmoid.
    Source   BVLC Caffe 1.0, src/caffe/layers/sigmoid_layer.cpp
    """

    wraps = True
    operator = "Sigmoid"
    noise_floor = 2.0**-25  # later builds of Caffe compute it through tanh

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        return nn.Sigmoid()

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        return [f"torch.sigmoid({bottoms[0]})"]


@register("TanH")
class TanH(Layer):
    """Hyperbolic tangent.

    Shapes   bottom -> top, same
    PyTorch  nn.Tanh, equal. ONNX: Tanh.
    Source   BVLC Caffe 1.0, src/caffe/layers/tanh_layer.cpp
    """

    wraps = True
    operator = "Tanh"

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        return nn.Tanh()

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        return [f"torch.tanh({bottoms[0]})"]


@register("BNLL")
class BNLL(Layer):
    """log(1 + exp(x)), the binomial negative log likelihood.

    Shapes   bottom -> top, same
    PyTorch  nn.Softplus, within 2e-9 above 20. ONNX: Softplus.
    Source   BVLC Caffe 1.0, src/caffe/layers/bnll_layer.cpp
    """

    wraps = True
    operator = "Softplus"

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        return nn.Softplus()

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        return [f"F.softplus({bottoms[0]})"]


@register("Swish")
class Swish(_Function):
    """x * sigmoid(beta * x).

    Shapes   bottom -> top, same
    Params   beta 1
    PyTorch  nn.SiLU for beta 1, own module elsewhere. ONNX: Mul, Sigmoid, Mul.
    Source   BVLC Caffe after 1.0, src/caffe/layers/swish_layer.cpp
    """

    param_field = "swish_param"
    function = "Swish"
    fields = ("beta",)

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        return nn.SiLU() if self.param.beta == 1 else super().module(bottoms)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,) = bottoms
        scaled = x if self.param.beta == 1 else graph.call("Mul", x, graph.constant(self.param.beta))
        return [graph.call("Mul", x, graph.call("Sigmoid", scaled))]


@register("Clip")
class Clip(_Function):
    """x limited to min..max; NaN becomes min.

    Shapes   bottom -> top, same
    Params   min, max: both required
    Raises   ShapeError: one of them is missing
    PyTorch  torch.clamp keeps NaN, Caffe does not. ONNX: Clip.
    Source   BVLC Caffe after 1.0, src/caffe/layers/clip_layer.cpp
    """

    param_field = "clip_param"
    function = "Clip"
    fields = ("min", "max")
    moves = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if not (self.param.HasField("min") and self.param.HasField("max")):
            raise ShapeError(f"{self}: clip_param must give both min and max")
        return bottoms[:1]

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return [graph.call("Clip", *bottoms, graph.constant(self.param.min), graph.constant(self.param.max))]


@register("AbsVal")
class AbsVal(_Function):
    """Absolute value.

    Shapes   bottom -> top, same; not in place
    PyTorch  torch.abs, equal. ONNX: Abs.
    Source   BVLC Caffe 1.0, src/caffe/layers/absval_layer.cpp
    """

    wraps = True
    operator = "Abs"
    function = "AbsVal"
    in_place = False
    moves = True

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        return [f"torch.abs({bottoms[0]})"]


@register("Power")
class Power(_Function):
    """(shift + scale * x) ^ power.

    Shapes   bottom -> top, same
    Params   power 1, scale 1, shift 0
    PyTorch  a few elementwise operations, equal; constant for every x, NaN too, where power * scale is 0. ONNX: Mul,
             Add, Pow.
    Source   BVLC Caffe 1.0, src/caffe/layers/power_layer.cpp
    """

    param_field = "power_param"
    function = "Power"
    fields = ("power", "scale", "shift")

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), p = bottoms, self.param
        if p.power * p.scale == 0:
            return [graph.filled_like(x, 1.0 if p.power == 0 else p.shift**p.power)]
        x = shifted(graph, x, p.scale, p.shift)
        if p.power != 1:
            return [graph.call("Pow", x, graph.constant(p.power))]
        return [x if x is not bottoms[0] else graph.call("Identity", x)]


@register("Exp")
class Exp(_Function):
    """base ^ (shift + scale * x).

    Shapes   bottom -> top, same
    Params   base -1 (e), scale 1, shift 0
    Raises   ShapeError: base neither -1 nor above 0
    PyTorch  torch.exp of a scaled x, equal. ONNX: Mul, Exp, Mul.
    Source   BVLC Caffe 1.0, src/caffe/layers/exp_layer.cpp
    """

    param_field = "exp_param"
    function = "Exp"
    fields = ("base", "scale", "shift")

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if self.param.base != -1 and self.param.base <= 0:
            raise ShapeError(f"{self}: base is {self.param.base}, must be -1 (e) or above 0")
        return bottoms[:1]

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        log = 1.0 if self.param.base == -1 else math.log(self.param.base)
        y = graph.call("Exp", shifted(graph, bottoms[0], log * self.param.scale, 0.0))
        return [shifted(graph, y, math.exp(log * self.param.shift), 0.0)]


@register("Log")
class Log(Exp):
    """log of (shift + scale * x) to a base.

    Shapes   bottom -> top, same
    Params   base -1 (e), scale 1, shift 0
    Raises   ShapeError: base neither -1 nor above 0, or 1
    PyTorch  torch.log, scaled; NaN for negative arguments. ONNX: Mul, Add, Log, Mul.
    Source   BVLC Caffe 1.0, src/caffe/layers/log_layer.cpp
    """

    param_field = "log_param"
    function = "Log"

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if self.param.base == 1:
            raise ShapeError(f"{self}: no logarithm has base 1")
        return super().tops(bottoms)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        p = self.param
        y = graph.call("Log", shifted(graph, bottoms[0], p.scale, p.shift))
        return [y if p.base == -1 else shifted(graph, y, 1 / math.log(p.base), 0.0)]


@register("Threshold")
class Threshold(_Function):
    """1 where x > threshold, else 0.

    Shapes   bottom -> top, same
    Params   threshold 0
    PyTorch  a comparison; nn.Threshold is another function. ONNX: Greater, Cast.
    Source   BVLC Caffe 1.0, src/caffe/layers/threshold_layer.cpp
    """

    param_field = "threshold_param"
    function = "Threshold"
    fields = ("threshold",)
    differentiable = False
    moves = True

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return [graph.call("Cast", graph.call("Greater", *bottoms, graph.constant(self.param.threshold)), to=FLOAT)]


@register("Dropout")
class Dropout(Layer):
    """A copy in TEST phase.

    Shapes   bottom -> top, same
    Params   dropout_ratio 0.5; scale_train true (Faster R-CNN's fork; false: TEST multiplies by 1 - ratio)
    PyTorch  nn.Dropout in eval mode, equal. ONNX: nothing.
    Source   BVLC Caffe 1.0, src/caffe/layers/dropout_layer.cpp
    """

    param_field = "dropout_param"

    @property
    def passes_on(self) -> bool:  # type: ignore[override]
        return bool(self.param.scale_train)

    def exact(self) -> bool:
        return bool(self.param.scale_train)

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        from ..modules.activation import Power as Scaled

        if not self.param.scale_train:
            return Scaled(1.0, 1.0 - self.param.dropout_ratio, 0.0)
        return nn.Dropout(self.param.dropout_ratio)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        if self.param.sample_weights_test:
            return [
                Quirk(
                    self.key,
                    "SegNet's sample_weights_test keeps dropout active in TEST",
                    "not reproduced: the layer is a copy",
                )
            ]
        return []

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return bottoms if self.param.scale_train else [shifted(graph, bottoms[0], 1.0 - self.param.dropout_ratio, 0.0)]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        return bottoms if self.param.scale_train else super().source(writer, bottoms)
