"""What a net and its weights are, before anything is built: no torch, no large memory.

`inspect` and `load` start here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral

from .alignment import bare_crops, set_offsets
from .alignment import warning as warning_of_crops
from .errors import CaffeportError, FormatError, InputError, WeightsError
from .folder import converted_folder
from .formats import ModelFile, Readable, StoredLayer, Weights, read
from .formats.rules import cut_unfed, filter_net, refuse_lost_bottoms, to_deploy
from .formats.schema import Message
from .graph import Graph, build
from .layers import text
from .surgery import Surgery, found, hints, renamed, wanted

CROPS_SHOWN = 50  # Crop layers in a warning; each means a walk through the net
WARNINGS_SHOWN = 20  # of a file, below an error


@dataclass
class Description:
    """A net wired and checked against its weights.

    files     what was read: the net, and the weights where they are another file
    net       the filtered V2 NetParameter that was wired
    weights   the stored arrays, or None: fillers
    warnings  sentences for the owner of the files
    """

    files: list[ModelFile]
    net: Message
    graph: Graph
    weights: Weights | None
    warnings: list[str] = field(default_factory=list)

    def __deepcopy__(self, memo: object) -> "Description":
        return self  # never changed, and a memory map cannot be copied

    @property
    def partial(self) -> bool:
        """The arrays stand in a prototxt, which need not give all of them."""
        return len(self.files) == 1 and "text" in self.files[0].form


def describe(
    net: Readable,
    weights: Readable | None = None,
    *,
    phase: str = "TEST",
    level: int = 0,
    stages: Iterable[str] = (),
    inputs: Mapping[str, Sequence[int | None]] | None = None,
    reshape: Surgery = (),
    crop: str = "caffe",
    salvage: bool = False,
    deploy: bool = False,
) -> Description:
    """Read a net and its weights, apply its rules, and wire it. Arguments as `caffeport.load`.

    deploy  cut from a training net what only training needs (always done for a weights file alone)
    """
    if crop not in ("caffe", "aligned"):
        raise InputError(f"crop is {crop!r}, expected 'caffe' or 'aligned'")
    _check_inputs(inputs)
    folder = converted_folder(net)
    if folder is not None:
        raise FormatError(
            f"{folder}: a folder that `caffeport convert` wrote; expected a Caffe file. It needs no weights and no "
            "conversion: caffeport.load and the commands run, verify, export and inspect take it as it is"
        )
    net_file = read(net, salvage=salvage)
    files = [net_file]
    if weights is not None:
        files.append(_weights_file(net_file, weights, salvage))
    if net_file.net is None:
        raise FormatError(
            f"{net_file.path}: {net_file.form} hold arrays but no net: give the prototxt first, then this file"
        )
    stored = files[-1].weights
    warnings = [warning for file in files for warning in file.warnings]
    alone = weights is None and "text" not in net_file.form
    if alone:
        # Caffe saves the include and exclude rules of what was filtered already, and its automatic Split layers.
        v2, notes = to_deploy(without_splits(net_file.net))
        warnings += notes
        if stored:  # a file that was cut between two layers cannot be told from a shorter net, but by its owner
            last = net_file.net.layer[-1]
            warnings.append(f"{net_file.path}: the net inside is used; its last layer is {last.name!r} ({last.type})")
    else:
        filtered = filter_net(net_file.net, phase=phase, level=level, stages=stages)
        v2, notes = to_deploy(filtered) if deploy else cut_unfed(filtered, inputs or ())
        warnings += notes
        refuse_lost_bottoms(net_file.net, v2, filtered.state, inputs or ())
    path = files[-1].path
    names = [layer.name for layer in v2.layer]
    pairs = wanted(reshape, names)
    if pairs and stored is None:
        raise InputError(f"reshape: {path} holds no arrays; give the weights too")
    if pairs and stored:
        stored = renamed(stored, pairs, names, path)
    try:
        graph = build(v2, stored.by_name() if stored else {}, inputs)
    except CaffeportError as error:
        seen = [f"warning: {warning}" for file in files for warning in file.warnings[:WARNINGS_SHOWN]]
        if not seen:
            raise
        # A misspelt field is why a layer lacks it, and only the reader's warning knows the line.
        raise type(error)("\n  ".join([str(error), *seen])) from error
    crops = bare_crops(graph, None if crop == "aligned" else CROPS_SHOWN)
    if crops and crop == "aligned":
        set_offsets(crops)  # into v2
        graph = build(v2, stored.by_name() if stored else {}, inputs)
    elif crops:
        warnings.append(warning_of_crops(crops))
    if stored and "text" not in files[-1].form:
        stored, notes = found(stored, pairs, graph, path)
        warnings += notes + hints(stored, graph)
    if phase == "TEST":
        warnings += _layer_warnings(graph)
    warnings += _unused_shapes(graph, v2, inputs or {})
    by_name = stored.by_name() if stored else {}
    built = {step.layer.spec.name for step in graph.steps}
    unused = [layer for name, layer in by_name.items() if name not in built]
    if unused and weights is not None:
        warnings.append(f"{files[-1].path}: the net has no layer {_names(unused)}: their arrays are not used")
    return Description(files, v2, graph, stored, warnings)


def _check_inputs(inputs: object) -> None:
    """Raise InputError for anything but shapes by blob name, or None."""
    if inputs is None:
        return
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs is {inputs!r}, expected shapes by blob name, such as {{'data': (1, 3, 227, 227)}}")
    for name, shape in inputs.items():
        if not isinstance(shape, Iterable) or any(not isinstance(n, Integral | None) for n in shape):
            raise InputError(
                f"inputs: {name!r} has the shape {shape!r}, expected whole numbers, or None for an open one"
            )


def _unused_shapes(graph: Graph, net: Message, inputs: Iterable[str]) -> list[str]:
    """Warnings for shapes that were given for other blobs than the graph's inputs."""
    fed = {value.blob for value in graph.inputs}
    writers = {name: spec for spec in reversed(net.layer) for name in spec.top}
    warnings = []
    for name in [name for name in inputs if name not in fed]:
        spec = writers.get(name)
        why = f"layer {spec.name!r} ({spec.type}) computes that blob" if spec else "no layer reads or writes that blob"
        warnings.append(f"input {name!r}: a shape is given for it, and {why}, so it is not used")
    return warnings


