"""Losses and accuracy: what training nets and their tests end with."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import ShapeError, UnsupportedLayer
from .base import BOOL, FLOAT, INT64, Layer, Quirk, Shape, compatible, count, register, text

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue

NORMALIZATIONS = {0: "full", 1: "valid", 2: "batch_size", 3: "none"}
FORKS_ONLY = ("label_smoothing", "pre_fixed_normalizer", "class_weighting", "weight_by_label_freqs")


class _Loss(Layer):
    """Base: scores or values and labels with the same first dimension -> a scalar."""

    is_loss = True
    judges = True
    fresh = True
    in_place = False
    batch_independent = False
    bottom_count = (2, 2)

    def check(self, bottoms: list[Shape]) -> None:
        """What this loss asks beyond the same first dimension."""

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        first, second = bottoms[:2]
        if not first or not second or not compatible(first[:1], second[:1]):
            raise ShapeError(f"{self}: bottoms {text(first)} and {text(second)} must have the same first dimension")
        self.check(bottoms)
        shapes: list[Shape] = [(), first]
        return shapes[: max(len(self.spec.top), 1)]

    def serial_terms(self, bottoms: list[Shape]) -> int:
        return count(bottoms[0]) or 1

    def four_axes(self, shape: Shape) -> None:
        if len(shape) > 4:
            raise ShapeError(f"{self}: wants at most 4 axes, a bottom is {text(shape)}")

    def one_each(self, shape: Shape, what: str) -> None:
        """A label blob is (N), or (N, 1, 1, 1)."""
        self.four_axes(shape)
        if any(n not in (1, None) for n in shape[1:]):
            raise ShapeError(f"{self}: wants one {what} for each item, (N) or (N, 1, 1, 1); bottom is {text(shape)}")

    def same_count(self, wanted: int | None, shape: Shape, what: str) -> None:
        found = count(shape)
        if wanted is not None and found is not None and wanted != found:
            name = self.spec.bottom[1]
            raise ShapeError(f"{self}: bottom {name!r} is {text(shape)}, {found} {what}; wanted are {wanted}")


class _NormalizedLoss(_Loss):
    """Base of the losses with a loss_param."""

    default = "valid"

    @property
    def ignore_label(self) -> int | None:
        return self.spec.loss_param.ignore_label if self.spec.loss_param.HasField("ignore_label") else None

    @property
    def normalization(self) -> str:
        """The mode; the old field `normalize` counts only where `normalization` is not set."""
        param = self.spec.loss_param
        if param.HasField("normalization"):
            return NORMALIZATIONS[param.normalization]
        return ("valid" if param.normalize else "batch_size") if param.HasField("normalize") else self.default

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        param = self.spec.loss_param
        foreign = [field.name for field, _ in param.ListFields() if field.name in FORKS_ONLY]
        if param.normalization not in NORMALIZATIONS:
            foreign.append("normalization: PRE_FIXED")
        if foreign:
            raise UnsupportedLayer(
                f"{self}: loss_param has {', '.join(foreign)}, which only a fork knows and only training needs; "
                "use the deploy net, or `caffeport convert`, which cuts it"
            )
        return super().tops(bottoms)


class _LabelledLoss(_NormalizedLoss, ABC):
    """Base of the losses over a softmax: one label for each place outside of the class axis."""

    top_count = (1, 2)

    @abstractmethod
    def class_axis(self) -> int:
        """The axis that has the classes, as the prototxt says it: it may count from the end."""

    def check(self, bottoms: list[Shape]) -> None:
        scores = bottoms[0]
        axis = self.axis(self.class_axis(), scores)
        self.same_count(count((*scores[:axis], *scores[axis + 1 :])), bottoms[1], "labels")

    @abstractmethod
    def terms(
        self, graph: "OnnxGraph", p: "OnnxValue", index: "OnnxValue", axis: int, further: "list[OnnxValue]"
    ) -> "OnnxValue":
        """The loss at each place in ONNX, from the probabilities, labels in range, and what bottoms follow those."""

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        x, label, *further = bottoms
        axis = self.axis(self.class_axis(), x.shape)
        p = graph.call("Softmax", x, axis=axis)
        p.shape = x.shape
        index = indices(graph, label, x, axis)
        safe, fits = in_range(graph, index, x, axis)
        terms = graph.call("Where", fits, self.terms(graph, p, safe, axis, further), graph.constant(float("nan")))
        ignored = ignored_by(graph, index, self.ignore_label)
        loss = averaged(graph, terms, ignored, self.normalization, range(axis, len(x.shape)))
        return [loss, p][: max(len(self.spec.top), 1)]


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(_LabelledLoss):
    """-log of the softmax at the label, averaged.

    sum of -log(max(p, 1.2e-38)) / Z, where Z counts: FULL all places, VALID those not ignored, BATCH_SIZE the items
    before the class axis, NONE one; at least 1

    Shapes   scores (N.., C, ...), labels (N.., ...), one for each place -> loss, a scalar [, probabilities]
    Params   softmax_param axis 1; loss_param ignore_label, normalization VALID (old normalize: VALID or BATCH_SIZE)
    Raises   ShapeError: first dimensions or the number of labels differ
             UnsupportedLayer: a fork's way to weight or normalise
    PyTorch  F.cross_entropy(reduction="sum") / Z, without the floor of 1.2e-38; a label that is no class is an error
             there, NaN here, any number in Caffe. ONNX: Softmax, GatherElements, Max, Log, ReduceMean.
    Source   BVLC Caffe 1.0, src/caffe/layers/softmax_loss_layer.cpp; it aborts on a second top, forks do not
    """

    param_field = "softmax_param"

    def class_axis(self) -> int:
        return int(self.param.axis)

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.loss import SoftmaxLoss

        return SoftmaxLoss(self.class_axis(), self.normalization, self.ignore_label, len(self.spec.top) > 1)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        return [Quirk(self.key, "a probability below 1.2e-38 counts as that: no term is above 87.34", "own module")]

    def terms(
        self, graph: "OnnxGraph", p: "OnnxValue", index: "OnnxValue", axis: int, further: "list[OnnxValue]"
    ) -> "OnnxValue":
        from ..modules.loss import FLT_MIN

        return minus_log(graph, graph.call("GatherElements", p, index, axis=axis), FLT_MIN)


@register("InfogainLoss")
class InfogainLoss(_LabelledLoss):
    """Like SoftmaxWithLoss, but each label asks for all classes, weighted by its row of a matrix H.

    sum of -sum over l of H[label, l] * log(max(p_l, 1e-20)) / Z; Z as for SoftmaxWithLoss

    Shapes   scores (N.., C, ...), labels (N.., ...), H of C * C values -> loss, a scalar [, probabilities]
    Params   infogain_loss_param axis 1; loss_param ignore_label, normalization VALID; source is not read
    Raises   ShapeError: as SoftmaxWithLoss; H has not C * C values; loss_param has the old normalize
             UnsupportedLayer: no third bottom
    PyTorch  own module. ONNX: Softmax, Max, Log, Gather, Mul, ReduceSum, ReduceMean.
    Source   BVLC Caffe 1.0, src/caffe/layers/infogain_loss_layer.cpp
    """

    param_field = "infogain_loss_param"
    bottom_count = (2, 3)

    def class_axis(self) -> int:
        return int(self.param.axis)

    def check(self, bottoms: list[Shape]) -> None:
        super().check(bottoms)
        if self.spec.loss_param.HasField("normalize"):
            raise ShapeError(f"{self}: loss_param normalize is not for this layer; Caffe wants normalization")
        if len(bottoms) < 3:
            raise UnsupportedLayer(
                f"{self}: its matrix is in the file {self.param.source!r}, which is not read; "
                "give the matrix as a third bottom, an Input layer of C x C values"
            )
        classes = bottoms[0][self.axis(self.class_axis(), bottoms[0])]
        values = count(bottoms[2])
        if classes is not None and values is not None and values != classes**2:
            raise ShapeError(
                f"{self}: bottom {self.spec.bottom[2]!r} is {text(bottoms[2])}; wanted are {classes} x {classes} values"
            )

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.loss import InfogainLoss as Module

        return Module(self.class_axis(), self.normalization, self.ignore_label, len(self.spec.top) > 1)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        return [Quirk(self.key, "takes scores, not probabilities: the softmax is inside", "own module")]

    def terms(
        self, graph: "OnnxGraph", p: "OnnxValue", index: "OnnxValue", axis: int, further: "list[OnnxValue]"
    ) -> "OnnxValue":
        from ..modules.loss import LOG_THRESHOLD

        (gain,), classes, last = further, p.shape[axis], len(p.shape) - 1
        if classes is None or gain.shape != (classes, classes):
            gain = graph.reshape(gain, (classes, None))
        weight = graph.call("Squeeze", graph.call("Gather", gain, index, axis=0), graph.axes(axis))  # classes are last
        if axis != last:
            weight = graph.call("Transpose", weight, perm=(*range(axis), last, *range(axis, last)))
        each = graph.call("Mul", weight, minus_log(graph, p, LOG_THRESHOLD))
        return graph.call("ReduceSum", each, graph.axes(axis), keepdims=1)


@register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(_NormalizedLoss):
    """Cross entropy of independent yes-or-no targets, averaged.

    sum of -(t * log(s) + (1 - t) * log(1 - s)) / Z with s = sigmoid(x); Z as for SoftmaxWithLoss

    Shapes   scores (N, ...), targets (N, ...), as many -> loss, a scalar
    Params   loss_param ignore_label (compared with the truncated target), normalization BATCH_SIZE
    Raises   ShapeError: first dimensions or numbers of values differ. UnsupportedLayer: as SoftmaxWithLoss
    PyTorch  F.binary_cross_entropy_with_logits(reduction="sum") / Z, within rounding. ONNX: Exp, Log, Mul, Sub,
             ReduceSum, ReduceMean.
    Source   BVLC Caffe 1.0, src/caffe/layers/sigmoid_cross_entropy_loss_layer.cpp
    """

    default = "batch_size"

    def check(self, bottoms: list[Shape]) -> None:
        self.same_count(count(bottoms[0]), bottoms[1], "targets")

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.loss import SigmoidCrossEntropyLoss as Module

        return Module(self.normalization, self.ignore_label)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        x, target = (rows(graph, bottom) for bottom in bottoms)
        positive = graph.call("Cast", graph.call("GreaterOrEqual", x, graph.constant(0.0)), to=FLOAT)
        negative = graph.call("Sub", x, graph.call("Mul", graph.call("Add", x, x), positive))  # -|x|
        log = graph.call("Log", graph.call("Add", graph.call("Exp", negative), graph.constant(1.0)))
        terms = graph.call("Sub", log, graph.call("Mul", x, graph.call("Sub", target, positive)))
        ignore = self.ignore_label
        ignored = None if ignore is None else ignored_by(graph, graph.call("Cast", target, to=INT64), ignore)
        return [averaged(graph, terms, ignored, self.normalization, (1,))]


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(_Loss):
    """-log of given probabilities at the label, averaged over the items.

    Shapes   probabilities (N, ...), labels (N) or (N, 1, 1, 1) -> loss, a scalar
    Raises   ShapeError: first dimensions differ, more than one label an item, more than 4 axes
    PyTorch  F.nll_loss of log(max(p, 1e-20)). Below 1e-20 its gradient is 0, Caffe's -1 / (N 1e-20).
             ONNX: GatherElements, Max, Log, ReduceMean.
    Source   BVLC Caffe 1.0, src/caffe/layers/multinomial_logistic_loss_layer.cpp
    """

    def check(self, bottoms: list[Shape]) -> None:
        self.four_axes(bottoms[0])
        self.one_each(bottoms[1], "label")

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.loss import MultinomialLogisticLoss as Module

        return Module()

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        from ..modules.loss import LOG_THRESHOLD

        p = rows(graph, bottoms[0])
        index = graph.call("Cast", graph.reshape(bottoms[1], (None, 1)), to=INT64)
        safe, fits = in_range(graph, index, p, 1)
        terms = minus_log(graph, graph.call("GatherElements", p, safe, axis=1), LOG_THRESHOLD)
        terms = graph.call("Where", fits, terms, graph.constant(float("nan")))
        return [graph.call("ReduceMean", terms, keepdims=0)]


@register("EuclideanLoss")
class EuclideanLoss(_Loss):
    """Half the squared distance, averaged over the items: sum of (a - b)^2 / (2 N).

    Shapes   a (N, ...), b (N, ...), as many values an item -> loss, a scalar
    Raises   ShapeError: first dimensions or values an item differ, a has more than 4 axes
    PyTorch  F.mse_loss(reduction="sum") / (2 N), equal. ONNX: Sub, ReduceSumSquare, ReduceMean, Mul.
    Source   BVLC Caffe 1.0, src/caffe/layers/euclidean_loss_layer.cpp
    """

    def check(self, bottoms: list[Shape]) -> None:
        self.four_axes(bottoms[0])
        first, second = (count(shape[1:]) for shape in bottoms)
        if first is not None and second is not None and first != second:
            raise ShapeError(f"{self}: bottoms {text(bottoms[0])} and {text(bottoms[1])} differ in values an item")

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.loss import EuclideanLoss as Module

        return Module()

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        a, b = (rows(graph, bottom) for bottom in bottoms)
        square = graph.call("ReduceSumSquare", graph.call("Sub", a, b), graph.axes(1), keepdims=0)
        return [graph.call("Mul", graph.call("ReduceMean", square, keepdims=0), graph.constant(0.5))]


@register("HingeLoss")
class HingeLoss(_Loss):
    """How far each score is on the wrong side of its margin: max(0, 1 - x) for the label, max(0, 1 + x) for the rest.

    Shapes   scores (N, ...), labels (N), or more, of which the first N count -> loss, a scalar
    Params   norm L1: sum / N; L2: sum of squares / N
    Raises   ShapeError: first dimensions differ, scores have more than 4 axes
    PyTorch  own module; nn.MultiMarginLoss compares classes with each other. ONNX: Equal, Where, Add, Relu,
             ReduceSum or ReduceSumSquare, ReduceMean.
    Source   BVLC Caffe 1.0, src/caffe/layers/hinge_loss_layer.cpp
    """

    param_field = "hinge_loss_param"

    def check(self, bottoms: list[Shape]) -> None:
        self.four_axes(bottoms[0])

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.loss import HingeLoss as Module

        return Module(self.param.norm == self.param.L2)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        x = rows(graph, bottoms[0])
        index = graph.call("Unsqueeze", one_index_each(graph, bottoms[1], bottoms[0]), graph.axes(1))
        signed = graph.call("Where", is_class(graph, index, x, 1, 0), graph.call("Neg", x), x)
        margin = graph.call("Relu", graph.call("Add", signed, graph.constant(1.0)))
        norm = "ReduceSumSquare" if self.param.norm == self.param.L2 else "ReduceSum"
        return [graph.call("ReduceMean", graph.call(norm, margin, graph.axes(1), keepdims=0), keepdims=0)]


@register("ContrastiveLoss")
class ContrastiveLoss(_Loss):
    """Pulls pairs that are alike together, and others apart up to a margin.

    sum of (alike ? d^2 : max(margin - d, 0)^2) / (2 N), d the Euclidean distance of a and b

    Shapes   a, b (N, C) or (N, C, 1, 1), alike (N) or (N, 1, 1, 1), 0 or not -> loss, a scalar
    Params   margin 1; legacy_version false: where true, max(margin - d^2, 0)
    Raises   ShapeError: channels differ, more than C values an item, fewer marks than pairs
    PyTorch  own module. Its gradient is the derivative; Caffe divides by d + 1e-4 in place of d. ONNX: Sub,
             ReduceSumSquare, Sqrt, Relu, Where, ReduceMean, Mul.
    Source   BVLC Caffe 1.0, src/caffe/layers/contrastive_loss_layer.cpp
    """

    param_field = "contrastive_loss_param"
    bottom_count = (3, 3)

    def check(self, bottoms: list[Shape]) -> None:
        for shape in bottoms[:2]:
            self.four_axes(shape)
            if any(n not in (1, None) for n in shape[2:]):
                raise ShapeError(f"{self}: wants vectors, (N, C) or (N, C, 1, 1); a bottom is {text(shape)}")
        first, second = (count(shape[1:]) for shape in bottoms[:2])
        if first is not None and second is not None and first != second:
            raise ShapeError(f"{self}: bottoms {text(bottoms[0])} and {text(bottoms[1])} differ in channels")
        self.one_each(bottoms[2], "mark")
        pairs, marks = bottoms[0][0], count(bottoms[2])
        if pairs is not None and marks is not None and marks < pairs:
            raise ShapeError(f"{self}: bottom {self.spec.bottom[2]!r} has {marks} marks, too few for {pairs} pairs")

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.loss import ContrastiveLoss as Module

        return Module(self.param.margin, self.param.legacy_version)

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        a, b, alike = bottoms
        difference = graph.call("Sub", rows(graph, a), rows(graph, b))
        square = graph.call("ReduceSumSquare", difference, graph.axes(1), keepdims=0)
        legacy, margin = self.param.legacy_version, graph.constant(self.param.margin)
        apart = graph.call("Relu", graph.call("Sub", margin, square if legacy else graph.call("Sqrt", square)))
        same = graph.call("Cast", one_index_each(graph, alike, a), to=BOOL)
        terms = graph.call("Where", same, square, apart if legacy else graph.call("Mul", apart, apart))
        return [graph.call("Mul", graph.call("ReduceMean", terms, keepdims=0), graph.constant(0.5))]


@register("Accuracy")
class Accuracy(Layer):
    """Share of the labels that are among the top_k scores.

    A label is right if fewer than top_k other classes score as much or more: a tie counts against it.

    Shapes   scores (N.., C, ...), labels, one for each place -> accuracy, a scalar [, that of each class (C)]
    Params   top_k 1; axis 1; ignore_label
    Raises   ShapeError: the number of labels differs, top_k is more than the classes
    PyTorch  own module; topk lets a label win some ties. No gradient. ONNX: GatherElements, GreaterOrEqual,
             ReduceSum, LessOrEqual, ReduceMean.
    Source   BVLC Caffe 1.0, src/caffe/layers/accuracy_layer.cpp
    """

    param_field = "accuracy_param"
    judges = True
    bottom_count = (2, 2)
    top_count = (1, 2)
    fresh = True
    in_place = False
    batch_independent = False
    differentiable = False

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        scores, labels = bottoms
        axis = self.axis(self.param.axis, scores)
        classes, places = scores[axis], count((*scores[:axis], *scores[axis + 1 :]))
        if classes is not None and self.param.top_k > classes:
            raise ShapeError(f"{self}: top_k is {self.param.top_k}, but there are only {classes} classes")
        given = count(labels)
        if places is not None and given is not None and places != given:
            name = self.spec.bottom[1]
            raise ShapeError(f"{self}: bottom {name!r} is {text(labels)}, {given} labels; wanted are {places}")
        shapes: list[Shape] = [(), (classes,)]
        return shapes[: len(self.spec.top)]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.loss import Accuracy as Module

        ignore = self.param.ignore_label if self.param.HasField("ignore_label") else None
        return Module(self.param.top_k, self.param.axis, ignore, len(self.spec.top) > 1)

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        return [Quirk(self.key, "a score equal to the label's counts as better", "own module")]

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        (x, label), p = bottoms, self.param
        axis = self.axis(p.axis, x.shape)
        index = indices(graph, label, x, axis)
        safe, fits = in_range(graph, index, x, axis)
        as_good = graph.call("GreaterOrEqual", x, graph.call("GatherElements", x, safe, axis=axis))
        place = graph.call("ReduceSum", graph.call("Cast", as_good, to=FLOAT), graph.axes(axis), keepdims=1)
        found = graph.call("LessOrEqual", place, graph.constant(float(p.top_k)))  # place 0 is that of a NaN
        right = graph.call("Cast", graph.call("And", found, fits), to=FLOAT)
        ignored = ignored_by(graph, index, p.ignore_label if p.HasField("ignore_label") else None)
        accuracy = averaged(graph, right, ignored, "valid")
        if len(self.spec.top) == 1:
            return [accuracy]
        others = [other for other in range(len(x.shape)) if other != axis]
        member = is_class(graph, index, x, axis, len(x.shape) - 1 - axis)
        if ignored is not None:
            member = graph.call("And", member, graph.call("Not", ignored))
        member = graph.call("Cast", member, to=FLOAT)
        hits, members = graph.call("Mul", member, right), member
        if others:
            hits, members = (graph.call("ReduceSum", x, graph.axes(*others), keepdims=0) for x in (hits, members))
        return [accuracy, graph.call("Div", hits, graph.call("Max", members, graph.constant(1.0)))]


# ---- what the ONNX forms share


def rows(graph: "OnnxGraph", x: "OnnxValue") -> "OnnxValue":
    """x as (N, values of an item)."""
    return x if len(x.shape) == 2 else graph.call("Flatten", x, axis=1)


def indices(graph: "OnnxGraph", label: "OnnxValue", x: "OnnxValue", axis: int) -> "OnnxValue":
    """Labels as whole numbers, under x's shape but for the axis, along which x has the classes: there it has size 1."""
    wanted = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    if wanted.count(None) > 1:
        sizes = graph.sizes(x, 0, axis), graph.axes(1), graph.sizes(x, axis + 1)
        label = graph.call("Reshape", label, graph.call("Concat", *sizes, axis=0))
    elif label.shape != wanted:
        label = graph.reshape(label, wanted)
    return graph.call("Cast", label, to=INT64)


