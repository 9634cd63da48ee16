"""Which of a file's arrays go to which layer, as Caffe matches them: by name, then by number and shape. No torch."""

from collections.abc import Container
from math import prod

from .description import Description
from .errors import WeightsError
from .formats import StoredLayer
from .graph import Step
from .layers import Array, text
from .surgery import advice, hints


def stored_arrays(description: Description, strict: bool) -> dict[tuple[str, int], Array]:
    """The file's array for each learned one, by (layer key, index). Raises WeightsError for all that does not fit."""
    weights, steps = description.weights, {step.key: step for step in description.graph.steps}
    if weights is None:
        return {}
    arrays: dict[tuple[str, int], Array] = {}
    problems = []
    for entry in weights.layers:
        step = steps.get(entry.name)
        if step is None:
            continue
        problem = _misfit(entry, step)
        if problem:
            problems.append(problem)
            continue
        places = entry.places or range(len(entry.blobs))
        arrays |= {step.owners[i]: blob.array for i, blob in zip(places, entry.blobs, strict=True)}
    if problems:
        raise WeightsError("\n".join(problems))
    missing = _missing(description, arrays) if strict else ""
    if missing:
        held = (
            ", ".join(repr(entry.name) for entry in weights.layers if entry.blobs and entry.name not in steps) or "none"
        )
        near = "".join(f"\n  {hint}" for hint in hints(weights, description.graph))
        raise WeightsError(
            f"{missing}; it has arrays of layers that the net lacks: {held}; strict=False (--no-strict) leaves the "
            f"missing ones their fillers{near}"
        )
    return arrays


def kept_fillers(description: Description, arrays: Container[tuple[str, int]]) -> list[str]:
    """The warning for layers that learn and for which there are no arrays. `arrays`: those of `stored_arrays`."""
    learning = sum(bool(step.blobs) for step in description.graph.steps)
    if description.weights is None and learning:
        return [f"no weights were given: {learning} layer(s) keep their fillers, which are untrained"]
    missing = _missing(description, arrays)
    return [f"{missing}; they keep their fillers"] if missing else []


def _missing(description: Description, arrays: Container[tuple[str, int]]) -> str:
    """Which layers the weights file has no arrays for, as the begin of a sentence; "" where it may lack some."""
    steps = description.graph.steps
    missing = [step for step in steps if any(owner not in arrays for owner in step.owners)]
    if not missing or description.partial:
        return ""
    names = ", ".join(f"{step.key!r} ({step.layer.spec.type})" for step in missing)
    return f"{description.files[-1].path}: has no arrays for {len(missing)} layer(s) of the net: {names}"


def _misfit(entry: StoredLayer, step: Step) -> str | None:
    """Why Caffe would refuse to load this layer's arrays, or None."""
    layer = step.layer
    places = entry.places or tuple(range(len(entry.blobs)))
    if entry.places is None and len(entry.blobs) != len(step.blobs):
        return f"{layer}: the weights file has {len(entry.blobs)} arrays for it, the net wants {len(step.blobs)}"
    for place, stored in zip(places, entry.blobs, strict=True):
        if place >= len(step.blobs):
            return f"{layer}: the weights file has an array number {place} for it, the net wants {len(step.blobs)}"
        wanted = step.blobs[place]
        if not stored.fits(wanted.shape):
            bottoms = ", ".join(
                f"{name!r} of {text(o.shape)}" for name, o in zip(layer.spec.bottom, step.bottoms, strict=True)
            )
            agree = prod(stored.shape) == prod(wanted.shape)
            if entry.reshaped and agree:
                continue
            how = f"; the counts agree: {advice(entry.name, layer.spec.name)} takes the values in their order"
            return (
                f"{layer}: its {wanted.name} is {text(stored.shape)} in the weights file, "
                f"the net with bottom {bottoms} "
                f"wants {text(wanted.shape)}{how if agree else ''}"
            )
    return None
