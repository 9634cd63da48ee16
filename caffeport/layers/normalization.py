"""Normalisation: LRN, BatchNorm, Scale, Bias, MVN, Softmax."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import ShapeError
from .base import Array, Blob, Layer, Quirk, Shape, compatible, constant, register, text

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue
    from ..export.source import SourceWriter


@register("LRN")
class LRN(Layer):
    """Divide each value by the energy of its neighbours: along the channels, or in a window of the plane.

    y = x / (k + alpha / n * sum(x^2)) ^ beta over n channels; WITHIN_CHANNEL: x / (1 + alpha / n^2 * sum(x^2)) ^ beta
    over n x n pixels

    Shapes   bottom (N, C, H, W) -> top, same
    Params   local_size 5 (n, odd), alpha 1, beta 0.75, k 1; norm_region ACROSS_CHANNELS
    Raises   ShapeError: local_size is even, not 4 axes
    PyTorch  nn.LocalResponseNorm, equal; own module within a channel, where k is not used. ONNX: LRN; composed within
             a channel.
    Source   BVLC Caffe 1.0, src/caffe/layers/lrn_layer.cpp
    """

    param_field = "lrn_param"
    fresh = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if self.param.local_size % 2 == 0 or self.param.local_size >= 2**31:
            raise ShapeError(f"{self}: local_size is {self.param.local_size}, must be odd and below 2^31")
        if len(bottoms[0]) != 4:
            raise ShapeError(f"{self}: wants 4 axes, bottom is {text(bottoms[0])}")
        return bottoms[:1]

    @property
    def within(self) -> bool:
        return bool(self.param.norm_region == 1)

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.normalization import InPlaceLRN, LocalResponseNorm, WithinChannelLRN

        p = self.param
        if self.within:
            return WithinChannelLRN(p.local_size, p.alpha, p.beta)
        if self.spec.bottom[0] == self.spec.top[0]:
            return InPlaceLRN(p.local_size, p.alpha, p.beta, p.k)
        return LocalResponseNorm(p.local_size, p.alpha, p.beta, p.k)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        found = []
        if self.within:
            found.append(
                Quirk(
                    self.key,
                    "within a channel alpha is divided by n^2 and k is not used",
                    "own module; a cuDNN build of Caffe uses k",
                )
            )
        elif self.spec.bottom[0] == self.spec.top[0]:
            found.append(
                Quirk(
                    self.key,
                    "in place, Caffe on a CPU loses x and gives (k + ...)^(-2 beta)",
                    "reproduced; Caffe on a GPU does not",
                )
            )
        return found

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), p = bottoms, self.param
        half = p.local_size // 2
        if self.within:
            pool = {"kernel_shape": (p.local_size,) * 2, "pads": (half,) * 4, "count_include_pad": 1}
            mean = graph.call("AveragePool", graph.call("Mul", x, x), **pool)
            base = graph.call("Add", graph.call("Mul", mean, graph.constant(p.alpha)), graph.constant(1.0))
            return [graph.call("Mul", x, graph.call("Pow", base, graph.constant(-p.beta)))]
        if self.spec.bottom[0] != self.spec.top[0]:
            return [graph.call("LRN", x, size=p.local_size, alpha=p.alpha, beta=p.beta, bias=p.k)]
        energy = graph.call("Unsqueeze", graph.call("Mul", x, x), graph.axes(1))  # the channels as an axis to pool over
        pool = {"kernel_shape": (p.local_size, 1, 1), "pads": (half, 0, 0, half, 0, 0), "count_include_pad": 1}
        mean = graph.call("Squeeze", graph.call("AveragePool", energy, **pool), graph.axes(1))
        base = graph.call("Add", graph.call("Mul", mean, graph.constant(p.alpha)), graph.constant(p.k))
        return [graph.call("Pow", base, graph.constant(-2.0 * p.beta))]


@register("BatchNorm")
class BatchNorm(Layer):
    """Subtract the mean of each channel and divide by its standard deviation, both stored.

    y = (x - mean / f) / sqrt(variance / f + eps); a factor f of 0 counts mean and variance as 0

    Shapes   bottom (N, C, ...) -> top, same; at least 2 axes
    Params   use_global_stats true (TEST); false: statistics of the batch. eps 1e-5
    Blobs    mean, variance (C), factor (1); NVIDIA's and Intel's forks add scale and bias (C)
    Raises   ShapeError: one axis only
    PyTorch  nn.BatchNorm, with the sums divided by the factor when weights are loaded. ONNX: BatchNormalization.
    Source   BVLC Caffe 1.0, src/caffe/layers/batch_norm_layer.cpp
    """

    param_field = "batch_norm_param"
    fresh = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if len(bottoms[0]) < 2:
            raise ShapeError(f"{self}: wants at least 2 axes, bottom is {text(bottoms[0])}")
        return bottoms[:1]

    @property
    def layout(self) -> tuple[str, ...]:
        """Names of the stored arrays in order; forks that keep scale and bias here have five."""
        count = len(self.stored) if self.stored is not None else 5 if self.param.scale_bias else 3
        if (
            count == 5
            and self.stored is not None
            and np.prod(self.stored[4].shape) == 1 != np.prod(self.stored[2].shape)
        ):
            return ("weight", "bias", "mean", "variance", "factor")  # NVIDIA 0.15
        return (
            ("mean", "variance", "factor", "weight", "bias")[:count]
            if count in (4, 5)
            else ("mean", "variance", "factor")
        )

    @property
    def batch_statistics(self) -> bool:
        return self.param.HasField("use_global_stats") and not self.param.use_global_stats

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        # A single-channel factor and mean have one shape, so the channel count comes from the first array.
        stored = self.stored_shape(0, 1)
        channels = self.known(bottoms[0][1], stored[0] if stored else None, "its number of channels")
        ones = constant(1.0)
        return [
            Blob(name, (1,) if name == "factor" else (channels,), ones if name == "weight" else constant(0.0))
            for name in self.layout
        ]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        from ..modules.normalization import BatchStatistics

        channels, affine = self.blobs(bottoms)[0].shape[0], len(self.layout) > 3
        eps = max(self.param.eps, 1e-5) if affine else self.param.eps
        rank = len(bottoms[0])
        if self.batch_statistics and not affine:
            return BatchStatistics(channels, eps)
        stock = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
        if rank not in stock:
            raise ShapeError(f"{self}: bottom {text(bottoms[0])} has {rank} axes; up to 5 are supported")
        return stock[rank](channels, eps, affine=affine)

    def weights(self, blobs: dict[str, Array]) -> dict[str, Array]:
        mean, variance = blobs["mean"], blobs["variance"]
        if len(self.layout) < 5:
            factor = float(blobs["factor"].reshape(-1)[0])
            scale = np.float32(0 if factor == 0 else 1 / factor)
            mean, variance = mean * scale, variance * scale
        state = {"running_mean": mean, "running_var": variance}
        if "weight" in blobs:
            state["weight"] = blobs["weight"]
            state["bias"] = blobs["bias"] if "bias" in blobs else np.zeros_like(blobs["weight"])
        return state

    def affine_with(self, after: Layer) -> bool:
        return (
            isinstance(after, Scale)
            and len(self.layout) == 3
            and not self.batch_statistics
            and len(after.spec.bottom) == 1
            and after.param.axis == 1
            and after.param.num_axes == 1
        )

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        found = []
        if self.batch_statistics and len(self.layout) == 3:
            found.append(
                Quirk(
                    self.key,
                    "use_global_stats: false: the statistics of the batch, also in TEST",
                    "own module without stored statistics",
                )
            )
        elif (
            self.stored
            and self.layout[:3] == ("mean", "variance", "factor")
            and len(self.stored) == 3
            and not self.stored[2].array.any()
        ):
            found.append(
                Quirk(
                    self.key,
                    "the stored factor is 0: mean and variance count as 0, x is divided by sqrt(eps)",
                    "as Caffe; the net is probably untrained or badly converted",
                )
            )
        return found

    def warnings(self) -> list[str]:
        if self.batch_statistics and len(self.layout) == 3:
            return [
                (
                    "use_global_stats: false normalises by the batch in hand, so that an answer depends on what else "
                    "is in the batch; for prediction remove that line, unless it is meant"
                )
            ]
        stored = dict(zip(self.layout, self.stored or (), strict=False))
        zero = {name for name, blob in stored.items() if not blob.array.any()}
        if zero & {"factor", "variance"}:
            rest = "statistics are" if "mean" in zero else "variance is"
            what = "factor is 0" if "factor" in zero else f"{rest} all zero"
            by = max(self.param.eps, np.finfo(np.float32).tiny) ** -0.5
            return [
                (
                    f"the stored {what}, so that the layer multiplies by {by:.0f}, as in Caffe; the file is untrained, "
                    "or its converter left the statistics out"
                )
            ]
        return []

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,) = bottoms
        affine = len(self.layout) > 3
        eps = max(self.param.eps, 1e-5) if affine else self.param.eps
        if self.batch_statistics and not affine:
            axes = graph.axes(*(axis for axis in range(len(x.shape)) if axis != 1))
            d = graph.call("Sub", x, graph.call("ReduceMean", x, axes, keepdims=1))
            variance = graph.call("ReduceMean", graph.call("Mul", d, d), axes, keepdims=1)
            return [graph.call("Div", d, graph.call("Sqrt", graph.call("Add", variance, graph.constant(eps))))]
        channels = self.blobs([x.shape])[0].shape
        weight = graph.weight("weight") if affine else graph.constant(np.ones(channels, np.float32))
        bias = graph.weight("bias") if affine else graph.constant(np.zeros(channels, np.float32))
        mean, variance = graph.weight("running_mean"), graph.weight("running_var")
        return [graph.call("BatchNormalization", x, weight, bias, mean, variance, epsilon=eps)]


def laid(graph: "OnnxGraph", x: "OnnxValue", after: int) -> "OnnxValue":
    """x in ONNX with `after` axes of size 1 behind its own; a scalar needs none."""
    rank = len(x.shape)
    return graph.call("Unsqueeze", x, graph.axes(*range(rank, rank + after))) if after and rank else x


class _Affine(Layer):
    """What Scale and Bias share: where the array lies along the bottom's axes."""

    bottom_count = (1, 2)
    fresh = True

    def span(self, bottoms: list[Shape]) -> tuple[int, int]:
        """First axis and number of axes of the array."""
        shape = bottoms[0]
        if len(bottoms) == 2:
            other = bottoms[1]
            if not other:
                return 0, 0
            axis = self.axis(self.param.axis, shape)
            if not compatible(shape[axis : axis + len(other)], other):
                raise ShapeError(
                    f"{self}: bottom {self.spec.bottom[1]!r} of shape {text(other)} does not fit {text(shape)} "
                    f"from axis {axis} on"
                )
            return axis, len(other)
        number = self.param.num_axes
        axis = self.axis(self.param.axis, shape)
        if number < -1 or axis + max(number, 0) > len(shape):
            raise ShapeError(f"{self}: {number} axes from axis {axis} on do not fit a bottom of shape {text(shape)}")
        return axis, len(shape) - axis if number == -1 else number

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        self.span(bottoms)
        return bottoms[:1]

    def shape(self, bottoms: list[Shape]) -> tuple[int, ...]:
        axis, number = self.span(bottoms)
        stored = self.stored_shape(0, number) or (None,) * number
        sizes = bottoms[0][axis : axis + number]
        return tuple(
            self.known(size, there, "the size of its array") for size, there in zip(sizes, stored, strict=True)
        )