def one_index_each(graph: "OnnxGraph", label: "OnnxValue", x: "OnnxValue") -> "OnnxValue":
    """The first labels as whole numbers, one for each item of x: (N)."""
    flat = label if len(label.shape) == 1 else graph.reshape(label, (None,))
    if x.shape[0] is None or count(label.shape) != x.shape[0]:
        flat = graph.call("Slice", flat, graph.axes(0), graph.sizes(x, 0, 1), graph.axes(0))
    return graph.call("Cast", flat, to=INT64)


def in_range(graph: "OnnxGraph", index: "OnnxValue", x: "OnnxValue", axis: int) -> "tuple[OnnxValue, OnnxValue]":
    """Indices that are safe to look up along x's axis, and whether the given ones are."""
    safe = graph.call("Mod", index, graph.sizes(x, axis, axis + 1))  # not negative, and unchanged where in range
    return safe, graph.call("Equal", index, safe)


def is_class(graph: "OnnxGraph", index: "OnnxValue", x: "OnnxValue", axis: int, after: int) -> "OnnxValue":
    """Whether each index along x's axis is the given one, which has size 1 there and `after` axes behind."""
    size = graph.call("Squeeze", graph.sizes(x, axis, axis + 1), graph.axes(0))
    classes = graph.call("Range", graph.constant(0), size, graph.constant(1))
    if after:
        classes = graph.call("Unsqueeze", classes, graph.axes(*range(1, after + 1)))
    return graph.call("Equal", index, classes)


