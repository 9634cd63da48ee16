"""Detection heads of YOLO, and what its nets need besides."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .boxes import nms
from .detection import nothing_found


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