@register("Scale")
class Scale(_Affine):
    """Multiply by an array along some axes, learned or given as a second bottom, and add a learned bias.

    Shapes   bottom (N, C, ...) [, scale] -> top, same as the first bottom
    Params   axis 1, num_axes 1 (-1: to the end, 0: a scalar); bias_term false; filler constant 1
    Blobs    weight (dims of those axes) with one bottom; bias, same shape, with bias_term
    Raises   ShapeError: the second bottom's shape is not the first's from axis on (no broadcasting of size 1)
    PyTorch  own module: a multiplication and an addition, equal. ONNX: Mul, Add.
    Source   BVLC Caffe 1.0, src/caffe/layers/scale_layer.cpp
    """

    param_field = "scale_param"

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if self.param.bias_term:
            self.axis(self.param.axis, bottoms[0])  # the bias has to have a place even beside a scalar scale
        return super().tops(bottoms)

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        learned = []
        if len(bottoms) == 1:
            learned.append(
                Blob(
                    "weight", self.shape(bottoms), self.param.filler if self.param.HasField("filler") else constant(1.0)
                )
            )
        if self.param.bias_term:
            learned.append(Blob("bias", self.shape(bottoms), self.param.bias_filler))
        return learned

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.normalization import Scale as Module
        from ..modules.normalization import ScaleBy

        axis, number = self.span(bottoms)
        bias = bool(self.param.bias_term)
        after = len(bottoms[0]) - axis - number
        if len(bottoms) == 2:
            return ScaleBy(self.shape(bottoms) if bias else None, after)
        return Module(self.shape(bottoms), after, bias)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        if len(bottoms) == 2:
            axis, _ = self.span(bottoms)
            return [
                Quirk(
                    self.key,
                    f"the second bottom, {text(bottoms[1])}, is the scale, laid from axis {axis} on",
                    "reshaped, then multiplied; no broadcasting",
                )
            ]
        return []

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        x, *other = bottoms
        shapes = [bottom.shape for bottom in bottoms]
        axis, number = self.span(shapes)
        after = (1,) * (len(x.shape) - axis - number)
        learned = self.param.bias_term and (*self.shape(shapes), *after)
        scale = laid(graph, other[0], len(after)) if other else graph.weight("weight", (*self.shape(shapes), *after))
        y = graph.call("Mul", x, scale)
        return [graph.call("Add", y, graph.weight("bias", learned)) if self.param.bias_term else y]


