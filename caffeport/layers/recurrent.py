"""Recurrent layers: LSTM, RNN and one LSTM step."""

from math import prod
from typing import TYPE_CHECKING, ClassVar

from ..errors import ShapeError
from .base import Blob, Layer, Quirk, Shape, compatible, count, register, text

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue


class _Recurrent(Layer):
    """Base of LSTM and RNN: their bottoms, tops and the arrays that both have."""

    param_field = "recurrent_param"
    fresh = True
    in_place = False
    batch_independent = False  # axis 0 is time
    gates: ClassVar[int] = 1  # blocks of num_output rows
    states: ClassVar[int] = 1  # what expose_hidden adds to the bottoms and the tops

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.exposed = self.states if self.param.expose_hidden else 0
        self.bottom_count = (2 + self.exposed, 3 + self.exposed)  # type: ignore[misc]
        self.top_count = (1 + self.exposed, 1 + self.exposed)  # type: ignore[misc]

    @property
    def has_static(self) -> bool:
        return len(self.spec.bottom) > 2 + self.exposed

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        hidden, names, (x, cont) = self.param.num_output, self.spec.bottom, bottoms[:2]
        if not hidden:
            raise ShapeError(f"{self}: num_output is missing or 0")
        if len(x) < 3:
            raise ShapeError(f"{self}: wants steps x streams x ..., 3 axes or more; bottom {names[0]!r} is {text(x)}")
        if not compatible(cont, x[:2]):
            raise ShapeError(f"{self}: markers {names[1]!r} are {text(cont)}; wanted is {text(x[:2])}, steps x streams")
        if self.has_static and (len(bottoms[2]) < 2 or not compatible(bottoms[2][:1], x[1:2])):
            raise ShapeError(
                f"{self}: the static input {names[2]!r} is {text(bottoms[2])}; "
                f"wanted are 2 axes or more, the first of them {text(x[1:2])} streams"
            )
        state = (1, x[1], hidden)
        for name, shape in list(zip(names, bottoms, strict=True))[len(bottoms) - self.exposed :]:
            if not compatible(shape, state):
                raise ShapeError(f"{self}: the state {name!r} is {text(shape)}; wanted is {text(state)}")
        return [(*x[:2], hidden), *[state] * self.exposed]

    def inputs(self, bottoms: list[Shape]) -> int:
        """Values of x at one step."""
        return self._row(0, bottoms[0][2:], "its number of inputs")

    def static(self, bottoms: list[Shape]) -> int | None:
        """Values of the static input of one stream; None without one."""
        return self._row(2, bottoms[2][1:], "its number of static inputs") if self.has_static else None

    def _row(self, index: int, shape: Shape, what: str) -> int:
        stored = self.stored_shape(index, 2)
        return self.known(count(shape), stored[1] if stored else None, what)

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        hidden, filler, static = self.param.num_output, self.param.weight_filler, self.static(bottoms)
        rows = self.gates * hidden
        return [
            Blob("weight_x", (rows, self.inputs(bottoms)), filler),
            Blob("bias", (rows,), self.param.bias_filler),
            *([] if static is None else [Blob("weight_static", (rows, static), filler)]),
            Blob("weight_h", (rows, hidden), filler),
        ]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules import recurrent

        kind: type[nn.Module] = getattr(recurrent, self.spec.type)
        return kind(self.inputs(bottoms), self.param.num_output, self.static(bottoms), bool(self.exposed))

    def multiply_adds(self, bottoms: list[Shape], tops: list[Shape]) -> int | None:
        streams, cells = bottoms[0][1], count(tops[0][:2])
        if streams is None or cells is None:
            return None
        matrices = {blob.name: prod(blob.shape) for blob in self.blobs(bottoms) if len(blob.shape) == 2}
        return streams * matrices.pop("weight_static", 0) + cells * sum(matrices.values())

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        if self.exposed:
            return []
        carried = "starts from the state in which its last run ended"
        return [Quirk(self.key, carried, "starts from zeros; the module's carry_state = True gives Caffe's way")]

    def cell(
        self, graph: "OnnxGraph", gates: "OnnxValue", state: "list[OnnxValue]", cont: "OnnxValue"
    ) -> "list[OnnxValue]":
        """In ONNX: the next state (N, H) from the sums of the gates."""
        return [graph.call("Tanh", gates)]

    def read_out(self, graph: "OnnxGraph", h: "OnnxValue") -> "OnnxValue":
        """In ONNX: the top from the states h of all steps."""
        return h

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        x, cont, *others = bottoms
        hidden = self.param.num_output
        static = others.pop(0) if self.has_static else None

        def transposed(name: str) -> "OnnxValue":
            return graph.call("Transpose", graph.weight(name), perm=(1, 0))

        flat = x if len(x.shape) == 3 else graph.view(x, [0, 1, -1])
        given = graph.call(
            "Add", graph.call("MatMul", flat, transposed("weight_x")), graph.weight("bias")
        )  # (T, N, rows)
        if static:
            row = graph.call("MatMul", graph.call("Flatten", static, axis=1), transposed("weight_static"))
            given = graph.call("Add", given, row)
        if self.exposed:
            state = [graph.call("Squeeze", first, graph.axes(0)) for first in others]
        else:
            shape = graph.call("Concat", graph.sizes(x, 1, 2), graph.axes(hidden), axis=0)
            state = [graph.call("Expand", graph.constant(0.0), shape)] * self.states
        go_on = graph.call("Unsqueeze", cont, graph.axes(2))  # (T, N, 1)
        weight = graph.weight("weight_h")

        def step(state: "list[OnnxValue]", now: "list[OnnxValue]") -> "tuple[list[OnnxValue], list[OnnxValue]]":
            h = graph.call("Gemm", graph.call("Mul", now[1], state[0]), weight, now[0], transB=1)
            new = self.cell(graph, h, state, now[1])
            return new, [graph.call("Identity", new[0])]

        last, (y,) = graph.scan(step, state, [given, go_on], outputs=1)
        y = self.read_out(graph, y)
        return [y, *(graph.call("Unsqueeze", value, graph.axes(0)) for value in last)] if self.exposed else [y]


