"""A Network as an ONNX file: Caffe's own layers and names."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import CaffeportError, InputError, ShapeError, UnsupportedLayer
from ..files import appearing
from ..graph import Graph, Operand, Value
from ..layers import Shape
from ..network import Network, _needed
from ..preprocess import Preprocessing
from .graph import OnnxBody, OnnxGraph, OnnxNode, OnnxValue
from .onnx_file import Initializer, write_model
from .pictures import PictureInput

if TYPE_CHECKING:
    from ..verification import Report

Symbolic = tuple[int | str | None, ...]  # a name for a size that a run decides
OPSETS = range(19, 24)


@dataclass
class OnnxExport:
    """What was written.

    notes   sentences for the owner of the net, such as why the batch size is fixed
    preprocessing  what the model does with a picture, as its metadata say it
    report  the comparison of the file's outputs in onnxruntime with the network's, unless it was not proved
    """

    path: Path
    opset: int
    nodes: int
    inputs: dict[str, Symbolic] = field(default_factory=dict)
    outputs: dict[str, Symbolic] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    preprocessing: dict[str, Any] | None = None
    report: "Report | None" = None


def export_onnx(
    network: Network,
    path: str | Path,
    *,
    opset: int = 20,
    batch: int | str | None = "N",
    spatial: str | tuple[int, int] | None = None,
    outputs: Sequence[str] | None = None,
    preprocess: Preprocessing | None = None,
    layout: str = "NHWC",
    fold: bool = False,
    prove: bool = True,
) -> OnnxExport:
    """Write the network as an ONNX model, proved equal to it before the file appears under its name.

    opset     version of ONNX's operators, 19 to 23; raised to 22 by itself if it was not given and a layer needs it
    batch     a name: the batch size stays open under that name; a number: fixed; None: as the net declares
    spatial   "dynamic": height and width stay open; (height, width): fixed; None: as the net declares
    outputs   blobs, or "layer::top" for what one layer wrote; None: the net's outputs
    preprocess  the model takes uint8 RGB pictures, `layout` NHWC or NCHW, and prepares them itself; for what the net's
                own files say: Preprocessing.of_net(network)
    fold      write `network.folded()`; it is compared with the network as it was
    prove     check the file and run it beside the network first

    Raises UnsupportedLayer, naming all layers that ONNX cannot say; InputError for arguments that do not fit, and where
    the file cannot be written.
    """
    path = Path(path)
    asked = part_of(network.graph, network.graph.outputs if outputs is None else outputs)
    if not asked.steps:
        raise InputError(f"outputs: no layer computes {', '.join(map(repr, asked.outputs))}; the net is fed with that")
    picture = None if preprocess is None else PictureInput(preprocess, layout)
    model = OnnxModel(network.folded() if fold else network, opset, batch, spatial, outputs, picture)
    report = None
    with appearing(path) as temporary:
        with ThreadPoolExecutor(1) as beside:  # hashes the source files meanwhile
            facts = beside.submit(model.metadata)
            write_model(temporary, model.proto(), model.initializers(), facts.result)
        if prove:
            from .proof import prove as prove_file

            report = prove_file(temporary, model, network)
    prepared = picture.to_dict() if picture else None
    return OnnxExport(path, model.opset, len(model.nodes), model.inputs, model.outputs, model.notes, prepared, report)


class OnnxModel:
    """The network's layers as ONNX nodes, named, with shapes."""

    def __init__(
        self,
        network: Network,
        opset: int = 20,
        batch: int | str | None = "N",
        spatial: str | tuple[int, int] | None = None,
        outputs: Sequence[str] | None = None,
        preprocess: PictureInput | None = None,
    ) -> None:
        if opset not in OPSETS:
            raise InputError(f"opset {opset}: wanted is {OPSETS[0]} to {OPSETS[-1]}")
        self.network = network
        self.notes: list[str] = []
        graph = network.graph
        self.part = part_of(graph, graph.outputs if outputs is None else outputs)
        self.targets = {name: self.part.blobs[name] for name in self.part.outputs}
        self.sources, self.steps = self.part.inputs, self.part.steps
        self.preprocess = preprocess
        declared, self.shapes = self._shapes(batch, spatial)
        self.declared = declared
        self.onnx = OnnxGraph(network, opset)
        self.values: dict[Value, OnnxValue] = {}
        self.inputs: dict[str, Symbolic] = {}
        self.outputs: dict[str, Symbolic] = {}
        taken: set[str] = set()
        for value in self.sources:
            held = OnnxValue(_open(declared[value]), _unique(value.blob, taken))
            if preprocess and value is self.picture:
                self.image = OnnxValue(name=_unique("image", taken))
                self.inputs[self.image.name] = preprocess.shape(declared[value])
                made = preprocess.onnx(self.onnx, self.image, declared[value])
                made.name, made.shape, held = held.name, held.shape, made
            else:
                self.inputs[held.name] = declared[value]
            self.values[value] = held
        self._write_layers()
        self.opset = self._settled(opset)
        self.nodes = self.onnx.nodes
        self._name(taken)

    # ---- shapes

    def _shapes(
        self, batch: int | str | None, spatial: str | tuple[int, int] | None
    ) -> tuple[dict[Value, Symbolic], dict[Value, Symbolic]]:
        """Shapes of the inputs, and of all values, with names for what is open."""
        ways = [(batch, False)]
        if isinstance(batch, str):
            mixing = any(not step.layer.batch_independent for step in self.steps)
            ways = [(batch, True), (batch, False), (None, False)] if mixing else [(batch, False), (None, False)]
        for size, own in ways:
            declared = _declared(self.sources, size, spatial, own)
            if self.preprocess and spatial is None:
                declared[self.picture] = self.preprocess.closed(declared[self.picture])
            try:
                return declared, _resolved(self.part, declared)
            except ShapeError as error:
                if (size, own) == ways[-1]:
                    raise ShapeError(f"the net does not allow these sizes: {error}") from error
                if ways[-1][0] is None and (size, own) == ways[-2]:
                    self.notes.append(f"the batch size is fixed, as the net allows no other: {error}")
        raise AssertionError("one of the ways returns or raises")

    @property
    def picture(self) -> Value:
        """The input that takes pictures. Raises InputError where there is none, or more than one."""
        found = [value for value in self.sources if len(value.shape) == 4]
        if len(found) != 1:
            raise InputError(
                f"preprocessing: the net has {len(found)} inputs of 4 axes; wanted is one that takes pictures"
            )
        return found[0]

    # ---- layers

    def _write_layers(self) -> None:
        refused: list[str] = []
        for step in self.steps:
            self.onnx.begin(step)
            tops = [OnnxValue() for _ in step.tops]
            try:
                tops = step.layer.onnx(self.onnx, [self._see(operand) for operand in step.bottoms])
            except UnsupportedLayer as error:
                refused.append(str(error))
            for top, value in zip(step.tops, tops, strict=True):
                value.shape = _open(self.shapes[top])
                self.values[top] = value
        if refused:
            raise UnsupportedLayer(
                "ONNX cannot hold this net whole: "
                + "; ".join(refused)
                + "; outputs=[...] or --outputs cuts the net before them"
            )

    def _see(self, operand: Operand) -> OnnxValue:
        """A value as a reader sees it, under the shape of another one where their memory is shared."""
        value = self.values[operand.value]
        if operand.value in self.network.graph.labels:  # fed as (B), read as (B, 1, 1, 1)
            value = self.onnx.reshape(value, (None, 1, 1, 1))
            value.shape = (self.values[operand.value].shape[0], 1, 1, 1)
        if operand.like is None:
            return value
        like = self.values[operand.like]
        sizes = [n if isinstance(n, int) else None for n in self.shapes[operand.like]]
        if sizes.count(None) <= 1:
            seen = self.onnx.reshape(value, sizes)
        else:
            seen = self.onnx.call("Reshape", value, self.onnx.sizes(like))
        seen.shape = _open(self.shapes[operand.like])
        return seen

    def _settled(self, asked: int) -> int:
        if self.onnx.required <= asked:
            return asked
        if asked != 20:
            raise UnsupportedLayer(
                f"opset {asked} cannot say this net, opset {self.onnx.required} can: " + "; ".join(self.onnx.reasons)
            )
        self.notes += [f"opset {self.onnx.required}: {reason}" for reason in self.onnx.reasons[:1]]
        return self.onnx.required

    # ---- names

    def _name(self, taken: set[str]) -> None:
        """Give every node and tensor its name, and every output a tensor of its own."""
        made = {value for node in self.nodes for value in node.outputs}
        tops = {
            self.values[top]: top for step in reversed(self.steps) for top in step.tops
        }  # the first layer that gave it
        for name, operand in self.targets.items():
            value = self._see_output(operand)
            shape = self.shapes[operand.like or operand.value]
            if value.name or (value not in made and value not in {v for node in self.nodes for v in node.outputs}):
                value = self.onnx.call("Identity", value)
            value.name = _unique(name, taken)
            self.outputs[value.name] = shape
        plain = {operand.value: name for name, operand in self.network.graph.blobs.items() if operand.like is None}
        firsts = {node.outputs[0]: node for node in self.nodes}
        for value, top in tops.items():
            if not value.name:
                value.name = _unique(plain.get(top) or self._later(value, plain) or top.key, taken)
        for weight in self.onnx.weights.values():
            weight.value.name = weight.value.name or _unique(weight.name, taken)
        for value, _, key in self.onnx.constants:
            value.name = value.name or _unique(f"{key}/constant", taken)
        node_names: set[str] = set()
        written = {id(firsts[v]): True for v in tops if v in firsts}
        for node in sorted(self.nodes, key=lambda node: id(node) not in written):
            whole = id(node) in written
            node.name = _unique(node.key if whole else f"{node.key}/{node.operator}", node_names)
        self._name_inner(self.nodes, taken, node_names)

    def _name_inner(self, nodes: Iterable[OnnxNode], taken: set[str], node_names: set[str]) -> None:
        """Names of tensors between the nodes of one layer, and inside of the bodies of loops."""
        for node in nodes:
            node.name = node.name or _unique(f"{node.key}/{node.operator}", node_names)
            for value in node.outputs:
                value.name = value.name or _unique(node.name, taken)
            for body in (value for value in node.attributes.values() if isinstance(value, OnnxBody)):
                for value in body.inputs:
                    value.name = _unique(f"{node.name}/input", taken)
                self._name_inner(body.nodes, taken, node_names)

    def _see_output(self, operand: Operand) -> OnnxValue:
        if operand.like is not None:
            self.onnx.begin(next(step for step in self.steps if operand.value in step.tops))
        return self._see(operand)

    def _later(self, value: OnnxValue, plain: Mapping[Value, str]) -> str | None:
        """A plain blob name for a tensor that later layers pass on unchanged, such as a Dropout in place."""
        return next((plain[top] for top, held in self.values.items() if held is value and top in plain), None)

    # ---- the file

    def proto(self) -> Any:
        """The ModelProto without its initializers and facts."""
        from onnx import TensorProto, helper

        pictures = {self.image.name: self.preprocess.doc} if self.preprocess else {}
        inputs = [
            helper.make_tensor_value_info(
                name, TensorProto.UINT8 if name in pictures else TensorProto.FLOAT, shape, pictures.get(name, "")
            )
            for name, shape in self.inputs.items()
        ]
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.outputs.items()
        ]
        known = {*self.inputs, *self.outputs}
        between = {}
        for step in self.steps:
            for top in step.tops:
                name = self.values[top].name
                if name not in known and any(self.values[top] in node.outputs for node in self.nodes):
                    between[name] = helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[top])
        graph = helper.make_graph(
            [_node_proto(node) for node in self.nodes],
            self.network.graph.name or "net",
            inputs,
            outputs,
            value_info=list(between.values()),
        )
        imports = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=helper.find_min_ir_version_for(imports),
            producer_name="caffeport",
            producer_version=__version__,
        )

    def named_shapes(self) -> dict[str, Symbolic]:
        """Shapes of all inputs, outputs and tops by tensor name."""
        tops = {self.values[top].name: self.shapes[top] for step in self.steps for top in step.tops}
        return tops | self.inputs | self.outputs

    def sample_shapes(self) -> dict[str, tuple[int, ...]]:
        """Sizes to try the model with: 1 for an open batch where the net allows that, and else the declared ones."""

        def sized(batch: int | None) -> dict[Value, Shape]:
            return {
                value: tuple(
                    n if isinstance(n, int) else batch or size or 1 if axis == 0 else size or 224
                    for axis, (n, size) in enumerate(zip(self.declared[value], value.shape, strict=True))
                )
                for value in self.sources
            }

        shapes = sized(1)
        try:
            self.part.shapes(_as_read(shapes, self.part.labels))
        except ShapeError:
            shapes = sized(None)
        return {value.blob: shape for value, shape in shapes.items()}  # type: ignore[misc]

    def metadata(self) -> dict[str, str]:
        """Facts about the model, as text: where it comes from, and what its input means."""
        facts = {"model_name": self.network.graph.name}
        hashes = {Path(path).name: sha256_of(path) for path in self.network.source_files}
        if any(hashes.values()):
            facts["sources"] = json.dumps(hashes, sort_keys=True)
        if self.preprocess:
            facts["preprocessing"] = json.dumps(self.preprocess.to_dict())
        return facts

    def initializers(self) -> list[Initializer]:
        """All arrays, those of the network straight from its own memory."""
        learned = [(w.value.name, w.shape, _values(w.tensor, w.shape)) for w in self.onnx.weights.values()]
        fixed = [(v.name, a.shape, _same(a)) for v, a, _ in self.onnx.constants]
        return [*learned, *fixed]


