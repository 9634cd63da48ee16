"""Layers without bottoms: inputs that the caller feeds, and constant sources."""

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import ShapeError, UnsupportedLayer
from .base import UNKNOWN, Array, Layer, Shape, register

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue
    from ..export.source import SourceWriter


class DataLayer(Layer):
    """An input: its tops are fed by the caller. Its transform_param stays readable on `spec`."""

    is_input = True
    bottom_count: ClassVar[tuple[int, int | None]] = (0, 0)
    top_count: ClassVar[tuple[int, int | None]] = (1, None)

    def first(self) -> Shape:
        """Shape of the first top, the data."""
        raise NotImplementedError

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape = self.first()
        return [shape, *[shape[:1]] * (len(self.spec.top) - 1)]

    def channels(self) -> int | None:
        """Channels, as far as the transformer's fields tell: colour or grey forced, one mean value for each."""
        transform = self.spec.transform_param
        means = len(transform.mean_value)
        return 3 if transform.force_color else 1 if transform.force_gray else means if means > 1 else None

    def cropped(self) -> int | None:
        """Height and width after the transformer's crop, in pixels; None where it does not crop."""
        return self.spec.transform_param.crop_size or None


@register("Input")
class Input(DataLayer):
    """Blobs that the caller feeds.

    Shapes   no bottom -> tops of the given shapes
    Params   shape: none (open), one for all tops, or one for each
    PyTorch  arguments of forward. ONNX: graph inputs.
    Source   BVLC Caffe 1.0, src/caffe/layers/input_layer.cpp
    """

    param_field = "input_param"

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shapes = [tuple(None if d == -1 else d for d in shape.dim) for shape in self.param.shape]
        if not shapes:
            return [UNKNOWN] * len(self.spec.top)
        if len(shapes) not in (1, len(self.spec.top)):
            raise ShapeError(f"{self}: has {len(shapes)} shapes for {len(self.spec.top)} tops")
        return shapes if len(shapes) == len(self.spec.top) else shapes * len(self.spec.top)


@register("Data")
class Data(DataLayer):
    """Records of a database, fed by the caller.

    Shapes   no bottom -> data (B, C, h, w), label (B); C and, without crop_size, h and w are known only to the database
    Params   batch_size; transform_param: crop_size, mean, scale (kept for preprocessing)
    PyTorch  arguments of forward. ONNX: graph inputs.
    Source   BVLC Caffe 1.0, src/caffe/layers/data_layer.cpp
    """

    param_field = "data_param"

    def first(self) -> Shape:
        size = self.cropped() or self.param.crop_size or None
        return (self.param.batch_size or None, self.channels(), size, size)


@register("ImageData")
class ImageData(DataLayer):
    """Picture files, fed by the caller.

    Shapes   no bottom -> data (B, 3 or 1, h, w), label (B)
    Params   batch_size, new_height, new_width, is_color true; transform_param
    PyTorch  arguments of forward. ONNX: graph inputs.
    Source   BVLC Caffe 1.0, src/caffe/layers/image_data_layer.cpp
    """

    param_field = "image_data_param"

    def first(self) -> Shape:
        size = self.cropped()
        channels = 3 if self.param.is_color else 1
        return (
            self.param.batch_size or None,
            channels,
            size or self.param.new_height or None,
            size or self.param.new_width or None,
        )


@register("MemoryData")
class MemoryData(DataLayer):
    """Arrays in memory, fed by the caller.

    Shapes   no bottom -> data (B, channels, height, width), label (B), which a run holds as (B, 1, 1, 1)
    Params   batch_size, channels, height, width
    PyTorch  arguments of forward. ONNX: graph inputs.
    Source   BVLC Caffe 1.0, src/caffe/layers/memory_data_layer.cpp
    """

    param_field = "memory_data_param"
    top_count = (1, 2)

    def first(self) -> Shape:
        p = self.param
        return (p.batch_size or None, p.channels or None, p.height or None, p.width or None)


