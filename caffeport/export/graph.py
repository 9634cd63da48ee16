"""What a layer's `onnx` method writes into: nodes, constants and weights of an ONNX graph, before they are named.

Names come last, because a tensor's best name is known only when all of the net is there: a blob's plain name belongs to
its last writer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UnsupportedLayer
from ..graph import Step
from ..layers import Shape
from ..layers.base import Size

if TYPE_CHECKING:
    from torch import Tensor

    from ..network import Network

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class OnnxValue:
    """A tensor of the graph. `shape` is known for bottoms and tops, with None for a dimension that a run decides."""

    shape: Shape = ()
    name: str = ""


@dataclass(eq=False)
class OnnxNode:
    """One operator. `key` is the Caffe layer that wrote it."""

    operator: str
    inputs: list[OnnxValue | None]
    outputs: list[OnnxValue]
    attributes: dict[str, Any]
    key: str
    type: str
    name: str = ""


@dataclass(eq=False)
class OnnxBody:
    """A graph inside of a node: what Scan does at each step."""

    inputs: list[OnnxValue]
    nodes: list[OnnxNode]
    outputs: list[OnnxValue]


@dataclass(eq=False)
class OnnxWeight:
    """A learned array: `tensor` is the network's own, written under `shape`."""

    value: OnnxValue
    tensor: "Tensor"
    shape: tuple[int, ...]
    name: str


@dataclass
class OnnxGraph:
    """Collects what the layers write, one layer at a time.

    opset     the version of ONNX's operators asked for; `require` raises it
    required  the opset that some layer needs, and why
    """

    network: "Network"
    opset: int = 20
    required: int = 0
    reasons: list[str] = field(default_factory=list)
    nodes: list[OnnxNode] = field(default_factory=list)
    constants: list[tuple[OnnxValue, Array, str]] = field(default_factory=list)
    weights: dict[int, OnnxWeight] = field(default_factory=dict)
    step: Step = None  # type: ignore[assignment]  # the layer that writes now
    key: str = ""  # its key and type, or what else writes now
    type: str = ""

    def begin(self, step: Step) -> None:
        """What follows is written by this layer."""
        self.step, self.key, self.type = step, step.key, step.layer.spec.type

    # ---- what layers call

    def node(
        self, operator: str, inputs: Sequence[OnnxValue | None], outputs: int = 1, **attributes: Any
    ) -> list[OnnxValue]:
        """Add an operator and give its outputs. None as an input is one left out; at the end it is dropped."""
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        tops = [OnnxValue() for _ in range(outputs)]
        self.nodes.append(OnnxNode(operator, given, tops, attributes, self.key, self.type))
        return tops

    def call(self, operator: str, *inputs: OnnxValue | None, **attributes: Any) -> OnnxValue:
        """Add an operator with one output."""
        return self.node(operator, inputs, **attributes)[0]

    def scan(
        self,
        step: Callable[[list[OnnxValue], list[OnnxValue]], tuple[list[OnnxValue], list[OnnxValue]]],
        state: Sequence[OnnxValue],
        sequences: Sequence[OnnxValue],
        outputs: int,
    ) -> tuple[list[OnnxValue], list[OnnxValue]]:
        """Walk along axis 0 of the sequences.

        `step` takes the state and each sequence's item, and gives the next state and the outputs.

        Gives the last state, and the outputs of all steps, stacked.
        """
        outer, self.nodes = self.nodes, []
        inside = [OnnxValue() for _ in (*state, *sequences)]
        new, given = step(inside[: len(state)], inside[len(state) :])
        body = OnnxBody(inside, self.nodes, [*new, *given])
        self.nodes = outer
        count = len(state) + outputs
        tops = self.node("Scan", [*state, *sequences], count, body=body, num_scan_inputs=len(sequences))
        return tops[: len(state)], tops[len(state) :]

    def constant(self, value: Any, dtype: Any = None) -> OnnxValue:
        """A fixed array; whole numbers become int64, all others float32, unless `dtype` says so."""
        array = np.asarray(value)
        array = array.astype(dtype or (np.int64 if array.dtype.kind in "iu" and array.size else np.float32))
        for made, other, key in self.constants:
            if key == self.key and other.dtype == array.dtype and np.array_equal(other, array, equal_nan=False):
                return made
        made = OnnxValue(tuple(array.shape))
        self.constants.append((made, array, self.key))
        return made

    def axes(self, *axes: int) -> OnnxValue:
        """Axis numbers as the int64 input that operators want."""
        return self.constant(np.array(axes, np.int64), np.int64)

    def weight(self, name: str, shape: Sequence[int] | None = None) -> OnnxValue:
        """The layer's state_dict entry `name`, under another shape of the same size if `shape` is given."""
        network, key = self.network, self.step.key
        owner = network.names[key]
        view = network._views.get(key, {}).get(name)
        if view:
            owner, name, shape = network.names[view.layer], view.parameter, view.shape if shape is None else shape
        module = network.get_submodule(owner)
        tensor = dict(module.state_dict(keep_vars=True))[name]
        wanted = tuple(tensor.shape if shape is None else shape)
        held = self.weights.get(id(tensor))
        if held is None:
            held = OnnxWeight(OnnxValue(wanted), tensor, wanted, f"{owner}.{name}")
            self.weights[id(tensor)] = held
        return held.value if held.shape == wanted else self.reshape(held.value, wanted)

    def reshape(self, x: OnnxValue, dims: Sequence[int | None], copied: Sequence[int] = ()) -> OnnxValue:
        """x under another shape.

        dims    sizes; None is what is left, once at most
        copied  axes of the result whose size is that of the same axis of x
        """
        wanted = [0 if axis in copied else -1 if n is None else n for axis, n in enumerate(dims)]
        if wanted.count(-1) > 1:
            raise UnsupportedLayer(f"{self.step.layer}: its shape depends on more than one open size")
        return self.call("Reshape", x, self.axes(*wanted))

    def view(self, x: OnnxValue, dims: Sequence[int]) -> OnnxValue:
        """x under another shape, whose sizes are given as axes of x to copy, as `Size`, or -1, once: what is left."""
        known = [n if isinstance(n, Size) or n == -1 else x.shape[n] for n in dims]
        copied = [axis for axis, n in enumerate(dims) if n == axis and not isinstance(n, Size) and known[axis] is None]
        unknown = [axis for axis, n in enumerate(known) if n is None and axis not in copied]
        if not unknown:
            return self.reshape(x, [None if n == -1 else n for n in known], copied)
        parts = [
            self.sizes(x, n, n + 1) if size is None else self.axes(size) for n, size in zip(dims, known, strict=True)
        ]
        return self.call("Reshape", x, self.call("Concat", *parts, axis=0))

    def filled_like(self, x: OnnxValue, value: float) -> OnnxValue:
        """A tensor of x's shape that holds `value` everywhere."""
        return self.call("Expand", self.constant(float(value)), self.sizes(x))

    def sizes(self, x: OnnxValue, start: int = 0, end: int | None = None) -> OnnxValue:
        """The sizes of x's axes start..end, known when the graph runs."""
        return self.call("Shape", x, start=start, **({} if end is None else {"end": end}))

    def require(self, opset: int, reason: str) -> None:
        """The layer's operators mean what Caffe does only from this opset on."""
        self.required = max(self.required, opset)
        self.reasons.append(f"{self.step.layer}: {reason}")

    def refuse(self, reason: str) -> UnsupportedLayer:
        """The error for a layer that has no ONNX form here."""
        return UnsupportedLayer(f"{self.step.layer}: {reason}")
