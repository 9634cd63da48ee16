"""Regions: proposals, and pooling inside of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .boxes import nms

CHUNK = 1 << 21  # values of the pooling tables that are held at once, about; some channels at a time stay in the cache


def round_half_away(x: Tensor) -> Tensor:
    """The nearest whole number, halves away from zero, as C's round."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)


def roi_bins(inner: Tensor, outer: Tensor, extent: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """First cell of each bin and the one after its last, both (R, count), cut to a map of `size` cells.

    The region starts at inner + outer and extends over `extent` cells, all (R). inner is added before bins are rounded
    to cells and outer after, which differs in float32. An edge that is not a number counts as 0.
    """
    i = torch.arange(count, device=extent.device, dtype=extent.dtype)
    step, inner, outer = (extent / count)[:, None], inner[:, None], outer[:, None]
    first, end = (i * step + inner).floor() + outer, ((i + 1) * step + inner).ceil() + outer
    return first.nan_to_num(0).clamp(0, size).long(), end.nan_to_num(0).clamp(0, size).long()


def images_of(rois: Tensor, images: int) -> Tensor:
    """Index of each region's image, (R). Raises ValueError where there is no such image (Caffe aborts)."""
    index = rois[:, 0]
    if not torch.compiler.is_compiling() and bool(((index < 0) | (index >= images) | index.isnan()).any()):
        named = f"{index.min():g} to {index.max():g}"
        raise ValueError(f"regions name the images {named}; the feature map has {images}: 0 to {images - 1}")
    return index.long()


def window_maxima(x: Tensor, axis: int, levels: int) -> list[Tensor]:
    """For each level k, the largest of 2^k neighbours from each place on along an axis; near the end, of fewer."""
    tables = [x]
    for level in range(levels - 1):
        last, reach, size = tables[-1], 1 << level, x.shape[axis]
        joined = torch.maximum(last.narrow(axis, 0, size - reach), last.narrow(axis, reach, size - reach))
        tables.append(torch.cat([joined, last.narrow(axis, size - reach, reach)], axis))
    return tables


class ROIPool(nn.Module):
    """Largest value in each of ph x pw bins of each region: x (N, C, H, W), rois (R, 5) to (R, C, ph, pw).

    A bin's maximum is that of four windows with sides of powers of two, which may overlap, so that it takes four
    look-ups in tables of window maxima, whatever its size.
    """

    def __init__(self, size: tuple[int, int], scale: float) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def extra_repr(self) -> str:
        return f"{self.size}, scale={self.scale:g}"

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        rois = rois.reshape(-1, 5).float()  # bins are float32 in Caffe, and their edges depend on it
        image = images_of(rois, n)[:, None, None]
        left, top, right, bottom = round_half_away(rois[:, 1:] * self.scale).unbind(1)
        zero = torch.zeros_like(top)
        y0, y1 = roi_bins(zero, top, (bottom - top + 1).clamp(min=1), self.size[0], height)
        x0, x1 = roi_bins(zero, left, (right - left + 1).clamp(min=1), self.size[1], width)
        empty = (y1 <= y0)[:, :, None] | (x1 <= x0)[:, None]  # (R, ph, pw)
        y0, x0 = y0.clamp(max=height - 1), x0.clamp(max=width - 1)
        y_level = torch.frexp((y1 - y0).clamp(min=1).float()).exponent.long() - 1  # floor(log2)
        x_level = torch.frexp((x1 - x0).clamp(min=1).float()).exponent.long() - 1
        if torch.compiler.is_compiling() or not rois.shape[0]:
            y_levels, x_levels = height.bit_length(), width.bit_length()
        else:
            y_levels, x_levels = int(y_level.max()) + 1, int(x_level.max()) + 1
        table = ((y_level[:, :, None] * x_levels + x_level[:, None]) * n + image) * (height * width)
        y1, x1 = (y1 - (1 << y_level)).clamp(min=0), (x1 - (1 << x_level)).clamp(min=0)
        places = [(table + y[:, :, None] * width + x[:, None]).flatten() for y in (y0, y1) for x in (x0, x1)]
        parts = []
        share = max(1, CHUNK // max(y_levels * x_levels * n * height * width, places[0].numel()))
        for part in torch.split(x, share, 1):
            part = part.permute(0, 2, 3, 1).contiguous()
            tables = [t for rows in window_maxima(part, 1, y_levels) for t in window_maxima(rows, 2, x_levels)]
            values = torch.stack(tables).reshape(-1, part.shape[3])
            corners = [values.index_select(0, place) for place in places]
            parts.append(torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3])))
        pooled = torch.cat(parts, 1).reshape(*empty.shape, channels).masked_fill_(empty[..., None], 0.0)
        return pooled.permute(0, 3, 1, 2)