@register("HDF5Data")
class HDF5Data(DataLayer):
    """Datasets of HDF5 files, fed by the caller; each top is one dataset.

    Shapes   no bottom -> tops (B, rest), known only to the files
    Params   batch_size
    PyTorch  arguments of forward. ONNX: graph inputs.
    Source   BVLC Caffe 1.0, src/caffe/layers/hdf5_data_layer.cpp
    """

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        return [UNKNOWN] * len(self.spec.top)


@register("WindowData")
class WindowData(DataLayer):
    """Windows of pictures, fed by the caller.

    Shapes   no bottom -> data (B, 3, crop, crop), label (B)
    Params   batch_size; crop_size
    PyTorch  arguments of forward. ONNX: graph inputs.
    Source   BVLC Caffe 1.0, src/caffe/layers/window_data_layer.cpp
    """

    param_field = "window_data_param"

    def first(self) -> Shape:
        size = self.cropped() or self.param.crop_size or None
        return (self.param.batch_size or None, 3, size, size)


class UnknownData(HDF5Data):
    """A layer without bottoms whose type nobody describes: a data source of a fork, or in Python.

    Its tops are inputs; no code is imported.
    """


@register("HDF5Output")
class HDF5Output(Layer):
    """Writes its bottoms to a file; here it does nothing.

    Shapes   data, label -> no top
    PyTorch  nothing. ONNX: nothing.
    Source   BVLC Caffe 1.0, src/caffe/layers/hdf5_output_layer.cpp
    """

    bottom_count = (2, 2)
    top_count = (0, 0)
    judges = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        return []

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.shape import Silence

        return Silence()

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return []

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        return []


@register("DummyData")
class DummyData(Layer):
    """Constant blobs.

    Shapes   no bottom -> tops of the given shapes
    Params   shape, or the old num, channels, height, width: once, or once for each top; data_filler: none (0), one, or
             one for each top
    Raises   UnsupportedLayer: a random filler, which Caffe draws anew at each run: make the layer an Input
    PyTorch  a constant buffer. ONNX: an initializer.
    Source   BVLC Caffe 1.0, src/caffe/layers/dummy_data_layer.cpp
    """

    param_field = "dummy_data_param"
    bottom_count = (0, 0)
    top_count = (1, None)
    batch_independent = False
    moves = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        p, number = self.param, len(self.spec.top)
        legacy = [list(getattr(p, name)) for name in ("num", "channels", "height", "width")]
        if p.shape and any(legacy):
            raise ShapeError(f"{self}: give either shape or num, channels, height and width")
        given = [tuple(shape.dim) for shape in p.shape]
        if not given:
            if len({len(sizes) for sizes in legacy}) != 1:
                raise ShapeError(f"{self}: num, channels, height and width must be given equally often")
            given = list(zip(*legacy, strict=True))
        if len(given) not in (1, number):
            raise ShapeError(f"{self}: has {len(given)} shapes for {number} tops")
        if len(p.data_filler) not in (0, 1, number):
            raise ShapeError(f"{self}: has {len(p.data_filler)} fillers for {number} tops")
        if any(n < 1 for shape in given for n in shape) or any(np.prod(shape, dtype=float) >= 2**31 for shape in given):
            raise ShapeError(f"{self}: shapes {given} cannot be held by Caffe")
        return [tuple(shape) for shape in (given if len(given) == number else given * number)]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.data import Constant

        fillers = list(self.param.data_filler)
        if any(filler.type != "constant" for filler in fillers):
            raise UnsupportedLayer(
                f"{self}: a filler draws random numbers at each run; make it an Input layer and feed the numbers"
            )
        return Constant(self.arrays())

    def arrays(self) -> list[Array]:
        """The constants, one for each top."""
        values = [filler.value for filler in self.param.data_filler] or [0.0]
        values = values if len(values) == len(self.spec.top) else values * len(self.spec.top)
        shapes = [tuple(n or 0 for n in shape) for shape in self.tops([])]
        return [np.full(shape, value, np.float32) for shape, value in zip(shapes, values, strict=True)]

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        return [graph.constant(array) for array in self.arrays()]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        return writer.buffers(self.arrays())
