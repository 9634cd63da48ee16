"""Detection heads: SSD's normalisation, priors and decoding, and YOLO's."""

from collections.abc import Sequence
from typing import Any

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


class Reorg(nn.Module):
    """Darknet's rearrangement between channels and pixels.

    Neither direction is pixel_unshuffle, nor the inverse of the other.
    """

    def __init__(self, stride: int, reverse: bool = False) -> None:
        super().__init__()
        self.stride, self.reverse = stride, reverse

    def extra_repr(self) -> str:
        return f"{self.stride}, reverse={self.reverse}"

    def forward(self, x: Tensor) -> Tensor:
        (n, c, h, w), s = x.shape, self.stride
        if self.reverse:
            return (
                x.reshape(n, s, s, c // (s * s), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (s * s), h * s, w * s)
            )
        y = x.reshape(n, c // (s * s), h, s, w, s).permute(0, 3, 5, 1, 2, 4)
        return y.reshape(n, c * s * s, h // s, w // s)


class RegionYolo(nn.Module):
    """Logistic on x, y and objectness, softmax over the classes, width and height as they are; then flattened."""

    def __init__(self, number: int, coords: int, classes: int, axis: int, end_axis: int) -> None:
        super().__init__()
        self.number, self.coords, self.classes, self.axis, self.end_axis = number, coords, classes, axis, end_axis

    def extra_repr(self) -> str:
        return f"{self.number} boxes, {self.coords} coords, {self.classes} classes"

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(x.shape[0], self.number, -1, *x.shape[2:])
        middle, objectness, classes = y[:, :, :2], y[:, :, self.coords : self.coords + 1], y[:, :, self.coords + 1 :]
        parts = [middle.sigmoid(), y[:, :, 2 : self.coords], objectness.sigmoid(), classes.softmax(2)]
        return torch.cat(parts, 2).reshape(x.shape).flatten(self.axis, self.end_axis)


class NearestUpsample(nn.Module):
    """The last two axes repeated `scale` times."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def extra_repr(self) -> str:
        return f"{self.scale}"

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


def yolo_rows(box: Tensor, score: Tensor, label: Tensor, images: int, nms_threshold: float) -> Tensor:
    """Rows (0, label, score, left, top, right, bottom) of YOLO's layers from candidates.

    box (K, 4) as centre and size, score (K), label (K).

    Suppression runs over all classes and images together, and the image number is always 0, as in the fork.
    """
    if not score.numel():
        return nothing_found(images, score)[None, None]
    score, order = score.sort(dim=0, descending=True, stable=True)
    centre, half = box[order, :2], box[order, 2:] / 2
    corners = torch.cat([centre - half, centre + half], 1)
    keep = nms(
        corners.t().contiguous()[:, None], torch.ones_like(score, dtype=torch.bool)[None], nms_threshold, inclusive=True
    )[0]
    label = label[order].to(score.dtype) + 1
    rows = torch.cat([torch.stack([torch.zeros_like(score), label, score], 1), corners], 1)
    return rows[keep][None, None]


def yolo_cells(x: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """The map (N, number * K, H, W) as (N, H, W, number, K), and the cells' columns (W, 1) and rows (H, 1, 1)."""
    cells = x.reshape(x.shape[0], number, -1, *x.shape[2:]).permute(0, 3, 4, 1, 2)
    column = torch.arange(x.shape[3], device=x.device, dtype=x.dtype)[:, None]
    row = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)[:, None, None]
    return cells, column, row


class YoloDetectionOutput(nn.Module):
    """YOLO v2's detections from one or two maps: (1, 1, K, 7), by falling score."""

    anchors: Tensor

    def __init__(self, classes: int, anchors: Sequence[Any], threshold: float, nms_threshold: float) -> None:
        """anchors (boxes, 2): width and height in cells."""
        super().__init__()
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32, device="cpu"), persistent=False)
        self.classes, self.threshold, self.nms_threshold = classes, threshold, nms_threshold

    def extra_repr(self) -> str:
        return f"{self.classes} classes, threshold={self.threshold:g}, nms_threshold={self.nms_threshold:g}"

    def forward(self, *maps: Tensor) -> Tensor:
        boxes, scores, labels = [], [], []
        for x in maps:
            cells, column, row = yolo_cells(x, self.anchors.shape[0])
            anchors = self.anchors.to(x.dtype)
            chance, label = cells[..., 5 : 5 + self.classes].softmax(-1).max(-1)
            score = cells[..., 4].sigmoid() * chance
            box = torch.stack(
                [
                    (cells[..., 0].sigmoid() + column) / x.shape[3],
                    (cells[..., 1].sigmoid() + row) / x.shape[2],
                    cells[..., 2].exp() * anchors[:, 0] / x.shape[3],
                    cells[..., 3].exp() * anchors[:, 1] / x.shape[2],
                ],
                -1,
            )
            found = score >= self.threshold
            boxes.append(box[found])
            scores.append(score[found])
            labels.append(label[found])
        return yolo_rows(torch.cat(boxes), torch.cat(scores), torch.cat(labels), maps[0].shape[0], self.nms_threshold)


class Yolov3DetectionOutput(nn.Module):
    """YOLO v3's detections from one map for each scale: (1, 1, K, 7), by falling score."""

    anchors: Tensor

    def __init__(
        self,
        classes: int,
        anchors: Sequence[Any],
        scales: tuple[int, ...],
        threshold: float,
        nms_threshold: float,
    ) -> None:
        """anchors (maps, boxes, 2): width, height in pixels of the net's input, which is each map times its scale."""
        super().__init__()
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32, device="cpu"), persistent=False)
        self.classes, self.scales, self.threshold, self.nms_threshold = classes, scales, threshold, nms_threshold

    def extra_repr(self) -> str:
        thresholds = f"threshold={self.threshold:g}, nms_threshold={self.nms_threshold:g}"
        return f"{self.classes} classes, scales={self.scales}, {thresholds}"

    def forward(self, *maps: Tensor) -> Tensor:
        boxes, scores, labels = [], [], []
        for x, anchors, scale in zip(maps, self.anchors, self.scales, strict=True):
            cells, column, row = yolo_cells(x, anchors.shape[0])
            sides = anchors.to(x.dtype)
            score = cells[..., 5 : 5 + self.classes].sigmoid() * cells[..., 4:5].sigmoid()
            box = torch.stack(
                [
                    (cells[..., 0].sigmoid() + column) / x.shape[3],
                    (cells[..., 1].sigmoid() + row) / x.shape[2],
                    cells[..., 2].exp() * sides[:, 0] / (x.shape[3] * scale),
                    cells[..., 3].exp() * sides[:, 1] / (x.shape[2] * scale),
                ],
                -1,
            )
            *cell, label = (score > self.threshold).nonzero(as_tuple=True)
            boxes.append(box[tuple(cell)])
            scores.append(score[(*cell, label)])
            labels.append(label)
        return yolo_rows(torch.cat(boxes), torch.cat(scores), torch.cat(labels), maps[0].shape[0], self.nms_threshold)
