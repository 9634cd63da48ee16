"""From files to a Network: `load`."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .description import Description, describe
from .errors import ShapeError, WeightsError
from .fillers import filled
from .folder import converted_folder, refuse_arguments
from .formats import Readable
from .graph import Graph, Step
from .layers import Array, text
from .matching import kept_fillers, stored_arrays
from .network import Network
from .plan import View
from .surgery import Surgery

LOG = logging.getLogger("caffeport")
MOST_FILLED = 1 << 29  # values (2 GiB) that fillers may make up in one net; VGG-19 learns 144 million
BLOCK = 1 << 18  # values copied at a time: 1 MiB of float32, so that the check for NaN reads from the cache


def load(
    net: Readable,
    weights: Readable | None = None,
    *,
    phase: str = "TEST",
    level: int = 0,
    stages: Iterable[str] = (),
    inputs: Mapping[str, Sequence[int | None]] | None = None,
    reshape: Surgery = (),
    crop: str = "caffe",
    strict: bool = True,
    deploy: bool = False,
    salvage: bool = False,
    allow_nonfinite: bool = False,
    seed: int = 0,
) -> Network:
    """Build a Network from a Caffe net and its weights, or from a folder that `caffeport convert` wrote.

    net              a prototxt, binary net or .caffemodel (alone: its structure is inside), as a path, bytes or open
                     binary file;
                     or a converted folder
    weights          a .caffemodel, V0 to V2, or .caffemodel.h5; None: the arrays inside `net`, or else Caffe's fillers,
                     with a warning
    phase            which layers the net's include and exclude rules keep: "TEST" or "TRAIN"; `level` and `stages`
                     likewise
    inputs           shapes of inputs by blob name, for what the file does not say; None in a shape leaves that
                     dimension open
    reshape          layers that take arrays of another shape, but as many values, in their order ("net surgery"):
                     ["fc6"] where the file has that name too, {"fc6": "fc6-conv"} (name in the file: name in the net)
                     to rename as well
    crop             what a Crop layer without crop_param does: "caffe": offset 0, as in Caffe 1.0; "aligned": the
                     offset that the old forks derived, which FCN and HED files of 2015 were made for
    strict           a layer that the weights file lacks is an error; False leaves it Caffe's filler, with a warning
    deploy           cut from a training net what only training needs; SoftmaxWithLoss leaves a Softmax (always done
                     for a weights file alone)
    salvage          take the whole layers of a weights file that ends early
    allow_nonfinite  accept NaN and Inf among the weights
    seed             for random fillers

    A converted folder is built already: it takes `allow_nonfinite` alone.

    Raises CaffeportError: FormatError, UnsupportedLayer, ShapeError or WeightsError, each naming all places at once;
    InputError for arguments that do not fit.
    """
    how: dict[str, Any] = {
        "phase": phase,
        "level": level,
        "stages": stages,
        "inputs": inputs,
        "reshape": reshape,
        "crop": crop,
        "deploy": deploy,
        "salvage": salvage,
    }
    folder = converted_folder(net) if weights is None else None
    if folder is not None:
        from .store import load_folder

        refuse_arguments(folder, how | {"strict": strict, "seed": seed})
        return load_folder(folder, allow_nonfinite=allow_nonfinite)
    description = describe(net, weights, **how)
    for warning in description.warnings:
        LOG.warning("%s", warning)
    told = len(description.warnings)
    network = assemble(description, strict=strict, allow_nonfinite=allow_nonfinite, seed=seed)
    for warning in description.warnings[told:]:
        LOG.warning("%s", warning)
    return network


def assemble(description: Description, *, strict: bool = True, allow_nonfinite: bool = False, seed: int = 0) -> Network:
    """Build the modules of a described net and copy its weights in, once. Adds what it warns of to the description."""
    arrays = stored_arrays(description, strict)
    description.warnings += kept_fillers(description, arrays)
    _refuse_giants(description.graph, arrays)
    random = np.random.default_rng(seed)

    def state(step: Step) -> dict[str, Array]:
        blobs = {}
        for blob, owner in zip(step.blobs, step.owners, strict=True):
            if owner not in arrays:
                arrays[owner] = filled(blob.shape, blob.filler, random, str(step.layer))
            blobs[blob.name] = arrays[owner].reshape(blob.shape)
        return step.layer.weights(blobs)

    weights = description.weights
    copier = Copier(weights.release if weights else None)
    network = network_of(description.graph, state, copier)
    network.source_files = tuple(file.path for file in description.files)
    if not allow_nonfinite:
        copier.refuse_nonfinite()
    network.description = description
    return network


def _refuse_giants(graph: Graph, arrays: Mapping[tuple[str, int], Array]) -> None:
    """Raise ShapeError, before memory is taken, where fillers would have to make up more than any Caffe net learns."""
    filled_sizes = {
        owner: (prod(blob.shape), step)
        for step in graph.steps
        for owner, blob in zip(step.owners, step.blobs, strict=True)
        if owner not in arrays
    }
    total = sum(size for size, _ in filled_sizes.values())
    if total > MOST_FILLED:
        largest, step = max(filled_sizes.values(), key=lambda entry: entry[0])
        raise ShapeError(
            f"{step.layer}: {largest:,} learned values of it, {total:,} of the net, are in no file, and fillers make "
            f"up {MOST_FILLED:,} at most; give the weights, or mend the sizes in the net"
        )


def network_of(graph: Graph, state: Callable[[Step], dict[str, Array]], copier: "Copier") -> Network:
    """The Network of a graph.

    `state(step)` gives a layer's state_dict entries; parameters shared by name become one.
    """
    modules: dict[str, nn.Module] = {}
    views: dict[str, dict[str, View]] = {}
    steps = {step.key: step for step in graph.steps}
    with torch.device("meta"):
        for step in graph.steps:
            modules[step.key] = step.layer.module([operand.shape for operand in step.bottoms])
    for step in graph.steps:
        module, own = modules[step.key], None
        for name, tensor in _tensors(module):
            owner, owned_name = _owner(step, name, steps)
            if owner != step.key:
                owned = (
                    modules[owner].get_parameter(owned_name)
                    if isinstance(tensor, nn.Parameter)
                    else modules[owner].get_buffer(owned_name)
                )
                if owned.shape == tensor.shape:
                    _set(module, name, owned)
                else:
                    _set(module, name, None)
                    views.setdefault(step.key, {})[name] = View(owner, owned_name, tuple(tensor.shape))
            elif tensor.is_floating_point():
                own = own or state(step)
                _set(
                    module,
                    name,
                    copier.tensor(_entry(own, name, tensor, step), str(step.layer), isinstance(tensor, nn.Parameter)),
                )
            else:
                _set(module, name, torch.zeros((), dtype=tensor.dtype, device="cpu"))  # BatchNorm's num_batches_tracked
    return Network(graph, modules, views)


def _entry(state: dict[str, Array], name: str, tensor: Tensor, step: Step) -> Array:
    array = state.get(name)
    if array is None or array.shape != tensor.shape:
        found = "nothing" if array is None else f"an array of {text(array.shape)}"
        raise WeightsError(f"{step.layer}: its {name} should be {text(tuple(tensor.shape))}; the weights have {found}")
    return array


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and saved buffers of a module, by state_dict key."""
    return list(module.state_dict(keep_vars=True).items())


