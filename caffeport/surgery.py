"""Arrays under another name or shape than the net's ("net surgery"): `reshape`, and hints where it would help.

A fully connected layer cast into a convolution keeps its numbers in their order: (N, C h w) is (N, C, h, w).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from math import prod

from .errors import InputError, WeightsError
from .formats import StoredLayer, Weights
from .graph import Graph, Step
from .layers import text

Surgery = Mapping[str, str] | Iterable[str]
MOST_HINTS, MOST_NAMES = 8, 100  # shown, and compared for each


def wanted(reshape: Surgery, layers: Collection[str]) -> dict[str, str]:
    """Whose arrays each layer of the net takes in their order: {layer of the net: layer of the file}.

    reshape  {layer of the file: layer of the net}, or a list of "layer" and "layer of the file=layer of the net"
    layers   names of the net's layers
    """
    if isinstance(reshape, str):
        raise InputError(f"reshape is the string {reshape!r}, expected a list of strings or a mapping")
    if isinstance(reshape, Mapping):
        pairs = {layer: stored for stored, layer in reshape.items()}
    else:
        pairs = {}
        for item in reshape:
            stored, equals, layer = item.partition("=")
            pairs |= {layer: stored} if equals and item not in layers else {item: item}
    for layer in pairs:
        if layer not in layers:
            raise InputError(f"reshape: the net has no layer {layer!r}{_near(layer, layers)}")
    return pairs


def renamed(weights: Weights, pairs: Mapping[str, str], layers: Collection[str], path: str) -> Weights:
    """The weights with the arrays that `pairs` asks for under the names of the net's layers.

    A layer of its own name that the file lacks is left for `found`.
    """
    held = weights.by_name()
    for layer, stored in pairs.items():
        if stored not in held and stored != layer:
            raise WeightsError(f"{path}: reshape: it has no arrays of a layer {stored!r}{_near(stored, held)}")
    moved = [replace(held[stored], name=layer, reshaped=True) for layer, stored in pairs.items() if stored in held]
    gone = set(pairs) | {stored for stored in pairs.values() if stored not in layers}
    return Weights([entry for entry in weights.layers if entry.name not in gone] + moved, weights.buffer)


def found(weights: Weights, pairs: Mapping[str, str], graph: Graph, path: str) -> tuple[Weights, list[str]]:
    """The weights, with the only arrays that can be meant where `pairs` has a layer that the file lacks; and notes."""
    held = weights.by_name()
    notes: list[str] = []
    for step in graph.steps:
        if step.key not in pairs or step.key in held:
            continue
        fitting = [entry for entry in _unused(weights, graph) if _counts(entry) == _wanted_counts(step)]
        if len(fitting) != 1:
            what = ", ".join(repr(entry.name) for entry in fitting) or "none"
            raise WeightsError(
                f"{path}: reshape: it has no arrays of {step.layer}; unused ones that agree in number: {what}; "
                f"say which: reshape={{'NAME IN THE FILE': {step.key!r}}} (--reshape NAME={step.key})"
            )
        (entry,) = fitting
        notes.append(f"{step.layer}: takes the arrays of {_shown(entry)}, the only unused ones that agree in number")
        weights = renamed(weights, {step.key: entry.name}, (), path)
    return weights, notes


def hints(weights: Weights, graph: Graph) -> list[str]:
    """For the first layers without arrays, the unused ones of the file that could be their own."""
    held = weights.by_name()
    notes: list[str] = []
    unused: dict[tuple[int, ...], list[StoredLayer]] = {}
    for entry in _unused(weights, graph):
        unused.setdefault(_counts(entry), []).append(entry)
    for step in graph.steps:
        if not step.blobs or step.layer.spec.name in held or len(notes) == MOST_HINTS:
            continue
        like = {entry.name: entry for entry in unused.get(_wanted_counts(step), [])[:MOST_NAMES]}
        same = [name for name, entry in like.items() if _fits(entry, step)]
        near = get_close_matches(step.key, same or like, n=1, cutoff=0.0)
        if near:
            entry = like[near[0]]
            how = "have its shapes: renamed?" if same else "have other shapes, but the counts agree:"
            notes.append(
                f"{step.layer} has no arrays, and the unused ones of {_shown(entry)} {how} "
                f"{advice(entry.name, step.key)} takes them"
            )
    return notes


def advice(stored: str, layer: str) -> str:
    """How to ask for the arrays of `stored` in `layer`, in Python and on the command line."""
    if stored == layer:
        return f"reshape=[{layer!r}] (--reshape {layer})"
    return f"reshape={{{stored!r}: {layer!r}}} (--reshape {stored}={layer})"


def _unused(weights: Weights, graph: Graph) -> list[StoredLayer]:
    names = {step.layer.spec.name for step in graph.steps}
    return [entry for name, entry in weights.by_name().items() if name not in names]


def _counts(entry: StoredLayer) -> tuple[int, ...]:
    return tuple(prod(blob.shape) for blob in entry.blobs)


def _wanted_counts(step: Step) -> tuple[int, ...]:
    return tuple(prod(blob.shape) for blob in step.blobs)


def _fits(entry: StoredLayer, step: Step) -> bool:
    return all(stored.fits(blob.shape) for stored, blob in zip(entry.blobs, step.blobs, strict=True))


def _shown(entry: StoredLayer) -> str:
    return f"{entry.name!r} ({', '.join(text(blob.shape) for blob in entry.blobs)})"


def _near(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
