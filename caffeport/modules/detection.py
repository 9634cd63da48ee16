"""Detection heads of SSD and RefineDet: normalisation, priors and decoding."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .boxes import nms


class Normalize(nn.Module):
    """x / sqrt(eps + sum of x^2) * weight; the sum runs over the channels, or over all values of an item."""

    def __init__(self, channels: int | None, across_spatial: bool, eps: float) -> None:
        """channels: None where one weight serves all."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(() if channels is None else (channels,)))
        self.across_spatial, self.eps = across_spatial, eps

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, across_spatial={self.across_spatial}, eps={self.eps:g}"

    def forward(self, x: Tensor) -> Tensor:
        axes = list(range(1, x.dim())) if self.across_spatial else [1]
        factor = (x * x).sum(axes, keepdim=True).add(self.eps).rsqrt()
        return x * factor * self.weight.reshape(-1, *(1,) * (x.dim() - 2))


class PriorBox(nn.Module):
    """Boxes of fixed sizes around the middle of every cell of a map, and their variances: (1, 2, 4 H W sizes)."""

    sizes: Tensor
    variance: Tensor

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        variance: Sequence[float],
        image: tuple[int, int] | None,
        step: tuple[float, float] | None,
        offset: float,
        clip: bool,
    ) -> None:
        """sizes (n, 2): width, height in pixels; image, step: height, width in pixels, or None: from the bottoms."""
        super().__init__()
        self.register_buffer("sizes", torch.tensor(sizes, dtype=torch.float32, device="cpu"), persistent=False)
        self.register_buffer("variance", torch.tensor(variance, dtype=torch.float32, device="cpu"), persistent=False)
        self.image, self.step, self.offset, self.clip = image, step, offset, clip

    def extra_repr(self) -> str:
        fixed = f"image={self.image}, step={self.step}, offset={self.offset:g}, clip={self.clip}"
        return f"{self.sizes.shape[0]} per cell, {fixed}"

    def forward(self, feature: Tensor, image: Tensor) -> Tensor:
        height, width = feature.shape[2:4]
        image_height, image_width = self.image or image.shape[2:4]
        step_h, step_w = self.step or (image_height / height, image_width / width)
        like = {"device": feature.device, "dtype": feature.dtype}
        y = (torch.arange(height, **like) + self.offset) * step_h  # type: ignore[call-overload]
        x = (torch.arange(width, **like) + self.offset) * step_w  # type: ignore[call-overload]
        half = self.sizes.to(**like) / 2  # type: ignore[call-overload]
        count = half.shape[0]
        boxes = torch.stack(
            [
                ((x[:, None] - half[:, 0]) / image_width).expand(height, width, count),
                ((y[:, None] - half[:, 1]) / image_height)[:, None].expand(height, width, count),
                ((x[:, None] + half[:, 0]) / image_width).expand(height, width, count),
                ((y[:, None] + half[:, 1]) / image_height)[:, None].expand(height, width, count),
            ],
            -1,
        )
        if self.clip:
            boxes = boxes.clamp(0, 1)
        variance = self.variance.to(**like).expand_as(boxes)  # type: ignore[call-overload]
        return torch.stack([boxes.flatten(), variance.flatten()])[None]


