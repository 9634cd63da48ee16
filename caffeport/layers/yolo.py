"""Detection heads of YOLO, and what its nets need besides."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ShapeError
from .base import FLOAT, Array, Layer, Shape, count, register, text
from .detection import cells, found, suppressed, wants_axes

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue


@register("Reorg")
class Reorg(Layer):
    """Darknet's rearrangement of pixels into channels, or with `reverse` of channels into pixels.

    Shapes   bottom (N, C, H, W) -> top (N, C s^2, H / s, W / s); reverse: (N, C / s^2, H s, W s)
    Params   stride 2 (s); reverse false
    Raises   ShapeError: C is no multiple of s^2, H or W none of s
    PyTorch  a view, a transposition and a view, equal; nn.PixelUnshuffle orders otherwise. ONNX: Reshape, Transpose,
             Reshape.
    Source   eric612/MobileNet-YOLO, src/caffe/layers/reorg_layer.cpp
    """

    param_field = "reorg_param"
    in_place = False

    @property
    def stride(self) -> int:
        return int(self.param.stride) if self.param.HasField("stride") else 2

    @property
    def reverse(self) -> bool:
        return bool(self.param.reverse)

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape, s = bottoms[0], self.stride
        wants_axes(self, shape, 4)
        divisors = (s * s, 1, 1) if self.reverse else (s * s, s, s)
        if s < 1 or any(size is not None and size % by for size, by in zip(shape[1:], divisors, strict=True)):
            raise ShapeError(
                f"{self}: bottom {text(shape)} does not divide by stride {s}; wanted are multiples of {text(divisors)}"
            )
        n, c, h, w = shape
        if self.reverse:
            return [(n, c and c // (s * s), h and h * s, w and w * s)]
        return [(n, c and c * s * s, h and h // s, w and w // s)]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.yolo import Reorg as Module

        return Module(self.stride, self.reverse)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), s = bottoms, self.stride
        c, h, w = x.shape[1:]
        if self.reverse:
            return [graph.call("DepthToSpace", x, blocksize=s, mode="DCR")]
        if c is None or h is None or w is None:
            raise graph.refuse("its order depends on the size of the map: fix height and width")
        split = graph.reshape(x, [None, c // (s * s), h, s, w, s])
        moved = graph.call("Transpose", split, perm=(0, 3, 5, 1, 2, 4))
        return [graph.reshape(moved, [None, c * s * s, h // s, w // s])]


@register("ReorgYolo")
class ReorgYolo(Reorg):
    """Darknet's rearrangement of pixels into channels.

    Shapes   bottom (N, C, H, W) -> top (N, C s^2, H / s, W / s)
    Params   stride 1 (s)
    Raises   ShapeError: as Reorg
    PyTorch  as Reorg without reverse. ONNX: Reshape, Transpose, Reshape.
    Source   openvinotoolkit/training_toolbox_caffe, src/caffe/layers/reorg_yolo_layer.cpp
    """

    param_field = "reorg_yolo_param"
    reverse = False

    @property
    def stride(self) -> int:
        return int(self.param.stride)


@register("RegionYolo")
class RegionYolo(Layer):
    """Activations of YOLO v2's boxes: logistic on x, y and objectness, softmax over classes; then flattened.

    Shapes   bottom (N, num (coords + 1 + classes), H, W) -> top (N, num (coords + 1 + classes) H W)
    Params   coords 4, classes 20, num 1; flatten_param axis 1, end_axis -1
    Raises   ShapeError: another number of channels
    PyTorch  own module. ONNX: Slice, Sigmoid, Softmax, Concat, Reshape.
    Source   openvinotoolkit/training_toolbox_caffe, src/caffe/layers/region_yolo_layer.cpp
    """

    param_field = "region_yolo_param"
    fresh = True
    in_place = False

    def flattened(self, shape: Shape) -> tuple[int, int]:
        p = self.spec.flatten_param
        return self.axis(p.axis, shape), self.axis(p.end_axis, shape)

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape, p = bottoms[0], self.param
        wants_axes(self, shape, 4)
        channels = p.num * (p.coords + 1 + p.classes)
        if p.coords < 2 or p.classes < 1 or p.num < 1 or shape[1] not in (None, channels):
            raise ShapeError(
                f"{self}: {p.num} boxes of {p.coords} coords, an objectness and {p.classes} classes need {channels} "
                f"channels, bottom is {text(shape)}"
            )
        axis, end = self.flattened(shape)
        return [(*shape[:axis], count(shape[axis : end + 1]), *shape[end + 1 :])]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.yolo import RegionYolo as Module

        return Module(self.param.num, self.param.coords, self.param.classes, *self.flattened(bottoms[0]))

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), p = bottoms, self.param
        if None in x.shape[2:]:
            raise graph.refuse("its size depends on that of the map: fix height and width")
        y = graph.reshape(x, [None, p.num, p.coords + 1 + p.classes, *x.shape[2:]])
        middle, size, objectness, classes = graph.node(
            "Split", [y, graph.axes(2, p.coords - 2, 1, p.classes)], 4, axis=2
        )
        parts = [
            graph.call("Sigmoid", middle),
            size,
            graph.call("Sigmoid", objectness),
            graph.call("Softmax", classes, axis=2),
        ]
        joined = graph.call("Concat", *parts, axis=2)
        return [graph.reshape(joined, self.tops([x.shape])[0])]


@register("Upsample", when=lambda spec, stored: len(spec.bottom) == 1)
class NearestUpsample(Layer):
    """Every pixel repeated `scale` times on both axes.

    Shapes   bottom (..., H, W) -> top (..., H scale, W scale)
    Params   scale 1
    Raises   ShapeError: scale is 0, fewer than 2 axes
    PyTorch  nn.Upsample, nearest, equal. ONNX: Resize, nearest, asymmetric, floor.
    Source   eric612/MobileNet-YOLO, src/caffe/layers/upsample_layer.cpp
    """

    param_field = "upsample_param"
    variant = "MobileNet-YOLO (one bottom: nearest neighbour)"
    fresh = True
    in_place = False

    @property
    def scale(self) -> int:
        return int(self.param.scale) if self.param.HasField("scale") else 1

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shape, scale = bottoms[0], self.scale
        if len(shape) < 2 or scale < 1:
            raise ShapeError(f"{self}: wants a scale of at least 1 and 2 axes; has {scale} and bottom {text(shape)}")
        return [(*shape[:-2], *(size and size * scale for size in shape[-2:]))]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from torch import nn

        from ..modules.yolo import NearestUpsample as Module

        return nn.Upsample(scale_factor=self.scale) if len(bottoms[0]) == 4 else Module(self.scale)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), rank = bottoms, len(bottoms[0].shape)
        scales = graph.constant([1.0] * (rank - 2) + [float(self.scale)] * 2)
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return [graph.call("Resize", x, None, scales, **how)]


class _YoloOutput(Layer, ABC):
    """What the two YOLO detection layers share."""

    fresh = True
    in_place = False
    batch_independent = False
    differentiable = False

    def boxes(self) -> int:
        """Boxes of each cell."""
        return int(self.param.num_box)

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        p, boxes = self.param, self.boxes()
        if not p.HasField("num_classes"):
            raise ShapeError(f"{self}: num_classes is missing")
        if len(p.biases) % 2:
            raise ShapeError(f"{self}: biases are pairs of width and height, has {len(p.biases)}")
        channels = boxes * (5 + p.num_classes)
        for name, shape in zip(self.spec.bottom, bottoms, strict=True):
            if len(shape) != 4 or shape[1] not in (None, channels):
                raise ShapeError(
                    f"{self}: {boxes} boxes of {p.num_classes} classes need N x {channels} x H x W, "
                    f"bottom {name!r} is {text(shape)}"
                )
        return [(1, 1, None, 7)]

    @abstractmethod
    def anchors(self, index: int, maps: int) -> tuple[Array, float]:
        """Width and height of the boxes of map `index`, (num_box, 2), and how many of that unit a cell has."""

    @abstractmethod
    def scored(
        self, graph: "OnnxGraph", objectness: "OnnxValue", classes: "OnnxValue"
    ) -> "tuple[OnnxValue, OnnxValue, OnnxValue | None]":
        """In ONNX: scores (N, H W, num_box, s), which of them count, and their labels; None: those are 0 to s - 1."""

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        maps = len(bottoms)
        rows = [self.candidates(graph, x, *self.anchors(i, maps)) for i, x in enumerate(bottoms)]
        joined = graph.call("Concat", *rows, axis=0)
        _, score, corners = graph.node("Split", [joined, graph.axes(2, 1, 4)], 3, axis=1)
        below = float(np.nextafter(np.float32(self.param.nms_threshold), np.float32(-1)))  # ONNX keeps what is equal
        kept = suppressed(graph, corners, graph.call("Squeeze", score, graph.axes(1)), graph.sizes(joined, 0, 1), below)
        return [found(graph, graph.call("Gather", joined, kept), bottoms[0])]

    def candidates(self, graph: "OnnxGraph", x: "OnnxValue", anchors: Array, scale: float) -> "OnnxValue":
        """In ONNX: rows (K, 7) of the boxes of a map whose scores count, by image, cell and box."""
        boxes, classes = self.boxes(), self.param.num_classes
        numbers = graph.reshape(x, [None, boxes, 5 + classes, None], copied=(0,))
        numbers = graph.call("Transpose", numbers, perm=(0, 3, 1, 2))  # (N, H W, num_box, 5 + classes)
        middle, size, objectness, chances = graph.node("Split", [numbers, graph.axes(2, 2, 1, classes)], 4, axis=3)
        extent = graph.call("Cast", graph.call("Gather", graph.sizes(x, 2, 4), graph.axes(1, 0)), to=FLOAT)
        place = graph.reshape(cells(graph, x), [None, 1, 2])
        centre = graph.call("Div", graph.call("Add", graph.call("Sigmoid", middle), place), extent)
        side = graph.call("Mul", graph.call("Exp", size), graph.constant(anchors))
        side = graph.call("Div", side, graph.call("Mul", extent, graph.constant(float(scale))))
        half = graph.call("Mul", side, graph.constant(0.5))
        corners = graph.call("Concat", graph.call("Sub", centre, half), graph.call("Add", centre, half), axis=3)
        score, counts, labels = self.scored(graph, objectness, chances)
        where = graph.call("Transpose", graph.call("NonZero", counts), perm=(1, 0))
        box, label = graph.node("Split", [where, graph.axes(3, 1)], 2, axis=1)
        if labels:
            label = graph.call("Unsqueeze", graph.call("GatherND", labels, where), graph.axes(1))
        label = graph.call("Cast", graph.call("Add", label, graph.axes(1)), to=FLOAT)
        score = graph.call("Unsqueeze", graph.call("GatherND", score, where), graph.axes(1))
        rows = graph.call("Concat", label, score, graph.call("GatherND", corners, box), axis=1)
        return graph.call("Pad", rows, graph.axes(0, 1, 0, 0))


@register("YoloDetectionOutput")
class YoloDetectionOutput(_YoloOutput):
    """YOLO v2's boxes, thresholded and reduced by non-maximum suppression over all labels.

    x = (column + s(t0)) / W, y = (row + s(t1)) / H, w = exp(t2) bias / W, h = exp(t3) bias / H,
    score = s(t4) max(softmax(classes)); s is the logistic function

    Shapes   one or two maps (N, num_box (5 + classes), H, W) -> top (1, 1, K, 7): 0, label + 1, score, left, top,
             right, bottom
    Params   num_classes, num_box 5, confidence_threshold 0.01, nms_threshold 0.45, biases: width and height in cells
    Raises   ShapeError: no num_classes, biases that do not fit, another number of channels
    PyTorch  own module; suppression drops overlaps >= the threshold, over labels and images together. ONNX:
             NonMaxSuppression after decoding.
    Source   eric612/MobileNet-YOLO, src/caffe/layers/yolo_detection_output_layer.cpp
    """

    param_field = "yolo_detection_output_param"
    bottom_count = (1, 2)

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if len(self.param.biases) < 2 * self.boxes():
            raise ShapeError(
                f"{self}: {self.boxes()} boxes need {2 * self.boxes()} biases, has {len(self.param.biases)}"
            )
        return super().tops(bottoms)

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.yolo import YoloDetectionOutput as Module

        p = self.param
        return Module(p.num_classes, self.anchors(0, 1)[0].tolist(), p.confidence_threshold, p.nms_threshold)

    def anchors(self, index: int, maps: int) -> tuple[Array, float]:
        return np.array(self.param.biases[: 2 * self.boxes()]).reshape(-1, 2), 1.0

    def scored(
        self, graph: "OnnxGraph", objectness: "OnnxValue", classes: "OnnxValue"
    ) -> "tuple[OnnxValue, OnnxValue, OnnxValue | None]":
        chance = graph.call("Softmax", classes, axis=3)
        score = graph.call("Mul", graph.call("Sigmoid", objectness), graph.call("ReduceMax", chance, graph.axes(3)))
        counts = graph.call("GreaterOrEqual", score, graph.constant(self.param.confidence_threshold))
        return score, counts, graph.call("ArgMax", chance, axis=3)


@register("Yolov3DetectionOutput")
class Yolov3DetectionOutput(_YoloOutput):
    """YOLO v3's boxes of all scales, thresholded for each label and reduced by non-maximum suppression over all labels.

    x = (column + s(t0)) / W, y = (row + s(t1)) / H, w = exp(t2) bias / (W scale), h = exp(t3) bias / (H scale),
    score = s(t4) s(class); s is the logistic function

    Shapes   a map (N, num_box (5 + classes), H, W) for each scale -> top (1, 1, K, 7): 0, label + 1, score, left, top,
             right, bottom
    Params   num_classes, num_box 3, confidence_threshold 0.01, nms_threshold 0.45, mask_group_num 2 (maps),
             anchors_scale for each map (pixels of the input for each cell), biases: width and height in pixels, mask:
             which of them, map by map
    Raises   ShapeError: no num_classes; anchors_scale, biases or mask that do not fit; another number of channels
    PyTorch  own module; suppression drops overlaps >= the threshold, over labels and images together. ONNX:
             NonMaxSuppression after decoding.
    Source   eric612/MobileNet-YOLO, src/caffe/layers/yolov3_detection_output_layer.cpp
    """

    param_field = "yolov3_detection_output_param"
    bottom_count = (1, None)

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        p, boxes = self.param, self.boxes()
        if p.gaussian_box:
            raise ShapeError(f"{self}: gaussian_box is not described; its maps hold a variance for each coordinate")
        if len(bottoms) != p.mask_group_num or len(p.anchors_scale) < len(bottoms):
            raise ShapeError(
                f"{self}: has {len(bottoms)} bottoms, but mask_group_num {p.mask_group_num} "
                f"and {len(p.anchors_scale)} anchors_scale"
            )
        each = len(p.mask) // len(bottoms)
        if len(p.mask) < each * (len(bottoms) - 1) + boxes or any(2 * mask >= len(p.biases) for mask in p.mask):
            raise ShapeError(
                f"{self}: mask {list(p.mask)} does not name {boxes} pairs of {len(p.biases)} biases "
                f"for each of {len(bottoms)} bottoms"
            )
        return super().tops(bottoms)

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.yolo import Yolov3DetectionOutput as Module

        p, maps = self.param, len(bottoms)
        anchors = [self.anchors(i, maps)[0].tolist() for i in range(maps)]
        return Module(p.num_classes, anchors, tuple(p.anchors_scale[:maps]), p.confidence_threshold, p.nms_threshold)

    def anchors(self, index: int, maps: int) -> tuple[Array, float]:
        p = self.param
        first = index * (len(p.mask) // maps)
        pairs = np.array(p.biases).reshape(-1, 2)
        return pairs[list(p.mask[first : first + self.boxes()])], p.anchors_scale[index]

    def scored(
        self, graph: "OnnxGraph", objectness: "OnnxValue", classes: "OnnxValue"
    ) -> "tuple[OnnxValue, OnnxValue, OnnxValue | None]":
        score = graph.call("Mul", graph.call("Sigmoid", classes), graph.call("Sigmoid", objectness))
        return score, graph.call("Greater", score, graph.constant(self.param.confidence_threshold)), None
