"""Operations on several bottoms of one shape."""

import functools
from typing import TYPE_CHECKING

from ..errors import ShapeError, UnsupportedLayer
from .base import Layer, Quirk, Shape, merged, register

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue
    from ..export.source import SourceWriter

PROD, SUM, MAX = range(3)


@register("Eltwise")
class Eltwise(Layer):
    """Product, weighted sum or maximum of its bottoms.

    Shapes   bottoms, all of one shape -> top, same; no broadcasting
    Params   operation SUM | PROD | MAX; coeff 1, one for each bottom (SUM)
    Raises   ShapeError: bottoms differ in shape, wrong number of coefficients, PROD with coefficients
    PyTorch  sums, products, torch.maximum, equal for finite values. ONNX: Sum, Mul, Max.
    Source   BVLC Caffe 1.0, src/caffe/layers/eltwise_layer.cpp
    """

    param_field = "eltwise_param"
    bottom_count = (2, None)
    same_shape_bottoms = True
    fresh = True

    @property
    def loses_first(self) -> bool:
        """In place, Caffe clears the top, which is the first bottom, before a sum or maximum."""
        return bool(self.param.operation != PROD and self.spec.top[0] == self.spec.bottom[0])

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        coefficients = len(self.param.coeff)
        if coefficients not in (0, len(bottoms)):
            raise ShapeError(f"{self}: has {coefficients} coeff for {len(bottoms)} bottoms")
        if coefficients and self.param.operation == PROD:
            raise ShapeError(f"{self}: PROD takes no coeff")
        if self.param.operation not in (PROD, SUM, MAX):
            raise UnsupportedLayer(f"{self}: operation {self.param.operation} is not one of Caffe's PROD, SUM, MAX")
        shape = bottoms[0]
        for other in bottoms[1:]:
            shape = merged(shape, other)
        return [shape]

    def exact(self) -> bool:
        return bool(self.param.operation == MAX)

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules import elementwise

        if self.param.operation == PROD:
            return elementwise.Product()
        if self.param.operation == MAX:
            return elementwise.Maximum(skip_first=self.loses_first)
        return elementwise.Sum(tuple(self.param.coeff), skip_first=self.loses_first)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        if self.loses_first:
            return [
                Quirk(
                    self.key,
                    "in place, Caffe clears the first bottom before it adds",
                    "reproduced: the first bottom does not count",
                )
            ]
        return []

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        terms = bottoms[self.loses_first :]
        if self.param.operation == PROD:
            return [functools.reduce(lambda x, y: graph.call("Mul", x, y), terms)]
        if self.param.operation == MAX:
            return [graph.call("Max", *terms)]
        coeff = (list(self.param.coeff) or [1.0] * len(bottoms))[self.loses_first :]
        terms = [
            x if c == 1 else graph.call("Mul", x, graph.constant(c)) for x, c in zip(terms, coeff, strict=True) if c
        ]
        if not terms:
            return [graph.filled_like(bottoms[0], 0.0)]
        return [graph.call("Add" if len(terms) == 2 else "Sum", *terms)]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        if self.loses_first or self.param.coeff:
            return super().source(writer, bottoms)
        if self.param.operation == MAX:
            return [functools.reduce(lambda x, y: f"torch.maximum({x}, {y})", bottoms)]
        return [(" + " if self.param.operation == SUM else " * ").join(bottoms)]