class PSROIPool(nn.Module):
    """Mean in each of g x g bins of each region, every bin from its own channels: (N, D g^2, H, W) to (R, D, g, g).

    A bin's sum is the difference of four running sums, kept in float64.
    """

    def __init__(self, outputs: int, group: int, scale: float) -> None:
        super().__init__()
        self.outputs, self.group, self.scale = outputs, group, scale

    def extra_repr(self) -> str:
        return f"{self.outputs}, group={self.group}, scale={self.scale:g}"

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        n, _, height, width = x.shape
        group = self.group
        rois = rois.reshape(-1, 5).float()  # bins are float32 in Caffe, and their edges depend on it
        rounded = round_half_away(rois[:, 1:])
        left, top, right, bottom = ((rounded + rounded.new_tensor([0, 0, 1, 1])) * self.scale).unbind(1)
        zero = torch.zeros_like(top)
        y0, y1 = roi_bins(top, zero, (bottom - top).clamp(min=0.1), group, height)
        x0, x1 = roi_bins(left, zero, (right - left).clamp(min=0.1), group, width)
        sums = x.reshape(n, self.outputs, group * group, height, width).permute(0, 2, 3, 4, 1)
        sums = sums.to(torch.float64, memory_format=torch.contiguous_format, copy=True).cumsum_(2).cumsum_(3)
        sums = sums.reshape(-1, self.outputs)
        cell = torch.arange(group * group, device=x.device).reshape(group, group)
        plane = (images_of(rois, n)[:, None, None] * group * group + cell) * (height * width)

        def before(y: Tensor, x: Tensor) -> Tensor:
            """Sum of all that lies above row y and left of column x in each bin's plane: (R * group^2, D)."""
            y, x = y[:, :, None], x[:, None]
            place = plane + (y - 1).clamp(min=0) * width + (x - 1).clamp(min=0)
            return sums.index_select(0, place.flatten()).masked_fill_(((y == 0) | (x == 0)).flatten()[:, None], 0.0)

        total = before(y1, x1) - before(y0, x1) - before(y1, x0) + before(y0, x0)
        area = ((y1 - y0).clamp(min=0)[:, :, None] * (x1 - x0).clamp(min=0)[:, None]).flatten()[:, None]
        mean = torch.where(area > 0, total / area.clamp(min=1), 0.0).to(x.dtype)
        return mean.reshape(-1, group, group, self.outputs).permute(0, 3, 1, 2)


def generate_anchors(
    base: int, ratios: tuple[float, ...], scales: tuple[float, ...], half_to_even: bool
) -> np.ndarray[Any, Any]:
    """Boxes (ratios * scales, 4) around the middle of a square of `base` pixels; ratio (height / width) slow.

    Their unscaled sides are whole numbers, rounded as numpy does (`half_to_even`) or as the C++ layer does.
    """
    rounded = np.rint if half_to_even else lambda x: np.floor(x + 0.5)
    centre = (base - 1) / 2
    boxes = []
    for ratio in ratios:
        width = rounded(np.sqrt(base * base / ratio))
        height = rounded(width * ratio)
        for scale in scales:
            x, y = (width * scale - 1) / 2, (height * scale - 1) / 2
            boxes.append((centre - x, centre - y, centre + x, centre + y))
    return np.array(boxes, np.float32).reshape(-1, 4)


class Proposal(nn.Module):
    """Regions (K, 5): 0, x1, y1, x2, y2 in pixels, by falling score, and their scores.

    forward takes scores (1, 2 A, H, W), the foreground's last, deltas (1, 4 A, H, W) and the image's height, width and
    scale (two scales in the C++ form).
    """

    anchors: Tensor

    def __init__(
        self,
        anchors: Sequence[Sequence[float]],
        stride: int,
        min_size: int,
        before: int,
        after: int,
        nms_threshold: float,
        python: bool,
        with_scores: bool,
    ) -> None:
        """python: the Python layer's rules. It removes boxes below min_size, where the C++ layer sets their score to 0,
        and gives scores (K, 1).

        before, after  how many of the best are kept before and after suppression
        """
        super().__init__()
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32, device="cpu"), persistent=False)
        self.stride, self.min_size, self.before, self.after = stride, min_size, before, after
        self.nms_threshold, self.python, self.with_scores = nms_threshold, python, with_scores

    def extra_repr(self) -> str:
        return (
            f"{self.anchors.shape[0]} anchors, stride={self.stride}, min_size={self.min_size}, "
            f"{self.before} before and {self.after} after suppression at {self.nms_threshold:g}"
        )

    def forward(self, scores: Tensor, deltas: Tensor, info: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        height, width = scores.shape[2:]
        count = self.anchors.shape[0]
        score = scores[0, count:].permute(1, 2, 0).flatten()  # row, column, anchor
        change = deltas[0].permute(1, 2, 0).reshape(-1, 4)
        x = torch.arange(width, device=scores.device, dtype=scores.dtype) * self.stride
        y = torch.arange(height, device=scores.device, dtype=scores.dtype) * self.stride
        shift = torch.stack([x.expand(height, width), y[:, None].expand(height, width)] * 2, -1)
        anchors = (shift[:, :, None] + self.anchors.to(scores.dtype)).reshape(-1, 4)
        size = anchors[:, 2:] - anchors[:, :2] + 1
        centre = anchors[:, :2] + 0.5 * size + change[:, :2] * size
        half = 0.5 * size * change[:, 2:].exp()
        info = info.flatten()
        limit = info[:2].flip(0) - 1  # x, y
        low = torch.minimum((centre - half).clamp(min=0), limit)
        high = torch.minimum((centre + half).clamp(min=0), limit)
        scale = info[2] if self.python else info[2:4].flip(0)
        large = (high - low + 1 >= self.min_size * scale).all(1)
        boxes = torch.cat([low, high], 1)
        if self.python:
            boxes, score = boxes[large], score[large]
        else:
            score = torch.where(large, score, 0.0)
        score, order = score.sort(dim=0, descending=True, stable=True)
        score, boxes = score[: self.before], boxes[order[: self.before]]
        valid = torch.ones_like(score, dtype=torch.bool)[None]
        least = (
            0.0 if self.python else 1.0 - 2**-24
        )  # the C++ layer calls boxes with a gap of less than a pixel disjoint
        keep = nms(boxes.t().contiguous()[:, None], valid, self.nms_threshold, 1.0, least, limit=self.after)[0]
        chosen = keep.nonzero().flatten()[: self.after]
        rois = F.pad(boxes[chosen], (1, 0))
        if not self.with_scores:
            return rois
        return rois, score[chosen, None] if self.python else score[chosen]
