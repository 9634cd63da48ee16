"""The numbers of the file beside those of the modules: hashes of each blob, and `weights()` done again, bit for bit."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..graph import Step
from ..matching import stored_arrays
from ..network import Network
from .arithmetic import numbers

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BlobHash:
    """One learned array of a layer as the file has it. sha256 of its float32 values in Caffe's shape and order."""

    name: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class LayerWeights:
    """A layer's arrays. `differs`: names of the module's tensors that are not what the file's arrays give, with
    how far off.
    """

    layer: str
    blobs: tuple[BlobHash, ...]
    differs: dict[str, str]


def file_arrays(network: Network) -> dict[tuple[str, int], Array]:
    """The arrays of the file that the net was loaded from, by (layer key, index); empty where there is no such file."""
    return stored_arrays(network.description, strict=False) if network.description else {}


def from_file(step: Step, arrays: Mapping[tuple[str, int], Array]) -> dict[str, Array]:
    """The layer's state_dict entries made from the file's arrays again; empty where the file lacks one of them."""
    if not step.blobs or any(owner not in arrays for owner in step.owners):
        return {}
    blobs = {
        b.name: np.asarray(arrays[o], np.float32).reshape(b.shape) for b, o in zip(step.blobs, step.owners, strict=True)
    }
    return step.layer.weights(blobs)


def check_weights(network: Network) -> list[LayerWeights]:
    """Every layer with arrays of its own in the file, in the net's order; of a converted folder, by its hashes."""
    if network.description is None:
        return _check_hashes(network)
    arrays = file_arrays(network)
    checked = []
    for step in network.graph.steps:
        wanted = from_file(step, arrays)
        if not wanted or any(key != step.key for key, _ in step.owners):
            continue
        blobs = tuple(
            BlobHash(blob.name, blob.shape, _sha256(arrays[owner]))
            for blob, owner in zip(step.blobs, step.owners, strict=True)
        )
        held = network.get_submodule(network.names[step.key]).state_dict()
        differs = {
            name: note
            for name, array in wanted.items()
            if name in held and (note := _difference(numbers(held[name]), array))
        }
        checked.append(LayerWeights(step.key, blobs, differs))
    return checked


def _check_hashes(network: Network) -> list[LayerWeights]:
    """The tensors beside the hashes that were written when the folder was converted. `blobs` are the tensors then."""
    from ..store import sha256  # which takes 10 ms to import, and is there already where a folder was loaded

    checked = []
    for step in network.graph.steps:
        module = network.names[step.key]
        held = network.get_submodule(module).state_dict()
        known = {name: network.hashes[key] for name in held if (key := f"{module}.{name}") in network.hashes}
        if not known:
            continue
        found = {name: sha256(numbers(held[name])) for name in known}
        blobs = tuple(BlobHash(name, tuple(held[name].shape), found[name]) for name in known)
        differs = {name: "another sha256 than caffeport.json has" for name in known if found[name] != known[name]}
        checked.append(LayerWeights(step.key, blobs, differs))
    return checked


def _sha256(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").data).hexdigest()


def _difference(held: Array, wanted: Array) -> str:
    """How a tensor differs from what the file gives, or ""."""
    if held.shape != wanted.shape:
        return f"shape {held.shape} instead of {wanted.shape}"
    wanted = np.asarray(wanted, np.float32)
    if held.dtype == np.float32 and np.array_equal(held.view(np.int32), wanted.view(np.int32)):
        return ""
    unlike = (held != wanted) & ~(np.isnan(held) & np.isnan(wanted))
    if held.dtype == np.float32 and not unlike.any():
        return ""
    largest = np.abs(held[unlike].astype(np.float64) - wanted[unlike]).max() if unlike.any() else 0.0
    return f"{int(unlike.sum()):,} of {held.size:,} values differ, by {largest:.3g} at most" + (
        "" if held.dtype == np.float32 else f" ({held.dtype})"
    )
