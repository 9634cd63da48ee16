"""Caffe's losses and its accuracy. Labels are numbers that are truncated toward zero; each loss is a scalar."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLT_MIN = 1.1754943508222875e-38  # the least probability whose logarithm SoftmaxWithLoss takes
LOG_THRESHOLD = 1e-20  # the same for the older losses


def by_class(x: Tensor, axis: int) -> Tensor:
    """x as (outer, classes, inner), the classes being the given axis."""
    axis %= x.dim()
    return x.reshape(x.shape[:axis].numel(), x.shape[axis], x.shape[axis + 1 :].numel())


def at_label(x: Tensor, label: Tensor) -> Tensor:
    """x (outer, classes, inner) at each label (outer, inner); NaN where it is no class (Caffe reads past the end)."""
    picked = x.gather(1, label.clamp(0, x.shape[1] - 1)[:, None])[:, 0]
    return torch.where((label >= 0) & (label < x.shape[1]), picked, float("nan"))


def floored_log(log_p: Tensor, least: float) -> Tensor:
    """log(max(p, least)) rounded as Caffe rounds it, with the gradient of log(p) everywhere, also as in Caffe."""
    log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min)  # -inf - -inf would be NaN
    return log_p.detach().exp().clamp(min=least).log() + (log_p - log_p.detach())  # the difference is 0 with a gradient


def normalized(terms: Tensor, kept: Tensor, normalization: str) -> Tensor:
    """Sum of the terms (outer, inner) that are kept, divided by what the normalization counts, which is 1 at least."""
    total = torch.where(kept, terms, 0.0).sum()
    if normalization == "valid":
        return total / kept.sum().clamp(min=1)
    return total / {"full": terms.numel(), "batch_size": terms.shape[0], "none": 1}[normalization]


def is_kept(label: Tensor, ignore_label: int | None) -> Tensor:
    """Which labels count."""
    return torch.ones_like(label, dtype=torch.bool) if ignore_label is None else label != ignore_label


class _Loss(nn.Module):
    """What losses with a `loss_param` share."""

    def __init__(self, normalization: str, ignore_label: int | None) -> None:
        super().__init__()
        self.normalization, self.ignore_label = normalization, ignore_label

    def extra_repr(self) -> str:
        return f"{self.normalization}, ignore_label={self.ignore_label}"


class _LabelledLoss(_Loss):
    """What losses over a softmax share."""

    def __init__(self, axis: int, normalization: str, ignore_label: int | None, probabilities: bool) -> None:
        super().__init__(normalization, ignore_label)
        self.axis, self.probabilities = axis, probabilities

    def extra_repr(self) -> str:
        return f"axis={self.axis}, {super().extra_repr()}"


class SoftmaxLoss(_LabelledLoss):
    """Mean of -log(max(softmax(x) at the label, FLT_MIN)); with `probabilities` also the softmax."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        log_p = by_class(F.log_softmax(x, self.axis), self.axis)
        label = label.long().reshape(log_p.shape[0], log_p.shape[2])
        terms = -floored_log(at_label(log_p, label), FLT_MIN)
        loss = normalized(terms, is_kept(label, self.ignore_label), self.normalization)
        return (loss, log_p.exp().reshape(x.shape)) if self.probabilities else loss


