"""Region proposals and pooling of Faster R-CNN and R-FCN."""

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FormatError, ShapeError, UnsupportedLayer
from .base import DOUBLE, FLOAT, INT64, Layer, Quirk, Shape, count, register, text
from .detection import cells, suppressed

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue
    from ..modules.rcnn import Proposal as ProposalModule


def check_rois(layer: Layer, bottoms: list[Shape]) -> int | None:
    """The number of regions; raises ShapeError unless the map has 4 axes and the regions are R x 5."""
    x, rois = bottoms
    if len(x) != 4:
        raise ShapeError(f"{layer}: wants 4 axes, bottom {layer.spec.bottom[0]!r} is {text(x)}")
    if len(rois) < 2 or rois[1] not in (None, 5) or any(size not in (None, 1) for size in rois[2:]):
        raise ShapeError(
            f"{layer}: regions must be R x 5 (image, x1, y1, x2, y2), bottom {layer.spec.bottom[1]!r} is {text(rois)}"
        )
    return rois[0]


@register("ROIPooling")
class ROIPooling(Layer):
    """Largest value in each of pooled_h x pooled_w bins of each region.

    Shapes   map (N, C, H, W), rois (R, 5 [, 1, 1]): image, x1, y1, x2, y2 in the image's pixels, inclusive -> top (R,
             C, pooled_h, pooled_w)
    Params   pooled_h, pooled_w; spatial_scale 1: map pixels for each image pixel
    Raises   ShapeError: pooled_h or pooled_w is 0, rois are not R x 5
    PyTorch  own module; corners are rounded halves away from zero, an empty bin gives 0. ONNX: MaxRoiPool, equal.
    Source   rbgirshick/caffe-fast-rcnn, src/caffe/layers/roi_pooling_layer.cpp
    """

    param_field = "roi_pooling_param"
    bottom_count = (2, 2)
    fresh = True
    in_place = False
    batch_independent = False

    def size(self) -> tuple[int, int]:
        p = self.param
        pair = (p.pooled_h, p.pooled_w) if not p.pooled_size else tuple(p.pooled_size) * (3 - len(p.pooled_size))
        if len(pair) != 2 or not all(pair):
            raise ShapeError(f"{self}: pooled_h and pooled_w must be above 0, they are {text(pair)}")
        return int(pair[0]), int(pair[1])

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        return [(check_rois(self, bottoms), bottoms[0][1], *self.size())]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.rcnn import ROIPool

        return ROIPool(self.size(), self.param.spatial_scale)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        x, rois = bottoms
        flat = rois if len(rois.shape) == 2 else graph.reshape(rois, [None, 5])
        return [graph.call("MaxRoiPool", x, flat, pooled_shape=self.size(), spatial_scale=self.param.spatial_scale)]


def rounded(graph: "OnnxGraph", x: "OnnxValue") -> "OnnxValue":
    """In ONNX: the nearest whole number, halves away from zero; Round takes halves to even."""
    size = graph.call("Abs", x)
    whole = graph.call("Floor", size)
    up = graph.call("GreaterOrEqual", graph.call("Sub", size, whole), graph.constant(0.5))
    return graph.call("Mul", graph.call("Sign", x), graph.call("Add", whole, graph.call("Cast", up, to=FLOAT)))