def lstm_cell(
    graph: "OnnxGraph", gates: "OnnxValue", c: "OnnxValue", cont: "OnnxValue", hidden: int
) -> "list[OnnxValue]":
    """In ONNX: the next c and h from the gates' sums (.., 4 H) in the order i, f, o, g, the last c and the markers."""
    rows, g = graph.node("Split", [gates, graph.axes(3 * hidden, hidden)], 2, axis=-1)
    i, f, o = graph.node("Split", [graph.call("Sigmoid", rows), graph.axes(hidden, hidden, hidden)], 3, axis=-1)
    kept = graph.call("Mul", graph.call("Mul", cont, f), c)
    c = graph.call("Add", kept, graph.call("Mul", i, graph.call("Tanh", g)))
    return [c, graph.call("Mul", o, graph.call("Tanh", c))]


@register("LSTM")
class LSTM(_Recurrent):
    """Long short-term memory over time-major sequences; a marker 0 starts a stream anew.

    i, f, o = sigmoid, g = tanh of W_x x + b [+ W_static s] + W_h (cont h); c = cont f c + i g; h = o tanh(c); y = h

    Shapes   x (T, N, ...), cont (T, N) [, static (N, ...)] [, h, c (1, N, H)] -> y (T, N, H) [, h, c (1, N, H)]
    Params   num_output H; expose_hidden false: true for the states in brackets; weight_filler, bias_filler constant 0
    Blobs    weight_x (4H, D), bias (4H) [, weight_static (4H, S)], weight_h (4H, H); rows in the order i, f, o, g
    Raises   ShapeError: num_output is 0, axes or streams of the bottoms do not fit
    PyTorch  torch.lstm, rows reordered, where cont is 1 after the first step and nothing is static; or else a loop.
             ONNX: LSTM (rows i, o, f, g) in the same cases, or unrolled.
    Source   BVLC Caffe 1.0, src/caffe/layers/lstm_layer.cpp, recurrent_layer.cpp
    """

    gates = 4
    states = 2

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        order = "rows of the weights are i, f, o, g (torch: i, f, g, o), and there is one bias"
        return [Quirk(self.key, order, "kept so; reordered for torch.lstm"), *super().quirks(bottoms)]

    def cell(
        self, graph: "OnnxGraph", gates: "OnnxValue", state: "list[OnnxValue]", cont: "OnnxValue"
    ) -> "list[OnnxValue]":
        return lstm_cell(graph, gates, state[1], cont, self.param.num_output)[::-1]


