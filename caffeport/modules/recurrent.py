"""Caffe's LSTM and RNN: time-major, with markers that say where a stream goes on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def goes_on(cont: Tensor) -> bool:
    """Whether no stream starts anew after the first step, as torch's own LSTM wants it; the look costs 5 us on a CPU.

    False where the answer must not depend on the data: under torch.compile, torch.export and tracing.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return bool((cont[1:] == 1).all())


def as_torch_gates(array: Tensor) -> tuple[Tensor, ...]:
    """Rows in Caffe's order i, f, o, g as blocks in torch's, i, f, g, o."""
    i, f, o, g = array.chunk(4)
    return i, f, g, o


def fused_lstm(x: Tensor, weight_x: Tensor, bias: Tensor, weight_h: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """torch.lstm over x (T, N, D) from the state h, c (N, H): all h (T, N, H), the last h and c."""
    # one buffer in cuDNN's order, so that a GPU need not pack it
    blocks = [block.flatten() for array in (weight_x, weight_h, bias) for block in as_torch_gates(array)]
    sizes = [weight_x.numel(), weight_h.numel(), bias.numel(), bias.numel()]
    w, u, b, no_bias = torch.split(torch.cat([*blocks, torch.zeros_like(bias)]), sizes)
    parameters = [w.view_as(weight_x), u.view_as(weight_h), b, no_bias]
    # with biases, one layer, no dropout, training (cuDNN wants that for a gradient), not bidirectional, time first
    y, h, c = torch.lstm(x, (h[None], c[None]), parameters, True, 1, 0.0, torch.is_grad_enabled(), False, False)
    return y, h[0], c[0]


def lstm_cell(gates: Tensor, c: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """One step: gates (N, 4 H) before sigmoid and tanh, in the order i, f, o, g; c (N, H); cont (N, 1) -> h, c."""
    hidden = c.shape[-1]
    i, f, o = gates[..., : 3 * hidden].sigmoid().chunk(3, -1)
    c = cont * f * c + i * gates[..., 3 * hidden :].tanh()
    return o * c.tanh(), c


def lstm_steps(inputs: Tensor, cont: Tensor, weight_h: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """The LSTM step by step; inputs (T, N, 4 H) is what x gives to the gates."""
    steps = []
    for given, go_on in zip(inputs.unbind(), cont[..., None].unbind(), strict=True):
        h, c = lstm_cell(torch.addmm(given, go_on * h, weight_h.t()), c, go_on)
        steps.append(h)
    return torch.stack(steps), h, c


def rnn_steps(inputs: Tensor, cont: Tensor, weight_h: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    """The RNN step by step; inputs (T, N, H) is what x gives to the sum."""
    steps = []
    for given, go_on in zip(inputs.unbind(), cont[..., None].unbind(), strict=True):
        h = torch.addmm(given, go_on * h, weight_h.t()).tanh()
        steps.append(h)
    return torch.stack(steps), h


class _Recurrent(nn.Module):
    """What LSTM and RNN share: parameters in Caffe's layout, the inputs, and the state at the start.

    Takes x (T, N, ...), cont (T, N), which multiplies the state before each step, static (N, ...) where it has weights,
    and the first state, each (1, N, hidden), if `exposed`. Gives y (T, N, hidden) and, if `exposed`, the last state.

    Each call starts from a state of zeros. Caffe starts from where its last forward ended: set `carry_state = True` for
    that; `reset_state()` forgets. No gradient goes from call to call, and another number of streams starts from zeros.
    """

    states = 1
    gates = 1

    def __init__(self, inputs: int, hidden: int, static: int | None = None, exposed: bool = False) -> None:
        super().__init__()
        rows = self.gates * hidden
        self.hidden, self.exposed = hidden, exposed
        self.weight_x = nn.Parameter(torch.zeros(rows, inputs))
        self.bias = nn.Parameter(torch.zeros(rows))
        self.weight_static = None if static is None else nn.Parameter(torch.zeros(rows, static))
        self.weight_h = nn.Parameter(torch.zeros(rows, hidden))
        self.carry_state = False
        self.state: Sequence[Tensor] = ()

    def extra_repr(self) -> str:
        static = "" if self.weight_static is None else f", static={self.weight_static.shape[1]}"
        return f"{self.weight_x.shape[1]}, {self.hidden}{static}, exposed={self.exposed}"

    def reset_state(self) -> None:
        """Let the next call start from zeros."""
        self.state = ()

    def start(self, x: Tensor, given: Sequence[Tensor]) -> list[Tensor]:
        """The state before the first step, each (N, hidden)."""
        if self.exposed:
            return [state[0] for state in given]
        if self.carry_state and self.state and len(self.state[0]) == x.shape[1]:
            return [state.to(x) for state in self.state]
        return [x.new_zeros(x.shape[1], self.hidden)] * self.states

    def run(self, x: Tensor, cont: Tensor, static: Tensor | None, state: list[Tensor]) -> tuple[Tensor, ...]:
        """All h (T, N, hidden) and the last state."""
        raise NotImplementedError

    def projected(self, x: Tensor, static: Tensor | None) -> Tensor:
        """What x and the static input add to each step, (T, N, rows)."""
        inputs = F.linear(x, self.weight_x, self.bias)
        if static is None or self.weight_static is None:
            return inputs
        return inputs + F.linear(static.flatten(1), self.weight_static)

    def read_out(self, h: Tensor) -> Tensor:
        """y from all h."""
        return h

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        static, given = (None, others) if self.weight_static is None else (others[0], others[1:])
        h, *last = self.run(x.flatten(2), cont, static, self.start(x, given))
        if self.carry_state:
            self.state = [state.detach() for state in last]
        y = self.read_out(h)
        return (y, *(state[None] for state in last)) if self.exposed else y


class LSTM(_Recurrent):
    """i, f, o = sigmoid, g = tanh of W_x x + b + W_h (cont h); c = cont f c + i g; h = o tanh(c); rows i, f, o, g."""

    states = 2
    gates = 4

    def run(self, x: Tensor, cont: Tensor, static: Tensor | None, state: list[Tensor]) -> tuple[Tensor, ...]:
        h, c = state
        if static is None and goes_on(cont):
            first = cont[0, :, None]
            return fused_lstm(x, self.weight_x, self.bias, self.weight_h, first * h, first * c)
        return lstm_steps(self.projected(x, static), cont, self.weight_h, h, c)


class RNN(_Recurrent):
    """h = tanh(W_x x + W_h (cont h) + b); y = tanh(W_y h + b_y)."""

    def __init__(self, inputs: int, hidden: int, static: int | None = None, exposed: bool = False) -> None:
        super().__init__(inputs, hidden, static, exposed)
        self.weight_y = nn.Parameter(torch.zeros(hidden, hidden))
        self.bias_y = nn.Parameter(torch.zeros(hidden))

    def run(self, x: Tensor, cont: Tensor, static: Tensor | None, state: list[Tensor]) -> tuple[Tensor, ...]:
        (h,) = state
        return rnn_steps(self.projected(x, static), cont, self.weight_h, h)

    def read_out(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight_y, self.bias_y).tanh()


class LSTMUnit(nn.Module):
    """One step of an LSTM from given gates: c (1, N, H), gates (1, N, 4 H), cont (1, N) to the next c and h."""

    def forward(self, c: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        h, c = lstm_cell(gates, c, cont[..., None])
        return c, h
