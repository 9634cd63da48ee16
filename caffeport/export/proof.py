"""Proof of an export."""

from typing import Any

import numpy as np

from ..network import Network

Array = np.ndarray[Any, Any]


def random_inputs(network: Network, seed: int = 0, shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, Array]:
    """Arrays to feed, by blob name: normal numbers for maps, numbers from 0 to 1 (which may be labels) for all else."""
    random = np.random.default_rng(seed)
    feeds = {}
    for value in network.graph.needed:
        shape = (shapes or {}).get(value.blob) or tuple(default_size(axis, n) for axis, n in enumerate(value.shape))
        numbers = random.standard_normal(shape) if len(shape) == 4 else random.random(shape)
        feeds[value.blob] = numbers.astype(np.float32)
    return feeds


def default_size(axis: int, size: int | None) -> int:
    """A size for an open dimension: one item, pictures of 224 pixels."""
    return size or (224 if axis > 1 else 1)
