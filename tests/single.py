"""Nets of one layer, for tests of its formula."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import caffeport
from caffeport.export import proof
from caffeport.layers import Array


def net_of(layer: str, shapes: Sequence[tuple[int, ...]]) -> caffeport.Network:
    """A net whose inputs are the bottoms of the one layer `l`; `layer` is the rest of its text, with type and tops."""
    inputs = [
        f'input: "b{i}" input_shape {{ {" ".join(f"dim: {size}" for size in shape)} }}'
        for i, shape in enumerate(shapes)
    ]
    bottoms = " ".join(f'bottom: "b{i}"' for i in range(len(shapes)))
    return caffeport.load("\n".join([*inputs, f'layer {{ name: "l" {bottoms} {layer} }}']).encode())


def run(layer: str, *bottoms: Any, weights: dict[str, Array] | None = None) -> list[Array]:
    """Tops of the layer, in order, computed in the bottoms' type.

    weights  state_dict entries of the layer
    """
    arrays = [np.asarray(bottom) for bottom in bottoms]
    net = net_of(layer, [array.shape for array in arrays])
    if arrays and arrays[0].dtype == np.float64:
        net.double()
    if weights:
        net.load_state_dict({f"l.{name}": torch.tensor(array) for name, array in weights.items()})
    with torch.no_grad():
        values = net.blobs({f"b{i}": torch.from_numpy(array) for i, array in enumerate(arrays)})
    return [value.numpy() for key, value in values.items() if key.startswith("l::")]


def run_onnx(net: caffeport.Network, path: Path, *bottoms: Array) -> tuple[list[Array], list[Array]]:
    """The net's outputs as onnxruntime gives them, of a file whose sizes are open, and as the network gives them."""
    feeds = {f"b{i}": bottom.astype(np.float32) for i, bottom in enumerate(bottoms)}
    done = caffeport.export_onnx(net, path, spatial="dynamic", prove=False)
    with torch.no_grad():
        want = net.blobs({blob: torch.from_numpy(array) for blob, array in feeds.items()})
    got = proof.run(done.path, feeds)
    return list(got.values()), [want[key].numpy() for key in got]
