"""Detection heads of SSD and RefineDet."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import ShapeError
from ..formats.schema import Message
from .base import BOOL, FLOAT, Blob, Layer, Quirk, Shape, constant, count, register, text
from .data import DataLayer

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue

CODES = {1: "CORNER", 2: "CENTER_SIZE", 3: "CORNER_SIZE"}


def wants_axes(layer: Layer, shape: Shape, axes: int) -> None:
    """Raises ShapeError unless the bottom has this many axes."""
    if len(shape) != axes:
        raise ShapeError(f"{layer}: wants {axes} axes, bottom is {text(shape)}")


@register("AnnotatedData", "VideoData", "BoxData", "ImageSegData", "LaneData")
class AnnotatedData(DataLayer):
    """Pictures with boxes or label maps, fed by the caller.

    Shapes   no bottom -> data (B, C, h, w) and labels, as known only to the database
    Params   data_param: batch_size; transform_param: crop_size or resize_param height and width
    PyTorch  arguments of forward. ONNX: graph inputs.
    Source   weiliu89/caffe branch ssd, src/caffe/layers/annotated_data_layer.cpp
    """

    param_field = "data_param"

    def first(self) -> Shape:
        transform = self.spec.transform_param
        heights = [transform.crop_size, transform.crop_h, *(resize.height for resize in transform.resize_param), None]
        widths = [transform.crop_size, transform.crop_w, *(resize.width for resize in transform.resize_param), None]
        height, width = (next(filter(None, sizes), None) for sizes in (heights, widths))
        return (self.param.batch_size or None, self.channels(), height, width)

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        return [self.first(), *[(None,) * 4] * (len(self.spec.top) - 1)]


@register("Normalize")
class Normalize(Layer):
    """Divide by the Euclidean norm of each pixel's channels, or of the whole item, and multiply by a learned scale.

    y = x / sqrt(eps + sum(x^2)) * scale

    Shapes   bottom (N, C, ...) -> top, same
    Params   across_spatial true (the whole item); channel_shared true; eps 1e-10; scale_filler constant 1
    Blobs    weight: a scalar, or (C) with channel_shared false
    Raises   ShapeError: one axis only
    PyTorch  own module; F.normalize limits the norm from below instead. ONNX: ReduceSumSquare, Add, Sqrt, Div, Mul.
    Source   weiliu89/caffe branch ssd, src/caffe/layers/normalize_layer.cpp
    """

    param_field = "norm_param"
    fresh = True

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        if len(bottoms[0]) < 2:
            raise ShapeError(f"{self}: wants at least 2 axes, bottom is {text(bottoms[0])}")
        return bottoms[:1]

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        filler = self.param.scale_filler if self.param.HasField("scale_filler") else constant(1.0)
        if self.param.channel_shared:
            return [Blob("weight", (), filler)]
        stored = self.stored_shape(0, 1)
        return [
            Blob(
                "weight", (self.known(bottoms[0][1], stored[0] if stored else None, "its number of channels"),), filler
            )
        ]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.detection import Normalize as Module

        (shape,) = (blob.shape for blob in self.blobs(bottoms))
        return Module(shape[0] if shape else None, self.param.across_spatial, self.param.eps)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x,), p = bottoms, self.param
        rank = len(x.shape)
        axes = graph.axes(*range(1, rank)) if p.across_spatial else graph.axes(1)
        energy = graph.call("ReduceSumSquare", x, axes, keepdims=1)
        unit = graph.call("Div", x, graph.call("Sqrt", graph.call("Add", energy, graph.constant(p.eps))))
        (shape,) = (blob.shape for blob in self.blobs([x.shape]))
        return [graph.call("Mul", unit, graph.weight("weight", (*shape, *(1,) * (rank - 2)) if shape else ()))]


@register("PriorBox")
class PriorBox(Layer):
    """Boxes of fixed sizes around the middle of every cell of a feature map, and their variances.

    For each min_size: its square, the square of sqrt(min max), then a box of its area for each aspect ratio

    Shapes   feature map (N, C, H, W), image (N, c, h, w) -> top (1, 2, 4 H W n): corners divided by the image's size,
             then variances
    Params   min_size, max_size (pixels, cut to whole numbers), aspect_ratio, flip true, clip false, variance 0.1,
             offset 0.5; img_size or img_h and img_w, step or step_h and step_w (pixels): else from the bottoms
    Raises   ShapeError: no min_size, max_size not above it, 2 or 3 variances, sizes or steps not above 0, half-given
             pairs
    PyTorch  own module. ONNX: a constant for a fixed input size.
    Source   weiliu89/caffe branch ssd, src/caffe/layers/prior_box_layer.cpp
    """

    param_field = "prior_box_param"
    bottom_count = (2, 2)
    fresh = True
    in_place = False
    batch_independent = False
    differentiable = False

    def sizes(self) -> list[tuple[float, float]]:
        """Width and height in pixels of each box of a cell, in order."""
        p: Message = self.param
        if not p.min_size or any(size <= 0 for size in p.min_size):
            raise ShapeError(f"{self}: wants at least one min_size, all above 0; has {list(p.min_size)}")
        if p.max_size and len(p.max_size) != len(p.min_size):
            raise ShapeError(f"{self}: has {len(p.max_size)} max_size for {len(p.min_size)} min_size")
        if any(high <= low for low, high in zip(p.min_size, p.max_size, strict=False)):
            raise ShapeError(
                f"{self}: each max_size must be above its min_size; has {list(p.max_size)} for {list(p.min_size)}"
            )
        if any(ratio <= 0 for ratio in p.aspect_ratio):
            raise ShapeError(f"{self}: aspect_ratio must be above 0; has {list(p.aspect_ratio)}")
        ratios = [1.0]
        for ratio in p.aspect_ratio:
            if all(abs(ratio - known) >= 1e-6 for known in ratios):
                ratios += [ratio, 1 / ratio] if p.flip else [ratio]
        sizes = []
        for i, low in enumerate(map(int, p.min_size)):
            sizes.append((float(low), float(low)))
            if p.max_size:
                side = (low * int(p.max_size[i])) ** 0.5
                sizes.append((side, side))
            sizes += [(low * ratio**0.5, low / ratio**0.5) for ratio in ratios[1:]]
        return sizes

    def variance(self) -> tuple[float, ...]:
        variance = tuple(self.param.variance) or (0.1,)
        if len(variance) not in (1, 4) or any(v <= 0 for v in variance):
            raise ShapeError(f"{self}: wants 1 or 4 variances above 0; has {list(variance)}")
        return variance

    def pair(self, whole: str, first: str, second: str) -> tuple[float, float] | None:
        """A parameter given once, or for height and width; None where it is not given."""
        p = self.param
        if p.HasField(first) or p.HasField(second):
            if p.HasField(whole) or not (getattr(p, first) > 0 and getattr(p, second) > 0):
                raise ShapeError(f"{self}: give either {whole} or both {first} and {second}, above 0")
            return getattr(p, first), getattr(p, second)
        if not p.HasField(whole):
            return None
        if getattr(p, whole) <= 0:
            raise ShapeError(f"{self}: {whole} must be above 0")
        return (getattr(p, whole),) * 2

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        for shape in bottoms:
            wants_axes(self, shape, 4)
        self.variance(), self.pair("img_size", "img_h", "img_w"), self.pair("step", "step_h", "step_w")
        cells = count(bottoms[0][2:])
        return [(1, 2, None if cells is None else cells * len(self.sizes()) * 4)]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.detection import PriorBox as Module

        image = self.pair("img_size", "img_h", "img_w")
        return Module(
            self.sizes(),
            self.variance(),
            (int(image[0]), int(image[1])) if image else None,
            self.pair("step", "step_h", "step_w"),
            self.param.offset,
            self.param.clip,
        )

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        cut = [size for size in (*self.param.min_size, *self.param.max_size) if size != int(size)]
        return [Quirk(self.key, f"sizes {cut} are cut to whole pixels", "as Caffe")] if cut else []

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        import torch

        shapes = [bottom.shape for bottom in bottoms]
        if None in shapes[0][2:] + shapes[1][2:]:
            raise graph.refuse("its boxes depend on the size of the map: fix height and width")
        maps = [torch.zeros(1, 1, *shape[2:]) for shape in shapes]  # type: ignore[arg-type]
        return [graph.constant(self.module(shapes)(*maps).numpy())]


@register("PriorBoxClustered")
class PriorBoxClustered(PriorBox):
    """Boxes of given widths and heights around the middle of every cell of a feature map, and their variances.

    Shapes   feature map (N, C, H, W), image (N, c, h, w) -> top (1, 2, 4 H W n)
    Params   width, height (pixels, one pair for each box); clip, variance, offset, img_size, step as PriorBox
    Raises   ShapeError: width and height not equally often, or not above 0; as PriorBox
    PyTorch  own module. ONNX: a constant for a fixed input size.
    Source   openvinotoolkit/training_toolbox_caffe, src/caffe/layers/prior_box_clustered_layer.cpp
    """

    def sizes(self) -> list[tuple[float, float]]:
        width, height = list(self.param.width), list(self.param.height)
        if not width or len(width) != len(height) or min(width + height) <= 0:
            raise ShapeError(f"{self}: wants as many width as height, all above 0; has {width} and {height}")
        return list(zip(width, height, strict=True))

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        return []


def decoded(graph: "OnnxGraph", prior: "OnnxValue", delta: "OnnxValue", code: str) -> "OnnxValue":
    """In ONNX: boxes from priors (.., 4) and predicted changes; corners xmin, ymin, xmax, ymax."""
    if code == "CORNER":
        return graph.call("Add", prior, delta)
    halves = graph.axes(2, 2)
    low, high = graph.node("Split", [prior, halves], 2, axis=3)
    size = graph.call("Sub", high, low)
    if code == "CORNER_SIZE":
        return graph.call("Add", prior, graph.call("Mul", delta, graph.call("Concat", size, size, axis=3)))
    shift, growth = graph.node("Split", [delta, halves], 2, axis=3)
    half = graph.constant(0.5)
    centre = graph.call("Add", graph.call("Mul", graph.call("Add", low, high), half), graph.call("Mul", shift, size))
    side = graph.call("Mul", graph.call("Mul", size, graph.call("Exp", growth)), half)
    return graph.call("Concat", graph.call("Sub", centre, side), graph.call("Add", centre, side), axis=3)


def cells(graph: "OnnxGraph", x: "OnnxValue") -> "OnnxValue":
    """In ONNX: column and row of each cell of the map x (N, C, H, W), as float32 (H, W, 1, 2)."""
    height, width = x.shape[2:]
    if height is not None and width is not None:
        return graph.constant(np.stack(np.meshgrid(range(width), range(height)), -1)[:, :, None], np.float32)
    numbers = []
    for axis, others, xy in ((3, (0, 2, 3), (1.0, 0.0)), (2, (1, 2, 3), (0.0, 1.0))):
        size = graph.call("Squeeze", graph.sizes(x, axis, axis + 1), graph.axes(0))
        number = graph.call("Cast", graph.call("Range", graph.constant(0), size, graph.constant(1)), to=FLOAT)
        numbers.append(graph.call("Mul", graph.call("Unsqueeze", number, graph.axes(*others)), graph.constant(xy)))
    return graph.call("Add", *numbers)


def suppressed(
    graph: "OnnxGraph", boxes: "OnnxValue", scores: "OnnxValue", most: "OnnxValue", threshold: float
) -> "OnnxValue":
    """In ONNX: which boxes (K, 4) with scores (K) non-maximum suppression keeps, best first, at most `most` (1)."""
    if not 0 <= threshold <= 1:
        raise graph.refuse(f"ONNX's NonMaxSuppression takes thresholds from 0 to 1, not {threshold:g}")
    kept = graph.call(
        "NonMaxSuppression", graph.call("Unsqueeze", boxes, graph.axes(0)),
        graph.call("Unsqueeze", scores, graph.axes(0, 1)), most,
        graph.constant(float(threshold)), graph.constant(float(np.finfo(np.float32).min)),
    )  # fmt: skip
    return graph.call("Gather", kept, graph.constant(2), axis=1)


def suppressed_by_shrinking(
    graph: "OnnxGraph", boxes: "OnnxValue", counts: "OnnxValue", count: int, threshold: float, eta: float
) -> "OnnxValue":
    """In ONNX: non-maximum suppression in G groups, whose threshold is multiplied by eta after each box that is kept.

    boxes   (G, count, 4), best first; counts (G, count): 1 where a box takes part, else 0

    Gives (G, count): 1 where a box is kept. The threshold shrinks while it is above 0.5.
    """
    halves = graph.axes(2, 2)
    low, high = graph.node("Split", [boxes, halves], 2, axis=2)
    area = graph.call("ReduceProd", graph.call("Sub", high, low), graph.axes(2), keepdims=0)
    ranks = graph.constant(np.arange(count, dtype=np.float32))

    def step(state: "list[OnnxValue]", item: "list[OnnxValue]") -> "tuple[list[OnnxValue], list[OnnxValue]]":
        (kept, limit), (box, taking_part, rank) = state, item  # (G, count), (G, 1); (G, 4), (G), ()
        first, last = graph.node("Split", [graph.call("Unsqueeze", box, graph.axes(1)), halves], 2, axis=2)
        side = graph.call("Sub", graph.call("Min", high, last), graph.call("Max", low, first))
        side = graph.call("Max", side, graph.constant(0.0))
        common = graph.call("ReduceProd", side, graph.axes(2), keepdims=0)
        own = graph.call("ReduceProd", graph.call("Sub", last, first), graph.axes(2), keepdims=0)
        union = graph.call("Sub", graph.call("Add", area, own), common)
        touch = graph.call("Greater", common, graph.constant(0.0))
        overlap = graph.call("Where", touch, graph.call("Div", common, union), graph.constant(0.0))
        worst = graph.call("ReduceMax", graph.call("Mul", overlap, kept), graph.axes(1))
        fits = graph.call("Cast", graph.call("LessOrEqual", worst, limit), to=FLOAT)
        keep = graph.call("Mul", graph.call("Unsqueeze", taking_part, graph.axes(1)), fits)
        shrinks = graph.call(
            "And", graph.call("Cast", keep, to=BOOL), graph.call("Greater", limit, graph.constant(0.5))
        )
        limit = graph.call("Where", shrinks, graph.call("Mul", limit, graph.constant(float(eta))), limit)
        here = graph.call("Cast", graph.call("Equal", ranks, rank), to=FLOAT)
        return [graph.call("Add", kept, graph.call("Mul", keep, here)), limit], []

    nothing = graph.filled_like(counts, 0.0)
    limit = graph.call("Add", graph.call("ReduceMax", nothing, graph.axes(1)), graph.constant(float(threshold)))
    by_rank = [graph.call("Transpose", boxes, perm=(1, 0, 2)), graph.call("Transpose", counts, perm=(1, 0)), ranks]
    (kept, _), _ = graph.scan(step, [nothing, limit], by_rank, 0)
    return kept


def found(graph: "OnnxGraph", rows: "OnnxValue", x: "OnnxValue") -> "OnnxValue":
    """In ONNX: the rows (K, 7) as (1, 1, K, 7); where there is none, a row (i, -1, ...) for each image of x."""
    images = graph.sizes(x, 0, 1)
    number = graph.call("Range", graph.constant(0), graph.call("Squeeze", images, graph.axes(0)), graph.constant(1))
    number = graph.call("Unsqueeze", graph.call("Cast", number, to=FLOAT), graph.axes(1))
    blank = graph.call("Pad", number, graph.axes(0, 0, 0, 6), graph.constant(-1.0))
    empty = graph.call("Equal", graph.sizes(rows, 0, 1), graph.axes(0))
    blank = graph.call("Compress", blank, graph.call("Expand", empty, images), axis=0)
    return graph.call("Unsqueeze", graph.call("Concat", rows, blank, axis=0), graph.axes(0, 1))


@register("DetectionOutput")
class DetectionOutput(Layer):
    """Boxes decoded from priors, thresholded, and reduced by non-maximum suppression for each label.

    Shapes   loc (N, P L 4), conf (N, P classes), priors (1, 2, 4 P) [, RefineDet: objectness (N, 2 P) [, first loc (N,
             P L 4)]] -> top (1, 1, K, 7): image, label, score, xmin, ymin, xmax, ymax; L is 1, or classes without
             share_location
    Params   num_classes; share_location true; background_label_id 0; code_type CORNER; variance_encoded_in_target
             false; confidence_threshold (none: all pass); nms_param: nms_threshold 0.3, top_k -1, eta 1; keep_top_k -1;
             objectness_score 0.01
    Raises   ShapeError: no num_classes, counts that do not fit, nms_threshold below 0, eta outside of (0, 1]
    PyTorch  own module. Rows by image, label, falling score; nothing found: a row (i, -1, ...) for each image.
             ONNX: NonMaxSuppression for each class (with eta a Scan) and TopK, rows sorted again.
    Source   weiliu89/caffe branch ssd and sfzhang15/RefineDet, src/caffe/layers/detection_output_layer.cpp
    """

    param_field = "detection_output_param"
    bottom_count = (3, 5)
    fresh = True
    in_place = False
    batch_independent = False
    differentiable = False

    def refined(self, bottoms: list[Shape]) -> bool:
        """Whether the fourth bottom is RefineDet's objectness; SSD's is a picture to draw on."""
        return len(bottoms) == 5 or (len(bottoms) == 4 and len(bottoms[3]) != 4)

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        p = self.param
        if not p.num_classes:
            raise ShapeError(f"{self}: num_classes is missing")
        if p.nms_param.nms_threshold < 0 or not 0 < p.nms_param.eta <= 1:
            raise ShapeError(
                f"{self}: nms_threshold must not be below 0 and eta must be in (0, 1]; "
                f"they are {p.nms_param.nms_threshold:g} and {p.nms_param.eta:g}"
            )
        if p.share_location and p.background_label_id == -1:
            raise ShapeError(f"{self}: background_label_id -1 needs share_location: false; Caffe aborts with both")
        if len(bottoms[2]) < 3:
            raise ShapeError(
                f"{self}: priors must be 1 x 2 x 4 P, bottom {self.spec.bottom[2]!r} is {text(bottoms[2])}"
            )
        priors = None if bottoms[2][2] is None else bottoms[2][2] // 4
        wanted = [4 if p.share_location else 4 * p.num_classes, p.num_classes]
        wanted += [None, 2, wanted[0]] if self.refined(bottoms) else []
        for name, shape, each in zip(self.spec.bottom, bottoms, wanted, strict=False):
            values = count(shape[1:])
            if each is not None and values is not None and priors is not None and values != priors * each:
                raise ShapeError(
                    f"{self}: bottom {name!r} has {values} values for each item, {priors} priors need {priors * each}"
                )
        return [(1, 1, None, 7)]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.detection import DetectionOutput as Module

        p = self.param
        return Module(
            classes=p.num_classes,
            shared=p.share_location,
            background=p.background_label_id,
            code=CODES[p.code_type],
            variance_in_target=p.variance_encoded_in_target,
            threshold=p.confidence_threshold if p.HasField("confidence_threshold") else float("-inf"),
            nms_threshold=p.nms_param.nms_threshold,
            eta=p.nms_param.eta,
            top_k=p.nms_param.top_k if p.nms_param.HasField("top_k") else -1,
            keep_top_k=p.keep_top_k,
            objectness=p.objectness_score if self.refined(bottoms) else None,
        )

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        what = "rows are sorted by image, label and falling score, not by score over labels; boxes are not clipped"
        return [Quirk(self.key, what, "as the ssd branch; OpenCV differs")]

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        p, (loc, conf, priors, *others) = self.param, bottoms
        count = priors.shape[2] and priors.shape[2] // 4
        if not count:
            raise graph.refuse("the number of priors depends on the size of the map: fix height and width")
        top_k = min(count, p.nms_param.top_k) if p.nms_param.HasField("top_k") and p.nms_param.top_k > -1 else count
        if not top_k:
            return [found(graph, graph.constant(np.zeros((0, 7), np.float32)), loc)]
        labels = [label for label in range(p.num_classes) if label != p.background_label_id]
        refined = self.refined([bottom.shape for bottom in bottoms])
        prior, variance = graph.node("Split", [graph.reshape(priors, [2, count, 1, 4]), graph.axes(1, 1)], 2, axis=0)
        boxes = prior
        for step in ([others[1]] if refined and len(others) > 1 else []) + [loc]:
            delta = graph.reshape(step, [None, count, 1 if p.share_location else p.num_classes, 4])
            delta = delta if p.variance_encoded_in_target else graph.call("Mul", delta, variance)
            boxes = decoded(graph, boxes, delta, CODES[p.code_type])  # (N, P, L, 4)
        scores = graph.reshape(conf, [None, count, p.num_classes])
        if refined:
            present = graph.node("Split", [graph.reshape(others[0], [None, count, 2]), graph.axes(1, 1)], 2, axis=2)[1]
            nothing = np.arange(p.num_classes) == p.background_label_id
            absent = graph.call("Less", present, graph.constant(p.objectness_score))
            scores = graph.call("Where", absent, graph.constant(nothing.astype(np.float32)), scores)
        scores = graph.call(
            "Transpose", graph.call("Gather", scores, graph.axes(*labels), axis=2), perm=(0, 2, 1)
        )  # (N, L', P)
        boxes = graph.call("Transpose", boxes, perm=(0, 2, 1, 3))  # (N, L, P, 4)
        if p.share_location:
            boxes = graph.call("Expand", boxes, graph.axes(1, len(labels), 1, 1))
        else:
            boxes = graph.call("Gather", boxes, graph.axes(*labels), axis=1)
        # From here on a group is one label of one image: G = N * L', and its candidates come best first.
        best, index = graph.node("TopK", [graph.reshape(scores, [None, count]), graph.axes(top_k)], 2, axis=1)  # (G, k)
        places = graph.call("Unsqueeze", index, graph.axes(2))
        chosen = graph.call("GatherND", graph.reshape(boxes, [None, count, 4]), places, batch_dims=1)  # (G, k, 4)
        threshold = p.confidence_threshold if p.HasField("confidence_threshold") else float(np.finfo(np.float32).min)
        solid = chosen
        if p.code_type != 2:  # a box turned inside out has no area, where ONNX would turn it back
            low, high = graph.node("Split", [chosen, graph.axes(2, 2)], 2, axis=2)
            solid = graph.call("Concat", low, graph.call("Max", low, high), axis=2)
        if p.nms_param.eta == 1:
            selected = graph.call(
                "NonMaxSuppression", solid, graph.call("Unsqueeze", best, graph.axes(1)), graph.axes(top_k),
                graph.constant(float(p.nms_param.nms_threshold)), graph.constant(float(threshold)),
            )  # fmt: skip
            pairs = graph.call("Gather", selected, graph.axes(0, 2), axis=1)  # group, rank
            zeros = graph.call("Expand", graph.constant(0.0), graph.sizes(best))
            kept = graph.call(
                "ScatterND", zeros, pairs, graph.call("Expand", graph.constant(1.0), graph.sizes(pairs, 0, 1))
            )
        else:
            counts = graph.call("Cast", graph.call("Greater", best, graph.constant(float(threshold))), to=FLOAT)
            kept = suppressed_by_shrinking(graph, solid, counts, top_k, p.nms_param.nms_threshold, p.nms_param.eta)
        if p.keep_top_k > -1:
            limit = min(p.keep_top_k, len(labels) * top_k)
            lowest = graph.constant(np.float32(-np.inf))
            table = graph.call("Where", graph.call("Cast", kept, to=BOOL), best, lowest)
            table = graph.reshape(table, [None, len(labels) * top_k])
            _, at = graph.node("TopK", [table, graph.axes(limit)], 2, axis=1)
            ones = graph.call("Expand", graph.constant(1.0), graph.sizes(at))
            among = graph.call("Expand", graph.constant(0.0), graph.sizes(table))
            among = graph.call("ScatterElements", among, at, ones, axis=1)
            kept = graph.call("Mul", kept, graph.reshape(among, [None, top_k]))
        places = graph.call("Transpose", graph.call("NonZero", kept), perm=(1, 0))  # (K, 2), by group and rank
        group = graph.call("Gather", places, graph.axes(0), axis=1)
        image = graph.call("Cast", graph.call("Div", group, graph.axes(len(labels))), to=FLOAT)
        label = graph.call(
            "Gather", graph.constant(np.array(labels, np.float32)), graph.call("Mod", group, graph.axes(len(labels)))
        )
        score = graph.call("Unsqueeze", graph.call("GatherND", best, places), graph.axes(1))
        rows = graph.call("Concat", image, label, score, graph.call("GatherND", chosen, places), axis=1)
        return [found(graph, rows, loc)]