def sha256_of(path: str) -> str | None:
    """Hash of a file; None for what was given as bytes or as an open file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _values(tensor: Any, shape: tuple[int, ...]) -> Any:
    return lambda: tensor.detach().to("cpu").float().contiguous().reshape(shape).numpy()


def _same(array: np.ndarray[Any, Any]) -> Any:
    return lambda: array


def _node_proto(node: OnnxNode) -> Any:
    from onnx import helper

    return helper.make_node(
        node.operator,
        [value.name if value else "" for value in node.inputs],
        [value.name for value in node.outputs],
        name=node.name,
        doc_string=node.type,
        **{
            name: _body_proto(value) if isinstance(value, OnnxBody) else value
            for name, value in node.attributes.items()
        },
    )


def _body_proto(body: OnnxBody) -> Any:
    from onnx import TensorProto, helper

    inputs, outputs = (
        [helper.make_tensor_value_info(value.name, TensorProto.FLOAT, None) for value in values]
        for values in (body.inputs, body.outputs)
    )
    return helper.make_graph([_node_proto(node) for node in body.nodes], "step", inputs, outputs)


def part_of(graph: Graph, names: Iterable[str]) -> Graph:
    """The graph up to these values, which are its outputs: blobs, or "layer::top".

    Raises InputError for unknown names.
    """
    every = {top.key: Operand(top) for step in graph.steps for top in step.tops} | graph.blobs
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name not in every]
    if unknown or not names:
        raise InputError(f"outputs: the net has no blob {', '.join(map(repr, unknown)) or '(none was named)'}")
    targets = {name: every[name] for name in names}
    needed = _needed(graph, targets.values())
    inputs = [value for value in graph.inputs if value in needed]
    steps = [step for step in graph.steps if any(top in needed for top in step.tops)]
    written = {*inputs, *(top for step in steps for top in step.tops)}
    blobs = {name: operand for name, operand in graph.blobs.items() if set(operand.values) <= written}
    return replace(graph, inputs=inputs, steps=steps, blobs=blobs | targets, outputs=names)


def _declared(
    sources: Sequence[Value], batch: int | str | None, spatial: str | tuple[int, int] | None, own: bool
) -> dict[Value, Symbolic]:
    """Each input's sizes, with names for the open ones. `own`: every input has a batch size of its own."""
    if not (spatial is None or spatial == "dynamic" or isinstance(spatial, tuple)):
        raise InputError(f'spatial {spatial!r}: wanted is "dynamic", (height, width) or None')
    first = sources[0] if sources else None
    declared: dict[Value, Symbolic] = {}
    for value in sources:
        sizes: list[int | str | None] = list(value.shape)
        same = first is not None and value.shape[:1] in (first.shape[:1], (None,))
        if sizes and batch is not None and (same or own):
            sizes[0] = batch if value is first or not own else f"{batch}_{value.blob}"
        if len(sizes) == 4 and spatial is not None and (value is first or value.shape[2:] == first.shape[2:]):  # type: ignore[union-attr]
            sizes[2:] = ("H", "W") if spatial == "dynamic" else spatial
        plain = {0: "N", 2: "H", 3: "W"} if value is first and len(sizes) == 4 else {0: "N"}
        for axis, size in enumerate(sizes):
            if size is None:
                sizes[axis] = plain.get(axis) or f"{value.blob}_{axis}"
        declared[value] = tuple(sizes)
    return declared


