"""Some of what a layer computes, which tells how the layer errs at a fraction of the cost."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..layers import Shape
from ..layers.base import Array
from ..modules.elementwise import Product, Sum
from ..modules.normalization import Scale

SHARE = 8  # every so-manieth channel
LEAST = 4  # channels
VALUES = 1 << 12  # that tell how a layer errs, at least
PROBED = 16  # values of each channel that tell how loud it is
ALL_BOTTOMS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # an output channel is made of all channels of the bottom
ITS_OWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, Scale, Sum, Product)  # and here of one


@dataclass(frozen=True)
class Some:
    """What to run instead of a layer for some of its output channels, of one item of the batch where there are more."""

    module: nn.Module
    bottoms: list[Tensor]
    item: slice
    channels: Array

    def of(self, top: Tensor) -> Tensor:
        return taken(top[self.item], self.channels, 1)


def taken(x: Tensor, places: Array, axis: int) -> Tensor:
    """Some of a tensor along an axis, on the CPU. NumPy takes them without waking threads."""
    return torch.from_numpy(x.detach().cpu().numpy().take(places, axis))


def how_many(own: nn.Module, bottoms: Sequence[Tensor], top: Shape) -> int:
    """Channels of the top that are enough; 0 where the layer does not work by channels, or where it does not pay."""
    if type(own) not in (*ALL_BOTTOMS, *ITS_OWN) or len(top) < 2 or None in top or getattr(own, "groups", 1) != 1:
        return 0
    items, channels, *rest = (n or 0 for n in top)
    few = max(channels // SHARE, LEAST, -(-VALUES // max(prod(rest), 1)))
    single = type(own) in ITS_OWN
    tensors = (*own._parameters.values(), *own._buffers.values())
    if (
        2 * few > channels
        or not items
        or (type(own) is nn.Linear and rest)
        or any(x.shape[0] != items or (single and x.shape != top) for x in bottoms)
        or any(t.shape[:1] != (channels,) for t in tensors if t is not None and t.dim())
        or (isinstance(own, Scale) and (own.weight.dim() != 1 or own.after != len(rest)))
    ):
        return 0
    return few


def some_of(own: nn.Module, bottoms: Sequence[Tensor], top: Tensor, few: int) -> Some:
    """Neither the loudest nor the quietest: the item in the middle, and channels at even steps from quiet to loud.

    top: the layer's, by which loudness is told.
    """
    items, count = top.shape[:2]
    maps = top.numpy().reshape(items, count, -1)
    start = max((maps.shape[2] - PROBED) // 2, 0)
    maps = maps[:, :, start : start + PROBED]
    middle = int(np.abs(maps[:, :: count // LEAST]).max((1, 2)).argsort()[items // 2])
    loudness = np.abs(maps[middle]).max(1)
    places = np.arange(1, 2 * few, 2) * count // (2 * few)  # the middle of each of `few` parts
    channels = np.sort(loudness.argsort()[places])

    def chosen(tensor: Tensor | None) -> Any:
        return tensor if tensor is None or not tensor.dim() else taken(tensor, channels, 0)

    module = copy(own)
    module._parameters = {name: chosen(tensor) for name, tensor in own._parameters.items()}
    module._buffers = {name: chosen(tensor) for name, tensor in own._buffers.items()}
    item = slice(middle, middle + 1)
    given = [taken(x[item], channels, 1) if type(own) in ITS_OWN else x[item] for x in bottoms]
    return Some(module, given, item, channels)
