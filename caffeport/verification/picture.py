"""Histograms and error maps of the worst layers, small enough to keep in a report."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .judge import Judgement
from .report import LayerResult, Picture

WORST = 6  # layers that get a picture
BINS = 40
SIDE = 32  # of an error map, at most
FINE = 8.0  # a ratio that no wrong layer has
SAMPLED = 1 << 13  # values that a histogram, and the error map of a right layer, is made of, about


class Gallery:
    """Keeps the pictures of the worst layers seen so far, by (layer, top); a pair of arrays is one to be drawn yet."""

    def __init__(self) -> None:
        self.pictures: dict[tuple[str, str], tuple[float, Picture | tuple[Tensor, Tensor]]] = {}

    def show(self, layer: str, top: str, judgement: Judgement, ours: Tensor, ref: Tensor) -> None:
        """Take a picture if the layer is among the worst."""
        worst = judgement.badness
        if len(self.pictures) >= WORST:
            least = min(self.pictures, key=lambda key: self.pictures[key][0])
            if self.pictures[least][0] >= worst:
                return
            del self.pictures[least]
        shown: Picture | tuple[Tensor, Tensor]
        if worst < FINE and ours.dim() == 4:  # every n-th item and channel of a right layer shows enough
            thin = max(ours.numel() // SAMPLED, 1)
            shown = ours.flatten(0, 1)[None, ::thin].clone(), ref.flatten(0, 1)[None, ::thin].clone()
        else:
            shown = picture(ours, ref)
        self.pictures[layer, top] = (worst, shown)

    def hang(self, rows: Sequence[LayerResult]) -> list[LayerResult]:
        """The rows with their pictures."""
        pictures = {
            key: _short(picture(*shown) if isinstance(shown, tuple) else shown)
            for key, (_, shown) in self.pictures.items()
        }
        return [
            replace(row, picture=pictures[row.layer, row.top]) if (row.layer, row.top) in pictures else row
            for row in rows
        ]


def picture(ours: Tensor, ref: Tensor) -> Picture:
    """Histograms over common bins, and the mean |ours - ref| over all leading axes for each place of the last two."""
    thin = max(ours.numel() // SAMPLED, 1)  # a histogram needs no more
    finite = [(x := y.reshape(-1)[::thin].float())[torch.isfinite(x)] for y in (ours, ref)]
    low = min((float(x.min()) for x in finite if x.numel()), default=0.0)
    high = max((float(x.max()) for x in finite if x.numel()), default=0.0)
    high = high if high > low else low + 1.0
    counts = [tuple(map(int, torch.histc(x, BINS, low, high).tolist())) if x.numel() else (0,) * BINS for x in finite]
    error = (ours.float() - ref.float()).abs_()
    if not math.isfinite(float(error.sum())):
        error = error.nan_to_num(0.0, 0.0, 0.0)
    return Picture((low, high), counts[0], counts[1], _map(error))


def _map(error: Tensor) -> tuple[tuple[float, ...], ...]:
    """At most SIDE x SIDE means. Axes: the last two; (N, C) is items by channels."""
    if not error.numel():
        return ()
    while error.dim() < 2:
        error = error.unsqueeze(0)
    plane = error.reshape(-1, *error.shape[-2:]).mean(0)
    if error.dim() == 4 and tuple(error.shape[2:]) == (1, 1):
        plane = error[:, :, 0, 0]
    if plane.shape[0] == 1 and plane.shape[1] > SIDE:  # one long row: fold it
        width = SIDE * SIDE if plane.shape[1] > SIDE * SIDE else plane.shape[1]
        row = torch.nn.functional.adaptive_avg_pool1d(plane, width)[0]
        plane = torch.nn.functional.pad(row, (0, -width % SIDE)).reshape(-1, SIDE)
    sizes = (min(plane.shape[0], SIDE), min(plane.shape[1], SIDE))
    small = torch.nn.functional.adaptive_avg_pool2d(plane[None], sizes)[0]
    return tuple(map(tuple, small.tolist()))


def _short(shown: Picture) -> Picture:
    """With three digits of the errors, which is what can be seen."""
    error = np.array(shown.error)
    power = 10.0 ** (2 - np.floor(np.log10(np.where(error > 0, error, 1.0))))
    return replace(shown, error=tuple(map(tuple, (np.rint(error * power) / power).tolist())))
