"""Every Caffe layer that caffeport knows, one file per family, and how to add one's own.

from caffeport.layers import Layer, register

@register("MyLayer")
class MyLayer(Layer): ...
"""

from . import (  # noqa: F401  imported so that each registers its types
    activation,
    convolution,
    data,
    dense,
    detection,
    elementwise,
    loss,
    mobile,
    normalization,
    pooling,
    rcnn,
    recurrent,
    segmentation,
    shape,
    training,
    video,
    yolo,
)  # isort: skip
from .base import (
    TYPES,
    UNKNOWN,
    Array,
    Blob,
    Layer,
    OpenShape,
    Quirk,
    Shape,
    compatible,
    constant,
    count,
    layer_class,
    merged,
    register,
    text,
    type_name,
)

__all__ = [
    "TYPES",
    "UNKNOWN",
    "Array",
    "Blob",
    "Layer",
    "OpenShape",
    "Quirk",
    "Shape",
    "compatible",
    "constant",
    "count",
    "layer_class",
    "merged",
    "register",
    "text",
    "type_name",
]