def _set(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    path, _, last = name.rpartition(".")
    place = module.get_submodule(path)
    (place._parameters if last in place._parameters else place._buffers)[last] = tensor  # type: ignore[assignment]


def _owner(step: Step, name: str, steps: Mapping[str, Step]) -> tuple[str, str]:
    """Layer and state_dict key of the tensor that holds `name` of this step.

    Its own unless `param { name }` shares it.
    """
    for blob, (key, index) in zip(step.blobs, step.owners, strict=True):
        if blob.name == name:
            return key, steps[key].blobs[index].name
    keys = {key for key, _ in step.owners}
    if len(keys) > 1:
        raise WeightsError(f"{step.layer}: shares some of its arrays by name and not others, which no module can hold")
    return (keys.pop() if keys else step.key), name


class Copier:
    """Copies arrays of a file into tensors of their own, block by block, and looks for NaN and Inf on the way.

    Numpy's allocation comes in huge pages where torch's does not, which halves the time; and a block that was just
    written is checked from the cache. `release` gives the file's pages back as they are done with.
    """

    def __init__(self, release: Callable[[Array], None] | None = None) -> None:
        self.release = release
        self.nonfinite: dict[str, int] = {}

    def tensor(self, array: Array, layer: str, parameter: bool) -> Tensor:
        room = np.empty(4 * array.size + 64, np.uint8)
        start = -room.__array_interface__["data"][0] % 64
        copy = room[start : start + 4 * array.size].view(np.float32)
        flat = array.reshape(-1)
        for i in range(0, flat.size, BLOCK):
            block = copy[i : i + BLOCK]
            with np.errstate(all="ignore"):  # Inf is what is looked for
                np.copyto(block, flat[i : i + BLOCK], casting="same_kind")
                squares = np.dot(block, block)
            if not np.isfinite(squares):
                bad = block.size - int(np.isfinite(block).sum())
                if bad:
                    self.nonfinite[layer] = self.nonfinite.get(layer, 0) + bad
            if self.release and (i // BLOCK % 8 == 7 or i + BLOCK >= flat.size):
                self.release(flat[max(i - 7 * BLOCK, 0) : i + BLOCK])
        tensor = torch.from_numpy(copy.reshape(array.shape))
        return nn.Parameter(tensor) if parameter else tensor

    def refuse_nonfinite(self) -> None:
        if self.nonfinite:
            places = ", ".join(f"{layer}: {count}" for layer, count in self.nonfinite.items())
            raise WeightsError(
                f"the weights hold NaN or Inf ({places}); "
                "allow_nonfinite=True or --allow-nonfinite loads them all the same"
            )