@register("RNN")
class RNN(_Recurrent):
    """A recurrence with an output layer; a marker 0 starts a stream anew.

    h = tanh(W_x x + b [+ W_static s] + W_h (cont h)); y = tanh(W_y h + b_y)

    Shapes   x (T, N, ...), cont (T, N) [, static (N, ...)] [, h (1, N, H)] -> y (T, N, H) [, h (1, N, H)]
    Params   num_output H; expose_hidden false: true for the states in brackets; weight_filler, bias_filler constant 0
    Blobs    weight_x (H, D), bias (H) [, weight_static (H, S)], weight_h (H, H), weight_y (H, H), bias_y (H)
    Raises   ShapeError: num_output is 0, axes or streams of the bottoms do not fit
    PyTorch  a loop; torch.rnn_tanh with a Linear and a tanh is no faster. ONNX: RNN, MatMul, Add, Tanh, or unrolled.
    Source   BVLC Caffe 1.0, src/caffe/layers/rnn_layer.cpp, recurrent_layer.cpp
    """

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        hidden, p = self.param.num_output, self.param
        output = [Blob("weight_y", (hidden, hidden), p.weight_filler), Blob("bias_y", (hidden,), p.bias_filler)]
        return super().blobs(bottoms) + output

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        return [Quirk(self.key, "the top is tanh(W h + b), not h itself", "own module"), *super().quirks(bottoms)]

    def read_out(self, graph: "OnnxGraph", h: "OnnxValue") -> "OnnxValue":
        weight = graph.call("Transpose", graph.weight("weight_y"), perm=(1, 0))
        return graph.call("Tanh", graph.call("Add", graph.call("MatMul", h, weight), graph.weight("bias_y")))


@register("LSTMUnit")
class LSTMUnit(Layer):
    """One step of an LSTM whose gates another layer computed.

    c' = cont sigmoid(f) c + sigmoid(i) tanh(g); h = sigmoid(o) tanh(c')

    Shapes   c (1, N, H), gates i, f, o, g (1, N, 4H), cont (1, N) -> c' (1, N, H), h (1, N, H)
    Raises   ShapeError: axes or sizes do not fit
    PyTorch  own module; nn.LSTMCell has the weights inside. The gradient of f is the derivative; Caffe's is wrong where
             cont is neither 0 nor 1. ONNX: composed.
    Source   BVLC Caffe 1.0, src/caffe/layers/lstm_unit_layer.cpp
    """

    bottom_count = (3, 3)
    top_count = (2, 2)
    fresh = True
    in_place = False

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        c = bottoms[0]
        streams, hidden = c[1:] if len(c) == 3 else (None, None)
        wanted = (1, streams, hidden), (1, streams, None if hidden is None else 4 * hidden), (1, streams)
        for name, shape, want in zip(self.spec.bottom, bottoms, wanted, strict=True):
            if not compatible(shape, want):
                raise ShapeError(f"{self}: bottom {name!r} is {text(shape)}; wanted is {text(want)}")
        return [c, c]

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        from ..modules.recurrent import LSTMUnit as Module

        return Module()

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        c, gates, cont = bottoms
        hidden = c.shape[2]
        if hidden is None:
            raise graph.refuse("the size of its state depends on an open size")
        return lstm_cell(graph, gates, c, graph.call("Unsqueeze", cont, graph.axes(2)), hidden)