@register("PSROIPooling")
class PSROIPooling(Layer):
    """Mean in each of group_size x group_size bins of each region, every bin from channels of its own.

    Shapes   map (N, D g^2, H, W), rois (R, 5 [, 1, 1]) as ROIPooling -> top (R, D, g, g)
    Params   output_dim (D), group_size (g), spatial_scale: all required
    Raises   ShapeError: a parameter is missing, the map has another number of channels, rois are not R x 5
    PyTorch  own module; torchvision's ps_roi_pool scales before it rounds, this rounds before it scales. ONNX: CumSum
             twice, in double precision, and Gather of each bin's four corners.
    Source   daijifeng001/caffe-rfcn, src/caffe/layers/psroi_pooling_layer.cu
    """

    param_field = "psroi_pooling_param"
    bottom_count = (2, 2)
    fresh = True
    in_place = False
    batch_independent = False

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        p = self.param
        if not (p.output_dim > 0 and p.group_size > 0 and p.spatial_scale > 0):
            raise ShapeError(f"{self}: output_dim, group_size and spatial_scale must be given and above 0")
        rois, channels = check_rois(self, bottoms), p.output_dim * p.group_size**2
        if bottoms[0][1] not in (None, channels):
            raise ShapeError(
                f"{self}: output_dim {p.output_dim} and group_size {p.group_size} need {channels} channels, "
                f"bottom is {text(bottoms[0])}"
            )
        return [(rois, p.output_dim, p.group_size, p.group_size)]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.rcnn import PSROIPool

        return PSROIPool(self.param.output_dim, self.param.group_size, self.param.spatial_scale)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x, rois), group, outputs = bottoms, self.param.group_size, self.param.output_dim
        size = graph.sizes(x, 2, 4) if None in x.shape[2:] else graph.axes(*x.shape[2:])  # type: ignore[arg-type]
        image, first, end = self._bins(graph, rois, graph.reshape(graph.call("Cast", size, to=FLOAT), [2, 1]))
        # Running sums, after a row and a column of zeros, as rows (N g^2 (H + 1) (W + 1), D).
        sums = graph.call("Pad", graph.call("Cast", x, to=DOUBLE), graph.axes(0, 0, 1, 1, 0, 0, 0, 0))
        for axis in (2, 3):
            sums = graph.call("CumSum", sums, graph.constant(axis))
        sums = graph.reshape(sums, [None, outputs, group * group, None], copied=(0,))
        sums = graph.reshape(graph.call("Transpose", sums, perm=(0, 2, 3, 1)), [None, outputs])
        height, width = graph.node("Split", [graph.call("Add", size, graph.axes(1)), graph.axes(1, 1)], 2, axis=0)
        cell = graph.constant(np.arange(group * group).reshape(group, group))
        plane = graph.call("Add", graph.call("Mul", image, graph.axes(group * group)), cell)
        plane = graph.call("Mul", plane, graph.call("Mul", height, width))  # where each bin's plane begins (R, g, g)

        def apart(edges: "OnnxValue") -> "tuple[OnnxValue, OnnxValue]":
            """Rows (R, g, 1) and columns (R, 1, g)."""
            y, x = graph.node("Split", [edges, graph.axes(1, 1)], 2, axis=1)
            return graph.call("Transpose", y, perm=(0, 2, 1)), x

        def before(y: "OnnxValue", x: "OnnxValue") -> "OnnxValue":
            """Sum of all that lies above row y and left of column x in each bin's plane: (R, g, g, D)."""
            place = graph.call("Add", graph.call("Add", plane, graph.call("Mul", y, width)), x)
            return graph.call("Gather", sums, place, axis=0)

        (y0, x0), (y1, x1) = apart(first), apart(end)
        lower = graph.call("Sub", before(y1, x1), before(y0, x1))
        total = graph.call("Sub", lower, graph.call("Sub", before(y1, x0), before(y0, x0)))  # 0 in an empty bin
        area = graph.call("Mul", graph.call("Sub", y1, y0), graph.call("Sub", x1, x0))
        area = graph.call("Unsqueeze", graph.call("Max", area, graph.axes(1)), graph.axes(3))
        mean = graph.call("Cast", graph.call("Div", total, graph.call("Cast", area, to=DOUBLE)), to=FLOAT)
        return [graph.call("Transpose", mean, perm=(0, 3, 1, 2))]

    def _bins(
        self, graph: "OnnxGraph", rois: "OnnxValue", limit: "OnnxValue"
    ) -> "tuple[OnnxValue, OnnxValue, OnnxValue]":
        """Index of each region's image (R, 1, 1); first row and column of each bin, and the ones after its last.

        These are (R, 2, g), cut to `limit` (2, 1): height and width. An empty bin ends where it begins.
        """
        group = self.param.group_size
        rois = graph.reshape(rois, [None, 5, 1])
        image, corners = graph.node("Split", [rois, graph.axes(1, 4)], 2, axis=1)
        corners = graph.call("Add", rounded(graph, corners), graph.constant(np.array([0, 0, 1, 1.0]).reshape(4, 1)))
        corners = graph.call("Mul", corners, graph.constant(self.param.spatial_scale))
        low, high = (graph.call("Gather", corners, graph.axes(*yx), axis=1) for yx in ((1, 0), (3, 2)))
        extent = graph.call("Max", graph.call("Sub", high, low), graph.constant(0.1))
        step = graph.call("Div", extent, graph.constant(float(group)))
        edges = []
        for start, rounding in ((0, "Floor"), (1, "Ceil")):
            number = graph.constant(np.arange(start, start + group, dtype=np.float32))
            edge = graph.call(rounding, graph.call("Add", graph.call("Mul", number, step), low))
            edge = graph.call("Min", graph.call("Max", edge, graph.constant(0.0)), limit)
            edges.append(graph.call("Cast", edge, to=INT64))
        return graph.call("Cast", image, to=INT64), edges[0], graph.call("Max", *edges)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        return [
            Quirk(
                self.key, "corners are rounded before they are scaled, unlike torchvision's ps_roi_pool", "own module"
            )
        ]