def decoded(prior: Tensor, delta: Tensor, code: str) -> Tensor:
    """Boxes (xmin, ymin, xmax, ymax) from priors (..., 4) and predicted changes, multiplied by the variances."""
    if code == "CORNER":
        return prior + delta
    low, high = prior[..., :2], prior[..., 2:]
    size = high - low
    if code == "CORNER_SIZE":
        return prior + delta * torch.cat([size, size], -1)
    centre = (low + high) / 2 + delta[..., :2] * size
    half = size * delta[..., 2:].exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def candidates(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """In each row of scores (G, P), what is above the threshold, best first and ties in order.

    Gives scores and columns, both (G, most); rows with fewer end in -inf.
    """
    mask = scores > threshold
    counts = mask.sum(1)
    most = int(counts.max()) if counts.numel() else 0
    row, column = mask.nonzero(as_tuple=True)
    place = torch.arange(row.numel(), device=row.device) - (counts.cumsum(0) - counts)[row]
    table = scores.new_full((scores.shape[0], most), float("-inf"))
    table[row, place] = scores[row, column]
    columns = column.new_zeros(table.shape)
    columns[row, place] = column
    table, order = table.sort(dim=1, descending=True, stable=True)
    return table, columns.gather(1, order)


def nothing_found(images: int, like: Tensor) -> Tensor:
    """What Caffe gives for a batch without detections: a row (image, -1, -1, -1, -1, -1, -1) for each image."""
    rows = like.new_full((images, 7), -1.0)
    rows[:, 0] = torch.arange(images, device=like.device)
    return rows


class DetectionOutput(nn.Module):
    """SSD's and RefineDet's detections: (1, 1, K, 7), by image, label and falling score.

    Rows are image, label, score, xmin, ymin, xmax, ymax.

    forward takes loc (N, P * L * 4), conf (N, P * classes), priors (1, 2, P * 4) and, for RefineDet, the objectness
    (N, P * 2) and the first step's loc (N, P * L * 4). L is 1 with shared locations, else the number of classes.
    """

    def __init__(
        self,
        classes: int,
        shared: bool,
        background: int,
        code: str,
        variance_in_target: bool,
        threshold: float,
        nms_threshold: float,
        eta: float,
        top_k: int,
        keep_top_k: int,
        objectness: float | None,
    ) -> None:
        """objectness: RefineDet's threshold; None: SSD, where further bottoms are not read."""
        super().__init__()
        self.classes, self.shared, self.background = classes, shared, background
        self.code, self.variance_in_target = code, variance_in_target
        self.threshold, self.nms_threshold, self.eta = threshold, nms_threshold, eta
        self.top_k, self.keep_top_k, self.objectness = top_k, keep_top_k, objectness

    def extra_repr(self) -> str:
        return (
            f"{self.classes} classes, {self.code}, threshold={self.threshold:g}, nms_threshold={self.nms_threshold:g}, "
            f"top_k={self.top_k}, keep_top_k={self.keep_top_k}"
        )

    def forward(
        self,
        loc: Tensor,
        conf: Tensor,
        priors: Tensor,
        first_conf: Tensor | None = None,
        first_loc: Tensor | None = None,
    ) -> Tensor:
        images = loc.shape[0]
        prior, variance = priors.reshape(priors.shape[0], 2, -1, 1, 4)[0]  # (P, 1, 4)
        count = prior.shape[0]
        boxes = prior
        for step in (first_loc, loc):
            if step is not None:
                delta = step.reshape(images, count, -1, 4)
                boxes = decoded(
                    boxes, delta if self.variance_in_target else delta * variance, self.code
                )  # (N, P, L, 4)
        scores = conf.reshape(images, count, self.classes)
        if first_conf is not None and self.objectness is not None:
            absent = first_conf.reshape(images, count, 2)[:, :, 1:] < self.objectness
            nothing = torch.arange(self.classes, device=conf.device) == self.background
            scores = torch.where(absent, nothing.to(scores.dtype), scores)
        labels = torch.arange(self.classes, device=conf.device)
        labels = labels[labels != self.background]
        scores = scores.transpose(1, 2)[:, labels].reshape(images * labels.numel(), count)
        score, prior_index = candidates(scores, self.threshold)  # (G, M), a group for each label of each image
        if self.top_k > -1:
            score, prior_index = score[:, : self.top_k], prior_index[:, : self.top_k]
        image = torch.arange(images, device=conf.device).repeat_interleave(labels.numel())
        label = labels.repeat(images)
        box = boxes[
            image[:, None], prior_index, torch.zeros_like(label)[:, None] if self.shared else label[:, None]
        ]  # (G, M, 4)
        keep = nms(box.permute(2, 0, 1).contiguous(), score > float("-inf"), self.nms_threshold, eta=self.eta)
        if self.keep_top_k > -1:
            best = (
                torch.where(keep, score, float("-inf")).reshape(images, -1).argsort(dim=1, descending=True, stable=True)
            )
            among = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best[:, : self.keep_top_k], True)
            keep = keep & among.reshape(keep.shape)
        group, rank = keep.nonzero(as_tuple=True)
        if not group.numel():
            return nothing_found(images, conf)[None, None]
        columns = [image[group].to(conf.dtype), label[group].to(conf.dtype), score[group, rank]]
        return torch.cat([torch.stack(columns, 1), box[group, rank]], 1)[None, None]
