"""Losses and accuracy: what training nets and their tests end with."""

from typing import TYPE_CHECKING

from ..errors import ShapeError, UnsupportedLayer
from .base import Layer, Quirk, Shape, compatible, count, register, text

if TYPE_CHECKING:
    from torch import nn

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


class _LabelledLoss(_NormalizedLoss):
    """Base of the losses over a softmax: one label for each place outside of the class axis."""

    top_count = (1, 2)

    def class_axis(self) -> int:
        raise NotImplementedError

    def check(self, bottoms: list[Shape]) -> None:
        scores = bottoms[0]
        axis = self.axis(self.class_axis(), scores)
        self.same_count(count((*scores[:axis], *scores[axis + 1 :])), bottoms[1], "labels")


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
             there, NaN here, any number in Caffe. ONNX: none.
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


@register("InfogainLoss")
class InfogainLoss(_LabelledLoss):
    """Like SoftmaxWithLoss, but each label asks for all classes, weighted by its row of a matrix H.

    sum of -sum over l of H[label, l] * log(max(p_l, 1e-20)) / Z; Z as for SoftmaxWithLoss

    Shapes   scores (N.., C, ...), labels (N.., ...), H of C * C values -> loss, a scalar [, probabilities]
    Params   infogain_loss_param axis 1; loss_param ignore_label, normalization VALID; source is not read
    Raises   ShapeError: as SoftmaxWithLoss; H has not C * C values; loss_param has the old normalize
             UnsupportedLayer: no third bottom
    PyTorch  own module. ONNX: none.
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


@register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(_NormalizedLoss):
    """Cross entropy of independent yes-or-no targets, averaged.

    sum of -(t * log(s) + (1 - t) * log(1 - s)) / Z with s = sigmoid(x); Z as for SoftmaxWithLoss

    Shapes   scores (N, ...), targets (N, ...), as many -> loss, a scalar
    Params   loss_param ignore_label (compared with the truncated target), normalization BATCH_SIZE
    Raises   ShapeError: first dimensions or numbers of values differ. UnsupportedLayer: as SoftmaxWithLoss
    PyTorch  F.binary_cross_entropy_with_logits(reduction="sum") / Z, within rounding. ONNX: none.
    Source   BVLC Caffe 1.0, src/caffe/layers/sigmoid_cross_entropy_loss_layer.cpp
    """

    default = "batch_size"

    def check(self, bottoms: list[Shape]) -> None:
        self.same_count(count(bottoms[0]), bottoms[1], "targets")

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.loss import SigmoidCrossEntropyLoss as Module

        return Module(self.normalization, self.ignore_label)


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(_Loss):
    """-log of given probabilities at the label, averaged over the items.

    Shapes   probabilities (N, ...), labels (N) or (N, 1, 1, 1) -> loss, a scalar
    Raises   ShapeError: first dimensions differ, more than one label an item, more than 4 axes
    PyTorch  F.nll_loss of log(max(p, 1e-20)). Below 1e-20 its gradient is 0, Caffe's -1 / (N 1e-20). ONNX: none.
    Source   BVLC Caffe 1.0, src/caffe/layers/multinomial_logistic_loss_layer.cpp
    """

    def check(self, bottoms: list[Shape]) -> None:
        self.four_axes(bottoms[0])
        self.one_each(bottoms[1], "label")

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.loss import MultinomialLogisticLoss as Module

        return Module()


@register("EuclideanLoss")
class EuclideanLoss(_Loss):
    """Half the squared distance, averaged over the items: sum of (a - b)^2 / (2 N).

    Shapes   a (N, ...), b (N, ...), as many values an item -> loss, a scalar
    Raises   ShapeError: first dimensions or values an item differ, a has more than 4 axes
    PyTorch  F.mse_loss(reduction="sum") / (2 N), equal. ONNX: none.
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


@register("HingeLoss")
class HingeLoss(_Loss):
    """How far each score is on the wrong side of its margin: max(0, 1 - x) for the label, max(0, 1 + x) for the rest.

    Shapes   scores (N, ...), labels (N), or more, of which the first N count -> loss, a scalar
    Params   norm L1: sum / N; L2: sum of squares / N
    Raises   ShapeError: first dimensions differ, scores have more than 4 axes
    PyTorch  own module; nn.MultiMarginLoss compares classes with each other. ONNX: none.
    Source   BVLC Caffe 1.0, src/caffe/layers/hinge_loss_layer.cpp
    """

    param_field = "hinge_loss_param"

    def check(self, bottoms: list[Shape]) -> None:
        self.four_axes(bottoms[0])

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.loss import HingeLoss as Module

        return Module(self.param.norm == self.param.L2)


@register("ContrastiveLoss")
class ContrastiveLoss(_Loss):
    """Pulls pairs that are alike together, and others apart up to a margin.

    sum of (alike ? d^2 : max(margin - d, 0)^2) / (2 N), d the Euclidean distance of a and b

    Shapes   a, b (N, C) or (N, C, 1, 1), alike (N) or (N, 1, 1, 1), 0 or not -> loss, a scalar
    Params   margin 1; legacy_version false: where true, max(margin - d^2, 0)
    Raises   ShapeError: channels differ, more than C values an item, fewer marks than pairs
    PyTorch  own module. Its gradient is the derivative; Caffe divides by d + 1e-4 in place of d. ONNX: none.
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


@register("Accuracy")
class Accuracy(Layer):
    """Share of the labels that are among the top_k scores.

    A label is right if fewer than top_k other classes score as much or more: a tie counts against it.

    Shapes   scores (N.., C, ...), labels, one for each place -> accuracy, a scalar [, that of each class (C)]
    Params   top_k 1; axis 1; ignore_label
    Raises   ShapeError: the number of labels differs, top_k is more than the classes
    PyTorch  own module; topk lets a label win some ties. No gradient. ONNX: none.
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