class _Proposal(Layer, ABC):
    """What the two forms of the proposal layer share."""

    bottom_count = (3, 3)
    top_count = (1, 2)
    fresh = True
    in_place = False
    batch_independent = False
    differentiable = False
    image_numbers = 3  # of im_info

    @abstractmethod
    def anchors(self) -> int:
        """How many at each place."""

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        scores, deltas, info = bottoms
        anchors = self.anchors()
        for name, shape, channels in zip(self.spec.bottom, (scores, deltas), (2 * anchors, 4 * anchors), strict=False):
            if len(shape) != 4 or shape[0] not in (None, 1) or shape[1] not in (None, channels):
                raise ShapeError(
                    f"{self}: {anchors} anchors need 1 x {channels} x H x W (one image only), "
                    f"bottom {name!r} is {text(shape)}"
                )
        if any(a is not None and b is not None and a != b for a, b in zip(scores[2:], deltas[2:], strict=True)):
            raise ShapeError(f"{self}: scores are {text(scores)}, deltas {text(deltas)}; the maps must be of one size")
        numbers = count(info[1:] or info)
        if numbers is not None and numbers < self.image_numbers:
            raise ShapeError(
                f"{self}: im_info must hold {self.image_numbers} numbers (height, width, scale..), "
                f"bottom {self.spec.bottom[2]!r} is {text(info)}"
            )
        return self.found()[: len(self.spec.top)]

    @abstractmethod
    def found(self) -> list[Shape]:
        """Shapes of the regions, and of their scores where the layer gives them."""

    @abstractmethod
    def module(self, bottoms: list[Shape]) -> "ProposalModule":
        """What computes it; the ONNX form reads its rules from that too."""

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        scores, deltas, info = bottoms
        rules = self.module([bottom.shape for bottom in bottoms])
        _, score = graph.node("Split", [scores, graph.axes(self.anchors(), self.anchors())], 2, axis=1)
        score = graph.reshape(graph.call("Transpose", score, perm=(0, 2, 3, 1)), [None])
        boxes, large = boxes_in_image(graph, *moved_anchors(graph, deltas, rules), graph.reshape(info, [None]), rules)
        if rules.python:
            boxes, score = (graph.call("Compress", x, large, axis=0) for x in (boxes, score))
        else:
            score = graph.call("Where", large, score, graph.constant(0.0))
        before = graph.call("Min", graph.sizes(score), graph.axes(rules.before))
        score, order = graph.node("TopK", [score, before], 2, axis=0)  # equal scores stay in their order
        boxes = graph.call("Gather", boxes, order)
        ends = graph.call("Add", boxes, graph.constant([0.0, 0.0, 1.0, 1.0]))  # corners are pixels, and inclusive
        kept = suppressed(graph, ends, score, graph.axes(rules.after), rules.nms_threshold)
        tops = [graph.call("Pad", graph.call("Gather", boxes, kept), graph.axes(0, 1, 0, 0))]
        if rules.with_scores:
            score = graph.call("Gather", score, kept)
            tops.append(graph.call("Unsqueeze", score, graph.axes(1)) if rules.python else score)
        return tops