def _weights_file(net_file: ModelFile, weights: Readable, salvage: bool) -> ModelFile:
    file = read(weights, salvage=salvage)
    if "text" in file.form and "text" not in net_file.form:
        raise FormatError(
            f"{file.path}: this is a net ({file.form}) and {net_file.path} holds the weights ({net_file.form}): "
            "the two arguments are swapped; the order is net, weights"
        )
    if file.weights is None:
        raise WeightsError(f"{file.path}: {file.form} without any arrays; expected a .caffemodel or .caffemodel.h5")
    return file


def _layer_warnings(graph: Graph) -> list[str]:
    """What the layers warn of, once for all that say the same."""
    layers: dict[str, list[str]] = {}
    for step in graph.steps:
        for warning in step.layer.warnings():
            layers.setdefault(f"({step.layer.spec.type}): {warning}", []).append(repr(step.key))
    return [
        f"{'layers' if len(names) > 1 else 'layer'} {', '.join(names)} {warning}" for warning, names in layers.items()
    ]


def _names(layers: list[StoredLayer], limit: int = 8) -> str:
    shown = ", ".join(
        f"{layer.name!r} ({', '.join(text(blob.shape) for blob in layer.blobs)})" for layer in layers[:limit]
    )
    return shown + (f" and {len(layers) - limit} more" if len(layers) > limit else "")


def without_splits(net: Message) -> Message:
    """The net without the Split layers that Caffe put in by itself, `<blob>_<layer>_<index>_split`."""
    result = type(net)()
    result.CopyFrom(net)
    del result.layer[:]
    original: dict[str, str] = {}
    for layer in net.layer:
        automatic = layer.type == "Split" and len(layer.bottom) == 1 and layer.name.endswith("_split")
        if automatic and all(top == f"{layer.name}_{i}" for i, top in enumerate(layer.top)):
            original |= dict.fromkeys(layer.top, original.get(layer.bottom[0], layer.bottom[0]))
            continue
        kept = result.layer.add()
        kept.CopyFrom(layer)
        kept.bottom[:] = [original.get(bottom, bottom) for bottom in layer.bottom]
    return result


__all__ = ["Description", "describe", "without_splits"]
