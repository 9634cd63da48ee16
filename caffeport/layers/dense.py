"""Matrix products and look-ups: InnerProduct and Embed."""

from math import prod
from typing import TYPE_CHECKING

from ..errors import ShapeError
from .base import INT64, Blob, Layer, Shape, count, register

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue
    from ..export.source import SourceWriter


@register("InnerProduct")
class InnerProduct(Layer):
    """A fully connected layer: x W^T + b over all axes from `axis` on.

    Shapes   bottom (M.., K..) -> top (M.., num_output)
    Params   num_output; axis 1; transpose false; bias_term true
    Blobs    weight (num_output, K), with transpose (K, num_output); bias (num_output)
    Raises   ShapeError: num_output is 0, K is not the weights'
    PyTorch  nn.Linear after flatten(axis), equal. ONNX: Flatten, Gemm.
    Source   BVLC Caffe 1.0, src/caffe/layers/inner_product_layer.cpp
    """

    param_field = "inner_product_param"
    fresh = True
    in_place = False

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if not self.param.num_output:
            raise ShapeError(f"{self}: num_output is missing or 0")
        return [(*bottoms[0][: self.axis(self.param.axis, bottoms[0])], self.param.num_output)]

    def inputs(self, bottoms: list[Shape]) -> int:
        stored = self.stored_shape(0, 2)
        inner = count(bottoms[0][self.axis(self.param.axis, bottoms[0]) :])
        return self.known(inner, stored[0 if self.param.transpose else 1] if stored else None, "its number of inputs")

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        sizes = (self.param.num_output, self.inputs(bottoms))
        weight = Blob("weight", sizes[::-1] if self.param.transpose else sizes, self.param.weight_filler)
        return (
            [weight, Blob("bias", (self.param.num_output,), self.param.bias_filler)]
            if self.param.bias_term
            else [weight]
        )

    def flatten_from(self) -> int | None:
        return int(self.param.axis)

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        from ..modules.dense import TransposedLinear

        sizes = (self.inputs(bottoms), self.param.num_output, bool(self.param.bias_term))
        return TransposedLinear(*sizes) if self.param.transpose else nn.Linear(*sizes)

    def multiply_adds(self, bottoms: list[Shape], tops: list[Shape]) -> int | None:
        rows = count(tops[0][:-1])
        return None if rows is None else rows * prod(self.blobs(bottoms)[0].shape)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,) = bottoms
        axis, rank = self.axis(self.param.axis, x.shape), len(x.shape)
        y = x if (axis, rank) == (1, 2) else graph.call("Flatten", x, axis=axis)
        bias = graph.weight("bias") if self.param.bias_term else None
        y = graph.call("Gemm", y, graph.weight("weight"), bias, transB=int(not self.param.transpose))
        if axis == 1:
            return [y]
        if x.shape[:axis].count(None) > 1:
            sizes = graph.call("Concat", graph.sizes(x, 0, axis), graph.axes(self.param.num_output), axis=0)
            return [graph.call("Reshape", y, sizes)]
        return [graph.reshape(y, [*x.shape[:axis], self.param.num_output])]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        rank, axis = len(writer.step.bottoms[0].shape), self.param.axis
        x = bottoms[0] if rank == axis % rank + 1 else f"{bottoms[0]}.flatten({axis})"
        return [f"{writer.module()}({x})"]


@register("Embed")
class Embed(Layer):
    """One row of a table for each index.

    Shapes   bottom (..) of indices -> top (.., num_output)
    Params   num_output, input_dim; bias_term true
    Blobs    weight (input_dim, num_output), bias (num_output)
    Raises   ShapeError: num_output or input_dim is 0
    PyTorch  nn.functional.embedding of the truncated index, plus a bias. ONNX: Cast, Gather, Add.
    Source   BVLC Caffe 1.0, src/caffe/layers/embed_layer.cpp
    """

    param_field = "embed_param"
    fresh = True
    in_place = False

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if not (self.param.num_output and self.param.input_dim):
            raise ShapeError(f"{self}: num_output and input_dim must be given")
        return [(*bottoms[0], self.param.num_output)]

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        weight = Blob("weight", (self.param.input_dim, self.param.num_output), self.param.weight_filler)
        return (
            [weight, Blob("bias", (self.param.num_output,), self.param.bias_filler)]
            if self.param.bias_term
            else [weight]
        )

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.dense import Embed as Module

        return Module(self.param.input_dim, self.param.num_output, bool(self.param.bias_term))

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        y = graph.call("Gather", graph.weight("weight"), graph.call("Cast", *bottoms, to=INT64), axis=0)
        return [graph.call("Add", y, graph.weight("bias")) if self.param.bias_term else y]