def moved_anchors(graph: "OnnxGraph", deltas: "OnnxValue", rules: "ProposalModule") -> "tuple[OnnxValue, OnnxValue]":
    """In ONNX: the anchors at all places of the map, moved by the deltas (1, 4 A, H, W): corners, each (H, W, A, 2)."""
    anchors = rules.anchors.numpy()
    shift = graph.call("Mul", cells(graph, deltas), graph.constant(float(rules.stride)))
    low, high = (graph.call("Add", shift, graph.constant(corner)) for corner in (anchors[:, :2], anchors[:, 2:]))
    size = graph.call("Add", graph.call("Sub", high, low), graph.constant(1.0))
    change = graph.reshape(deltas, [len(anchors), 4, None, None], copied=(2, 3))
    change = graph.call("Transpose", change, perm=(2, 3, 0, 1))  # (H, W, A, 4)
    move, growth = graph.node("Split", [change, graph.axes(2, 2)], 2, axis=3)
    half = graph.call("Mul", size, graph.constant(0.5))
    centre = graph.call("Add", graph.call("Add", low, half), graph.call("Mul", move, size))
    half = graph.call("Mul", half, graph.call("Exp", growth))
    return graph.call("Sub", centre, half), graph.call("Add", centre, half)


def boxes_in_image(
    graph: "OnnxGraph", low: "OnnxValue", high: "OnnxValue", info: "OnnxValue", rules: "ProposalModule"
) -> "tuple[OnnxValue, OnnxValue]":
    """In ONNX: boxes (K, 4) cut to the image, from corners (H, W, A, 2), and which of them (K) reach min_size."""
    limit = graph.call("Sub", graph.call("Gather", info, graph.axes(1, 0)), graph.constant(1.0))  # x, y
    low, high = (graph.call("Min", graph.call("Max", corner, graph.constant(0.0)), limit) for corner in (low, high))
    scale = graph.call("Gather", info, graph.axes(2) if rules.python else graph.axes(3, 2))
    least = graph.call("Mul", scale, graph.constant(float(rules.min_size)))
    side = graph.call("Add", graph.call("Sub", high, low), graph.constant(1.0))
    spare = graph.reshape(graph.call("ReduceMin", graph.call("Sub", side, least), graph.axes(3)), [None])
    boxes = graph.reshape(graph.call("Concat", low, high, axis=3), [None, 4])
    return boxes, graph.call("GreaterOrEqual", spare, graph.constant(0.0))


@register("Proposal")
class Proposal(_Proposal):
    """Regions from a region proposal network: anchors moved by predicted deltas, the best ones that overlap little.

    Shapes   scores (1, 2 A, H, W), deltas (1, 4 A, H, W), im_info (1, 4): height, width, their two scales -> rois (R,
             5) [, scores (R)]
    Params   ratio, scale (A pairs); feat_stride 16, base_size 16, min_size 16 (pixels); pre_nms_topn 6000,
             post_nms_topn 300, nms_thresh 0.7
    Raises   ShapeError: more than one image, other channels than A needs. UnsupportedLayer: the form with
             anchor_base_size and max_rois
    PyTorch  own module; boxes below min_size get the score 0 and may still come out. ONNX: TopK and
             NonMaxSuppression; boxes less than a pixel apart overlap there by the rest of that pixel, which counts for
             boxes of few pixels or a tiny nms_thresh only.
    Source   sanghoon/caffe, src/caffe/layers/proposal_layer.cpp
    """

    param_field = "proposal_param"
    image_numbers = 4

    def anchors(self) -> int:
        p = self.param
        if p.HasField("max_rois") or p.HasField("anchor_base_size") or p.HasField("anchor_scale"):
            raise UnsupportedLayer(
                f"{self}: the form with anchor_base_size, anchor_scale, anchor_ratio and max_rois is not described"
            )
        if not p.ratio or not p.scale or min(p.ratio) <= 0:
            raise ShapeError(
                f"{self}: wants at least one ratio (above 0) and one scale; has {list(p.ratio)} and {list(p.scale)}"
            )
        return len(p.ratio) * len(p.scale)

    def found(self) -> list[Shape]:
        return [(None, 5), (None,)]

    def module(self, bottoms: list[Shape]) -> "ProposalModule":
        from ..modules.rcnn import Proposal as Module
        from ..modules.rcnn import generate_anchors

        p = self.param
        return Module(
            generate_anchors(p.base_size, tuple(p.ratio), tuple(p.scale), half_to_even=False).tolist(),
            p.feat_stride,
            p.min_size,
            p.pre_nms_topn,
            p.post_nms_topn,
            p.nms_thresh,
            python=False,
            with_scores=len(self.spec.top) == 2,
        )


