"""Wires a net's layers into steps: which value each layer reads, which it writes, and all shapes. Needs no torch.

A *value* is what one layer wrote to one top, known as `layer::top`. A *blob name* stands for different values over time
when layers work in place. In Caffe, Flatten, Reshape, Split and their like share memory with their bottom, so an
in-place layer on one name also changes what later layers see under the other names of that memory. This file settles
that once, by wiring: such a reader is given the newest value of the memory, reshaped to the shape it expects.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from .errors import CaffeportError, FormatError, InputError, ShapeError, UnsupportedLayer
from .formats.model_file import StoredLayer
from .formats.schema import Message
from .layers import UNKNOWN, Blob, Layer, OpenShape, Quirk, Shape, layer_class, text

LARGEST = 2**31 - 1  # values in one blob: Caffe counts them in an int
MOST_AXES = 32  # of one blob, in Caffe
MOST_CONSTANTS = 2**29  # values (2 GiB) that layers without bottoms may make in one net
MOST_PROBLEMS = 500  # named in one error
AUTOMATIC = "(automatic)"  # Caffe's name for the top of a loss that names none; no other layer can read it


@dataclass(frozen=True, eq=False)
class Value:
    """What one layer wrote to one top.

    key    "layer::top", or the blob's name for an input that no layer declares
    blob   the name under which the net file knows it
    shape  as declared; None where only a run can tell
    slot   its place in the list of values of a run
    """

    key: str
    blob: str
    shape: Shape
    slot: int


@dataclass(frozen=True)
class Operand:
    """A value as a reader sees it: `like` is set where the value has to be reshaped to that other value's shape."""

    value: Value
    like: Value | None = None

    @property
    def shape(self) -> Shape:
        return (self.like or self.value).shape

    @property
    def values(self) -> list[Value]:
        return [self.value] if self.like is None else [self.value, self.like]


@dataclass(frozen=True, eq=False)
class Step:
    """One layer at its place in the net. `blobs` are its learned arrays, `owners` where each one's numbers live."""

    layer: Layer
    bottoms: tuple[Operand, ...]
    tops: tuple[Value, ...]
    blobs: tuple[Blob, ...] = ()
    owners: tuple[
        tuple[str, int], ...
    ] = ()  # (layer key, blob index); the layer's own unless `param { name }` shares it

    @property
    def key(self) -> str:
        return self.layer.key

    @property
    def reads(self) -> list[Value]:
        """All values that have to be there before this layer runs."""
        return [value for operand in self.bottoms for value in operand.values]


