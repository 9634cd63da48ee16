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
from .arithmetic import numbers

SHARE = 16  # one channel in so many, of every second item
LEAST_CHANNELS = 4
LEAST_VALUES = 1 << 11  # that tell how a layer errs
PROBED = 16  # values of each channel that tell how loud it is
ALL_BOTTOMS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # an output channel is made of all channels of the bottom
ITS_OWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, Scale, Sum, Product)  # and here of one


@dataclass(frozen=True)
class Some:
    """What to run instead of a layer for some of its output channels, and some items of the batch."""

    module: nn.Module
    bottoms: list[Tensor]
    items: Array
    channels: Array

    def of(self, top: Tensor) -> Tensor:
        return _taken(_taken(top, self.items, 0), self.channels, 1)


def _taken(x: Tensor, places: Array, axis: int) -> Tensor:
    """Some of a tensor along an axis, on the CPU. NumPy takes them without waking threads."""
    if len(places) == x.shape[axis]:
        return x
    if len(places) == 1:
        return x.narrow(axis, int(places[0]), 1)
    return torch.from_numpy(numbers(x).take(places, axis))


def how_many(own: nn.Module, bottoms: Sequence[Tensor], top: Shape) -> int:
    """Channels of the top that are enough; 0 where the layer does not work by channels, or where it does not pay."""
    if type(own) not in (*ALL_BOTTOMS, *ITS_OWN) or len(top) < 2 or None in top or getattr(own, "groups", 1) != 1:
        return 0
    items, channels, *rest = (n or 0 for n in top)
    few = max(channels // SHARE, LEAST_CHANNELS, -(-LEAST_VALUES // max(prod(rest), 1)))
    single = type(own) in ITS_OWN
    tensors = (*own._parameters.values(), *own._buffers.values())
    if (
        2 * few > channels
        or not items
        or (type(own) is nn.Linear and rest)
        or any(x.shape[0] != items or (single and x.shape != top) for x in bottoms)
        or any(t.shape[:1] != (channels,) for t in tensors if t is not None and t.dim())
        or (isinstance(own, Scale) and (own.weight.dim() != 1 or own.after != len(rest)))
        or own._forward_hooks
        or own._forward_pre_hooks
    ):
        return 0
    return few


def some_of(own: nn.Module, bottoms: Sequence[Tensor], top: Tensor, few: int) -> Some:
    """Every second item, and `few` channels at even steps, from quiet to loud.

    top: the layer's, by which loudness is told.
    """
    count, channels = top.shape[:2]
    maps = top.numpy().reshape(count, channels, -1)
    start = max((maps.shape[2] - PROBED) // 2, 0)
    maps = maps[:, :, start : start + PROBED]
    items = np.abs(maps[:, :: channels // LEAST_CHANNELS]).max((1, 2)).argsort()[int(count > 1) :: 2]
    loudness = np.abs(maps[items[len(items) // 2]]).max(1)
    places = np.arange(1, 2 * few, 2) * channels // (2 * few)  # the middle of each of `few` parts
    chosen = np.sort(loudness.argsort()[places])

    def of_channels(tensor: Tensor | None) -> Any:
        return tensor if tensor is None or not tensor.dim() else _taken(tensor, chosen, 0)

    module = copy(own)
    module._parameters = {name: of_channels(tensor) for name, tensor in own._parameters.items()}
    module._buffers = {name: of_channels(tensor) for name, tensor in own._buffers.items()}
    given = [_taken(x, items, 0) for x in bottoms]
    if type(own) in ITS_OWN:
        given = [_taken(x, chosen, 1) for x in given]
    return Some(module, given, items, chosen)
