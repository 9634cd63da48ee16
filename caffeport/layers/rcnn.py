"""Region proposals and pooling of Faster R-CNN and R-FCN."""

import re
from typing import TYPE_CHECKING

from ..errors import FormatError, ShapeError, UnsupportedLayer
from .base import Layer, Quirk, Shape, count, register, text

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue


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


@register("PSROIPooling")
class PSROIPooling(Layer):
    """Mean in each of group_size x group_size bins of each region, every bin from channels of its own.

    Shapes   map (N, D g^2, H, W), rois (R, 5 [, 1, 1]) as ROIPooling -> top (R, D, g, g)
    Params   output_dim (D), group_size (g), spatial_scale: all required
    Raises   ShapeError: a parameter is missing, the map has another number of channels, rois are not R x 5
    PyTorch  own module; torchvision's ps_roi_pool scales before it rounds, this rounds before it scales. ONNX: none.
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

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        return [
            Quirk(
                self.key, "corners are rounded before they are scaled, unlike torchvision's ps_roi_pool", "own module"
            )
        ]


class _Proposal(Layer):
    """What the two forms of the proposal layer share."""

    bottom_count = (3, 3)
    top_count = (1, 2)
    fresh = True
    in_place = False
    batch_independent = False
    differentiable = False
    image_numbers = 3  # of im_info

    def anchors(self) -> int:
        """How many at each place."""
        raise NotImplementedError

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

    def found(self) -> list[Shape]:
        raise NotImplementedError


@register("Proposal")
class Proposal(_Proposal):
    """Regions from a region proposal network: anchors moved by predicted deltas, the best ones that overlap little.

    Shapes   scores (1, 2 A, H, W), deltas (1, 4 A, H, W), im_info (1, 4): height, width, their two scales -> rois (R,
             5) [, scores (R)]
    Params   ratio, scale (A pairs); feat_stride 16, base_size 16, min_size 16 (pixels); pre_nms_topn 6000,
             post_nms_topn 300, nms_thresh 0.7
    Raises   ShapeError: more than one image, other channels than A needs. UnsupportedLayer: the form with
             anchor_base_size and max_rois
    PyTorch  own module; boxes below min_size get the score 0 and may still come out. ONNX: none.
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

    def module(self, bottoms: list[Shape]) -> "nn.Module":
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
    PyTorch  own module; suppression drops overlaps >= 0.7. ONNX: none.
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

    def module(self, bottoms: list[Shape]) -> "nn.Module":
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