def _resolved(graph: Graph, declared: Mapping[Value, Symbolic]) -> dict[Value, Symbolic]:
    """Shapes of all values: asks the layers for several sets of sizes and sees what each dimension follows."""
    names = dict.fromkeys(n for shape in declared.values() for n in shape if isinstance(n, str))
    sizes = {value: dict(zip(shape, value.shape, strict=True)) for value, shape in declared.items()}
    base = {n: next((s[n] for s in sizes.values() if s.get(n)), None) for n in names}
    tops = [top for step in graph.steps for top in step.tops]
    if not names:
        given = {value: _open(shape) for value, shape in declared.items()}
        return {**graph.shapes(_as_read(given, graph.labels)), **declared}
    labels = graph.labels
    probes = []
    for k in (0, 1, 2, 9):  # the sizes themselves, near ones and far ones: a stride hides small steps
        chosen = {}
        for i, n in enumerate(names):
            step = 0 if not k else 64 * (i + k * k) if n in ("H", "W") else 2 * i + k
            chosen[n] = (base[n] or (224 if n in ("H", "W") else 1)) + step
        shapes = {
            value: tuple(chosen[n] if isinstance(n, str) else n for n in shape) for value, shape in declared.items()
        }
        probes.append((chosen, graph.shapes(_as_read(shapes, labels))))
    resolved = dict(declared)
    for value in tops:
        pairs = zip(*(found[value] for _, found in probes), strict=True)
        dims: list[int | str | None] = []
        for pair in pairs:
            follows = next(
                (n for n in names if all(chosen[n] == d for (chosen, _), d in zip(probes, pair, strict=True))), None
            )
            dims.append(follows if len(set(pair)) > 1 else pair[0])
        resolved[value] = tuple(dims)
    return resolved


def _as_read(shapes: dict[Value, Shape], labels: set[Value]) -> dict[Value, Shape]:
    return {
        value: (*shape, 1, 1, 1) if value in labels and len(shape) == 1 else shape for value, shape in shapes.items()
    }


def _open(shape: Symbolic) -> Shape:
    return tuple(n if isinstance(n, int) else None for n in shape)


def _unique(name: str, taken: set[str]) -> str:
    """The name, or with #2, #3, ... behind it where it is taken; ONNX knows no empty names."""
    name = name or "_"
    found, repeat = name, 2
    while found in taken:
        found = f"{name}#{repeat}"
        repeat += 1
    taken.add(found)
    return found


__all__ = ["CaffeportError", "OnnxExport", "OnnxModel", "export_onnx"]