@register("Bias")
class Bias(_Affine):
    """Add an array along some axes, learned or given as a second bottom.

    Shapes   bottom (N, C, ...) [, bias] -> top, same as the first bottom
    Params   axis 1, num_axes 1; filler constant 0
    Blobs    bias (dims of those axes) with one bottom
    PyTorch  own module: an addition, equal. ONNX: Add.
    Source   BVLC Caffe 1.0, src/caffe/layers/bias_layer.cpp
    """

    param_field = "bias_param"

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        return [Blob("bias", self.shape(bottoms), self.param.filler)] if len(bottoms) == 1 else []

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.normalization import Bias as Module
        from ..modules.normalization import BiasBy

        axis, number = self.span(bottoms)
        after = len(bottoms[0]) - axis - number
        return BiasBy(after) if len(bottoms) == 2 else Module(self.shape(bottoms), after)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        x, *other = bottoms
        shapes = [bottom.shape for bottom in bottoms]
        axis, number = self.span(shapes)
        after = (1,) * (len(x.shape) - axis - number)
        bias = laid(graph, other[0], len(after)) if other else graph.weight("bias", (*self.shape(shapes), *after))
        return [graph.call("Add", x, bias)]


@register("MVN")
class MVN(Layer):
    """Subtract the mean of each plane (or item) and divide by its standard deviation.

    d = x - mean; y = d / (sqrt(mean(d^2)) + eps): eps outside of the root

    Shapes   bottom, up to 4 axes -> top with 4 axes ((2, 3) becomes (2, 3, 1, 1))
    Params   normalize_variance true; across_channels false; eps 1e-9
    Raises   ShapeError: more than 4 axes
    PyTorch  own module; nn.InstanceNorm2d has eps inside of the root. ONNX: ReduceMean, Sub, Mul, Sqrt, Div.
    Source   BVLC Caffe 1.0, src/caffe/layers/mvn_layer.cpp
    """

    param_field = "mvn_param"
    fresh = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape = bottoms[0]
        if len(shape) > 4:
            raise ShapeError(f"{self}: wants at most 4 axes, bottom is {text(shape)}")
        return [(*shape, *(1,) * (4 - len(shape)))]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.normalization import MVN as Module

        return Module(self.param.normalize_variance, self.param.across_channels, self.param.eps)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        found = []
        if self.param.normalize_variance:
            found.append(Quirk(self.key, f"eps {self.param.eps:g} is added outside of the square root", "own module"))
        if len(bottoms[0]) != 4:
            found.append(Quirk(self.key, f"the top has 4 axes, the bottom {len(bottoms[0])}", "reshaped"))
        return found

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), p = bottoms, self.param
        missing = 4 - len(x.shape)
        if missing:
            x = graph.call("Unsqueeze", x, graph.axes(*range(len(x.shape), 4)))
        axes = (1, 2, 3) if p.across_channels else (2, 3)
        # Not MeanVarianceNormalization: onnxruntime leaves out its eps, so that a plane of one value becomes NaN.
        d = graph.call("Sub", x, graph.call("ReduceMean", x, graph.axes(*axes), keepdims=1))
        if not p.normalize_variance:
            return [d]
        variance = graph.call("ReduceMean", graph.call("Mul", d, d), graph.axes(*axes), keepdims=1)
        return [graph.call("Div", d, graph.call("Add", graph.call("Sqrt", variance), graph.constant(p.eps)))]


@register("Softmax")
class Softmax(Layer):
    """exp(x) divided by its sum along one axis.

    Shapes   bottom -> top, same
    Params   axis 1
    Raises   ShapeError: no such axis
    PyTorch  nn.Softmax, equal. ONNX: Softmax (opset 13 and later).
    Source   BVLC Caffe 1.0, src/caffe/layers/softmax_layer.cpp
    """

    param_field = "softmax_param"
    fresh = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        self.axis(self.param.axis, bottoms[0])
        return bottoms[:1]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        return nn.Softmax(self.param.axis)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return [graph.call("Softmax", *bottoms, axis=self.param.axis)]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        return [f"F.softmax({bottoms[0]}, {self.param.axis})"]