class InfogainLoss(_LabelledLoss):
    """Mean of -sum over l of H[label, l] * log(max(softmax(x)[l], 1e-20)); H (classes, classes) is the third input."""

    def forward(self, x: Tensor, label: Tensor, gain: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        log_p = by_class(F.log_softmax(x, self.axis), self.axis)
        label = label.long().reshape(log_p.shape[0], log_p.shape[2])
        classes = log_p.shape[1]
        weight = gain.reshape(classes, classes)[label.clamp(0, classes - 1)].movedim(2, 1)  # (outer, classes, inner)
        terms = -(weight * floored_log(log_p, LOG_THRESHOLD)).sum(1)
        terms = torch.where((label >= 0) & (label < classes), terms, float("nan"))
        loss = normalized(terms, is_kept(label, self.ignore_label), self.normalization)
        return (loss, log_p.exp().reshape(x.shape)) if self.probabilities else loss


class SigmoidCrossEntropyLoss(_Loss):
    """Mean of -(t * log(sigmoid(x)) + (1 - t) * log(1 - sigmoid(x))); the targets t may lie between 0 and 1."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        target = target.reshape(x.shape)
        positive = (x >= 0).to(x.dtype)
        terms = (1 + (x - 2 * x * positive).exp()).log() - x * (target - positive)  # no exp of a positive number
        kept = is_kept(target.long(), self.ignore_label)
        return normalized(terms.reshape(len(x), -1), kept.reshape(len(x), -1), self.normalization)


class MultinomialLogisticLoss(nn.Module):
    """Mean of -log(max(p at the label, 1e-20)), p being probabilities (N, classes)."""

    def forward(self, p: Tensor, label: Tensor) -> Tensor:
        p = p.reshape(len(p), -1, 1)
        return -at_label(p, label.long().reshape(-1, 1)).clamp(min=LOG_THRESHOLD).log().sum() / len(p)


class EuclideanLoss(nn.Module):
    """Sum of (a - b)^2 / (2 N)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b.reshape(a.shape)).square().sum() / (2 * len(a))


class HingeLoss(nn.Module):
    """Sum of max(0, 1 - x) for the label and max(0, 1 + x) for all other classes, or of their squares, divided by N."""

    def __init__(self, squared: bool) -> None:
        super().__init__()
        self.squared = squared

    def extra_repr(self) -> str:
        return f"squared={self.squared}"

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = x.reshape(len(x), -1)
        label = label.flatten()[: len(x), None].long()
        sign = torch.where(label == torch.arange(x.shape[1], device=x.device), -1.0, 1.0).to(x.dtype)
        margin = F.relu(1 + sign * x)
        return (margin.square() if self.squared else margin).sum() / len(x)


class ContrastiveLoss(nn.Module):
    """Sum of d^2 for pairs that are alike and max(margin - d, 0)^2 for others, divided by 2 N; d is their distance.

    The legacy version takes max(margin - d^2, 0) for the others.
    """

    def __init__(self, margin: float, legacy: bool) -> None:
        super().__init__()
        self.margin, self.legacy = margin, legacy

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}, legacy={self.legacy}"

    def forward(self, a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
        difference = (a - b.reshape(a.shape)).flatten(1)
        square = difference.square().sum(1)
        if self.legacy:
            apart = F.relu(self.margin - square)
        else:  # vector_norm, since the gradient of a root is infinite at 0
            apart = F.relu(self.margin - torch.linalg.vector_norm(difference, dim=1)).square()
        same = alike.flatten()[: len(a)].long() != 0
        return torch.where(same, square, apart).sum() / (2 * len(a))


class Accuracy(nn.Module):
    """Share of labels whose score is among the top_k; a tie counts against them. With `per_class` also each class's."""

    def __init__(self, top_k: int, axis: int, ignore_label: int | None, per_class: bool) -> None:
        super().__init__()
        self.top_k, self.axis, self.ignore_label, self.per_class = top_k, axis, ignore_label, per_class

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}, axis={self.axis}, ignore_label={self.ignore_label}"

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = by_class(x.detach(), self.axis)
        label = label.long().reshape(x.shape[0], x.shape[2])
        rivals = (x >= at_label(x, label)[:, None]).sum(1) - 1  # a NaN score has none, so it counts as right
        kept = is_kept(label, self.ignore_label)
        right = ((rivals < self.top_k) & (label >= 0) & (label < x.shape[1]) & kept).to(x.dtype)
        accuracy = right.sum() / kept.sum().clamp(min=1)
        if not self.per_class:
            return accuracy
        classes = torch.arange(x.shape[1], device=x.device)
        member = (label[:, None] == classes[:, None]) & kept[:, None]  # (outer, classes, inner)
        return accuracy, (member * right[:, None]).sum((0, 2)) / member.sum((0, 2)).clamp(min=1)