NUMBER = r"[-+]?[\d.]+(?:[eE][-+]?\d+)?"
ENTRY = re.compile(rf"""['"]?(\w+)['"]?\s*:\s*([\[(][^\])]*[\])]|(?:\s*-\s+{NUMBER})+|{NUMBER})""")


def python_numbers(param_str: str) -> dict[str, list[float]]:
    """Numbers and lists of numbers of a Python layer's param_str, by name; what is neither is left out.

    Takes what py-faster-rcnn's nets have: "'feat_stride': 16", "{'scales': [8, 16]}", "feat_stride: 16", YAML lists.
    """
    found = {}
    for name, value in ENTRY.findall(param_str):
        try:
            found[name] = [float(number) for number in re.findall(r"[^\s,\[\]()]+", re.sub(r"(^|\s)-\s+", " ", value))]
        except ValueError:
            continue
    return found


@register("rpn.proposal_layer.ProposalLayer")
class PythonProposal(_Proposal):
    """py-faster-rcnn's Python layer: regions from a region proposal network.

    Shapes   scores (1, 2 A, H, W), deltas (1, 4 A, H, W), im_info (1, 3): height, width, scale -> rois (R, 5) [, scores
             (R, 1)]
    Params   param_str: feat_stride (pixels), scales 8, 16, 32, ratios 0.5, 1, 2; TEST settings: 6000 before and 300
             after suppression at 0.7, boxes below 16 pixels of the unscaled image removed
    Raises   FormatError: no feat_stride. ShapeError: more than one image, other channels than A needs
    PyTorch  own module; suppression drops overlaps >= 0.7. ONNX: Compress, TopK and NonMaxSuppression.
    Source   rbgirshick/py-faster-rcnn, lib/rpn/proposal_layer.py, generate_anchors.py, lib/fast_rcnn/config.py
    """

    BEFORE, AFTER, THRESHOLD, MIN_SIZE = 6000, 300, 0.7, 16

    def settings(self) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
        """feat_stride, ratios and scales."""
        given = python_numbers(self.spec.python_param.param_str)
        stride, ratios = given.get("feat_stride", []), given.get("ratios", [0.5, 1.0, 2.0])
        if len(stride) != 1 or stride[0] < 1 or not ratios or min(ratios) <= 0:
            raise FormatError(
                f"{self}: param_str must give feat_stride, as in \"'feat_stride': 16\", and ratios, if any, above 0; "
                f"it is {self.spec.python_param.param_str!r}"
            )
        return int(stride[0]), tuple(ratios), tuple(given.get("scales", [8.0, 16.0, 32.0]))

    def anchors(self) -> int:
        _, ratios, scales = self.settings()
        return len(ratios) * len(scales)

    def found(self) -> list[Shape]:
        return [(None, 5), (None, 1)]

    def module(self, bottoms: list[Shape]) -> "ProposalModule":
        from ..modules.rcnn import Proposal as Module
        from ..modules.rcnn import generate_anchors

        stride, ratios, scales = self.settings()
        return Module(
            generate_anchors(16, ratios, scales, half_to_even=True).tolist(),
            stride,
            self.MIN_SIZE,
            self.BEFORE,
            self.AFTER,
            self.THRESHOLD,
            python=True,
            with_scores=len(self.spec.top) == 2,
        )