@dataclass
class Graph:
    """A whole net.

    inputs   the blobs that the caller may feed, in order; `needed` are those of them that some layer reads or that are
             outputs
    labels   those of MemoryData layers that are declared as (B) and that a run holds as (B, 1, 1, 1)
    steps    all layers that compute, in file order
    blobs    every blob name as it is at the end of a run
    outputs  names that no layer reads, sorted, as Caffe lists them
    """

    name: str
    inputs: list[Value] = field(default_factory=list)
    labels: set[Value] = field(default_factory=set)
    data_layers: list[Layer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    blobs: dict[str, Operand] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    slots: int = 0
    truncated: bool = False  # the output was asked for by name, whatever it needs

    def shapes(self, given: Mapping[Value, Shape]) -> dict[Value, Shape]:
        """Shapes of all values that can be computed from the given ones. Raises ShapeError where Caffe would abort."""
        shapes = dict(given)
        for step in self.steps:
            if all(value in shapes for value in step.reads):
                bottoms = [shapes[operand.like or operand.value] for operand in step.bottoms]
                tops = zip(step.tops, step.layer.describe(bottoms), strict=True)
                _check_learned(step, bottoms)
                shapes.update((top, shape) for top, shape in tops if top not in given)
        return shapes

    @property
    def needed(self) -> list[Value]:
        read = {value for step in self.steps for value in step.reads}
        read |= {value for name in self.outputs for value in self.blobs[name].values}
        return [value for value in self.inputs if value in read]

    @property
    def judged(self) -> set[Value]:
        """Inputs such as labels: they lead to no learned array and to no output but what a loss or a score says."""
        feeding: set[Value] = set()  # values that lead to more than that
        read = {value for step in self.steps for value in step.reads}
        for step in reversed(self.steps):
            unread = any(top not in read or top in feeding for top in step.tops)
            if not step.layer.judges and (step.blobs or unread):
                feeding.update(step.reads)
        judged = {value for value in self.inputs if value in read and value not in feeding}
        return judged if len(judged) < len(self.needed) and not self.truncated else set()

    def quirks(self) -> list[Quirk]:
        return [quirk for step in self.steps for quirk in step.layer.quirks([o.shape for o in step.bottoms])]


def _check_learned(step: Step, bottoms: list[Shape]) -> None:
    for built, wanted in zip(step.blobs, step.layer.blobs(bottoms), strict=True):
        if built.shape != wanted.shape:
            raise ShapeError(
                f"{step.layer}: {built.name} was built as {text(built.shape)}, but bottom "
                f"{step.layer.spec.bottom[0]!r} "
                f"of shape {text(bottoms[0])} needs {text(wanted.shape)}"
            )


def build(
    net: Message,
    stored: Mapping[str, StoredLayer] | None = None,
    inputs: Mapping[str, Sequence[int | None]] | None = None,
) -> Graph:
    """Wire a filtered V2 NetParameter.

    stored  arrays of the weights file by layer name; their shapes stand in where bottoms are open
    inputs  shapes of inputs, by blob name; they go before what the file says. A blob that nobody writes but that is
            named here becomes an input.
    """
    return _Builder(net, stored or {}, {name: tuple(shape) for name, shape in (inputs or {}).items()}).build()


class _Builder:
    def __init__(self, net: Message, stored: Mapping[str, StoredLayer], inputs: dict[str, Shape]) -> None:
        self.net = net
        self.stored = stored
        self.input_shapes = inputs
        self.graph = Graph(net.name)
        self.current: dict[str, Value] = {}  # blob name -> the value it stood for when it was last written
        self.memory: dict[Value, Value] = {}  # value -> the first value of the memory that it lives in
        self.newest: dict[Value, Value] = {}  # that first value -> the value written there last
        self.read: set[str] = set()
        self.readers: dict[Value, str] = {}
        self.keys: set[str] = set()
        self.repeats: Counter[str] = Counter()
        self.constants = 0
        self.writers: dict[str, str] = {}  # blob name -> the first layer that writes it, and so for readers
        self.first_reader: dict[str, Message] = {}
        self.shared: dict[str, tuple[str, int, Blob]] = {}
        self.problems: list[CaffeportError] = []
        self.broken: set[Value] = set()  # values whose shape is unknown because of an error before

    def build(self) -> Graph:
        for spec in self.net.layer:
            for name in spec.top:
                self.writers.setdefault(name, spec.name)
            for name in spec.bottom:
                self.first_reader.setdefault(name, spec)
        for name in self.input_shapes:
            if name not in self.writers and name in self.first_reader:
                self._input(name, self.input_shapes[name])
        layers = [layer for spec in self.net.layer if (layer := self._layer(spec))]
        self._raise()
        for layer in layers:
            try:
                self._add(layer)
            except CaffeportError as error:
                self.problems.append(self._with_inputs(error) if isinstance(error, OpenShape) else error)
                for top in layer.spec.top:
                    self.broken.add(self._write(f"{layer.key}::{top}", top, ()))
        self._raise()
        graph = self.graph
        unread = sorted(name for name in self.current if name not in self.read)
        fed = set(graph.inputs)
        graph.outputs = [name for name in unread if self.current[name] not in fed] or unread
        graph.blobs = {name: self._operand(name) for name in self.current}
        return graph

    def _raise(self) -> None:
        """All problems of one kind at once."""
        if not self.problems:
            return
        first = self.problems[0]
        if len(self.problems) == 1:
            raise first
        lines = [f"{len(self.problems)} layers cannot be built:", *map(str, self.problems[:MOST_PROBLEMS])]
        if len(self.problems) > MOST_PROBLEMS:
            lines.append(f"and {len(self.problems) - MOST_PROBLEMS} more")
        raise type(first)("\n  ".join(lines))

    def _layer(self, spec: Message) -> Layer | None:
        key = spec.name
        while key in self.keys:
            self.repeats[spec.name] += 1
            key = f"{spec.name}#{self.repeats[spec.name] + 1}"
        self.keys.add(key)
        entry = self.stored.get(spec.name) if key == spec.name else None
        blobs = entry.blobs if entry else None
        try:
            return layer_class(spec, blobs)(spec, key, blobs)
        except UnsupportedLayer as error:
            self.problems.append(error)
            return None

    def _add(self, layer: Layer) -> None:
        spec = layer.spec
        if layer.is_input:
            self.graph.data_layers.append(layer)
            for top, shape in zip(spec.top, layer.describe([]), strict=True):
                self._input(top, self._given(layer, top, shape), layer)
            return
        operands = tuple(self._operand(name, layer) for name in spec.bottom)
        if any((operand.like or operand.value) in self.broken for operand in operands):
            for top in spec.top:
                self.broken.add(self._write(f"{layer.key}::{top}", top, ()))
            return
        bottoms = [operand.shape for operand in operands]
        shapes = layer.describe(bottoms)
        for shape in shapes:
            self._check_size(str(layer), "a top", shape)
        if not spec.bottom:
            self._count_constants(layer, shapes)
        names = list(spec.top) or [AUTOMATIC] * len(shapes)
        self._check_tops(layer, names)
        blobs = layer.blobs(bottoms)
        for blob in blobs:
            self._check_size(str(layer), f"its {blob.name}", blob.shape)
        owners = self._owners(layer, blobs)
        tops = []
        named = [self.current[name] for name in spec.bottom]  # not what they share memory with: names count here
        shares = layer.shares_memory(bottoms)
        for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            in_place = i < len(spec.bottom) and spec.bottom[i] == name
            home = operands[i].value if in_place else operands[0].value if shares else None
            if in_place and list(spec.bottom).count(name) > 1:
                raise ShapeError(f"{layer}: works in place on {name!r}, which it also reads twice; Caffe refuses that")
            if in_place and (other := self.readers.get(named[i])):
                raise ShapeError(
                    f"{layer}: works in place on {name!r}, which layer {other!r} also reads before; Caffe refuses that"
                )
            tops.append(self._write(f"{layer.key}::{name}", name, shape, home=home, overwrites=in_place and not shares))
        self.read.update(spec.bottom)
        self.read.difference_update(spec.top)
        self.readers |= dict.fromkeys(named, layer.key)
        self.graph.steps.append(Step(layer, operands, tuple(tops), tuple(blobs), owners))

    def _given(self, layer: Layer, name: str, declared: Shape) -> Shape:
        if name in self.input_shapes:
            return self.input_shapes[name]
        return self._guessed(name) if declared is UNKNOWN else declared

    def _guessed(self, name: str) -> Shape:
        """An open shape for an input of unknown rank, from the first reader's stored arrays.

        Caffe's usual 4 axes otherwise.
        """
        spec = self.first_reader.get(name)
        if spec is None or (name == "label" and name != spec.bottom[0]):
            return (None,)
        entry = self.stored.get(spec.name)
        if entry and entry.blobs and not entry.blobs[0].legacy:
            return (None,) * max(len(entry.blobs[0].shape), 2)
        return (None,) * (5 if spec.type.upper().endswith("3D") else 4)  # C3D's clips

    def _input(self, name: str, shape: Shape, layer: Layer | None = None) -> None:
        for size in shape:
            if size is not None and size < 1:
                raise InputError(
                    f"input {name!r}: shape {text(shape)} has a dimension below 1; Caffe cannot hold such a blob"
                )
        self._check_size("input", repr(name), shape)
        if name in self.current:
            raise FormatError(f"input {name!r} is declared twice")
        key = f"{layer.key}::{name}" if layer else name
        self.graph.inputs.append(self._write(key, name, shape))
        if layer and layer.spec.type == "MemoryData" and name != layer.spec.top[0]:
            self.graph.labels.add(self.graph.inputs[-1])

    def _write(self, key: str, blob: str, shape: Shape, home: Value | None = None, overwrites: bool = False) -> Value:
        value = Value(key, blob, shape, self.graph.slots)
        self.graph.slots += 1
        root = self.memory[home] if home else value
        self.memory[value] = root
        if overwrites or not home:
            self.newest[root] = value
        if blob != AUTOMATIC:
            self.current[blob] = value
        return value

    def _operand(self, name: str, layer: Layer | None = None) -> Operand:
        if name not in self.current:
            raise ShapeError(self._missing(name, layer))
        value = self.current[name]
        newest = self.newest[self.memory[value]]
        if newest is value or self._same_memory_view(value, newest):
            return Operand(value)
        return Operand(newest, None if newest.shape == value.shape and None not in value.shape else value)

    def _same_memory_view(self, value: Value, newest: Value) -> bool:
        """Whether `value` was written after `newest` as a view of it, so that it holds the newest numbers already."""
        return value.slot > newest.slot

    def _with_inputs(self, error: OpenShape) -> ShapeError:
        names = [value.blob for value in self.graph.inputs if None in value.shape]
        given = ", ".join(f"{name!r}: (N, C, H, W)" for name in names)
        return ShapeError(
            f"{error}; give the shape of the input: inputs={{{given}}} or --input {(names or ['NAME'])[0]}=N,C,H,W"
        )

    def _check_size(self, who: str, what: str, shape: Shape) -> None:
        """Raise ShapeError for what Caffe's Blob cannot hold, before anybody takes memory for it."""
        if len(shape) > MOST_AXES:
            raise ShapeError(f"{who}: {what} would have {len(shape)} axes, Caffe's blobs have {MOST_AXES} at most")
        if prod(n for n in shape if n is not None) > LARGEST:
            raise ShapeError(
                f"{who}: {what} would be {text(shape)}, more than the {LARGEST:,} values that a blob of Caffe can hold"
            )

    def _count_constants(self, layer: Layer, shapes: list[Shape]) -> None:
        self.constants += sum(prod(n or 1 for n in shape) for shape in shapes)
        if self.constants > MOST_CONSTANTS:
            raise ShapeError(
                f"{layer}: the net's constants up to this one have {self.constants:,} values; {MOST_CONSTANTS:,} "
                "is the limit; make the layer an Input and feed the numbers"
            )

    def _missing(self, name: str, layer: Layer | None) -> str:
        later = self.writers.get(name)
        if later is not None:
            return (
                f"{layer}: reads blob {name!r}, which only a later layer, {later!r}, writes; "
                "Caffe builds layers in file order, so this is a cycle or a wrong order"
            )
        return (
            f"{layer}: reads blob {name!r}, which no layer writes; if the caller should feed it, give its shape "
            f"(inputs={{{name!r}: ...}} or --input {name}=N,C,H,W)"
        )

    def _check_tops(self, layer: Layer, names: list[str]) -> None:
        written: set[str] = set()
        for i, name in enumerate(names):
            in_place = i < len(layer.spec.bottom) and layer.spec.bottom[i] == name
            if in_place and not layer.in_place:
                raise ShapeError(f"{layer}: writes to its own bottom {name!r}; Caffe cannot do this layer in place")
            if (name in self.current and not in_place) or name in written:
                raise ShapeError(
                    f"{layer}: writes blob {name!r}, which an earlier layer has written; "
                    "only in-place layers may do that"
                )
            written.add(name)

    def _owners(self, layer: Layer, blobs: list[Blob]) -> tuple[tuple[str, int], ...]:
        params = layer.spec.param
        if len(params) > len(blobs):
            raise ShapeError(f"{layer}: has {len(params)} param entries but {len(blobs)} learned arrays")
        owners = []
        for i, blob in enumerate(blobs):
            name = params[i].name if i < len(params) else ""
            if not name:
                owners.append((layer.key, i))
                continue
            key, index, first = self.shared.setdefault(name, (layer.key, i, blob))
            permissive = params[i].share_mode == 1
            if first.shape != blob.shape and not (permissive and prod(first.shape) == prod(blob.shape)):
                raise ShapeError(
                    f"{layer}: shares parameter {name!r} with layer {key!r}, whose shape is {text(first.shape)}; "
                    f"here it would be {text(blob.shape)}"
                )
            owners.append((key, index))
        return tuple(owners)