def minus_log(graph: "OnnxGraph", p: "OnnxValue", least: float) -> "OnnxValue":
    """-log(max(p, least))."""
    return graph.call("Neg", graph.call("Log", graph.call("Max", p, graph.constant(least))))


def ignored_by(graph: "OnnxGraph", index: "OnnxValue", ignore_label: int | None) -> "OnnxValue | None":
    """Which labels do not count; None where all do."""
    return None if ignore_label is None else graph.call("Equal", index, graph.constant(ignore_label))


def averaged(
    graph: "OnnxGraph",
    terms: "OnnxValue",
    ignored: "OnnxValue | None",
    normalization: str,
    inner: Iterable[int] = (),
) -> "OnnxValue":
    """Sum of the terms that are not ignored, divided by what the normalization counts; `inner` are an item's axes."""
    if ignored is not None:
        terms = graph.call("Where", ignored, graph.constant(0.0), terms)
    if normalization == "valid" and ignored is not None:
        kept = graph.call("ReduceSum", graph.call("Cast", graph.call("Not", ignored), to=FLOAT), keepdims=0)
        number = graph.call("Max", kept, graph.constant(1.0))
        return graph.call("Div", graph.call("ReduceSum", terms, keepdims=0), number)
    if normalization == "none":
        return graph.call("ReduceSum", terms, keepdims=0)
    if normalization == "batch_size":
        terms = graph.call("ReduceSum", terms, graph.axes(*inner), keepdims=0)
    return graph.call("ReduceMean", terms, keepdims=0)
