"""LSTM, RNN and LSTMUnit against plain loops over NumPy numbers."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import caffeport
from caffeport import ShapeError
from caffeport.modules import recurrent
from tests.layers.test_loss import net_of

Array = np.ndarray[Any, Any]
STATES = {"LSTM": 2, "RNN": 1}  # states of each type


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def lstm_loop(p: dict[str, Array], x: Array, cont: Array, s: Array | None, h: Array, c: Array) -> tuple[Array, ...]:
    """h of every step, the last h and c."""
    ys = []
    for t in range(len(x)):
        mark = cont[t][:, None]
        gates = x[t] @ p["weight_x"].T + p["bias"] + (mark * h) @ p["weight_h"].T
        if s is not None:
            gates = gates + s @ p["weight_static"].T
        i, f, o, g = np.split(gates, 4, axis=1)
        c = mark * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        ys.append(h)
    return np.stack(ys), h, c


def rnn_loop(p: dict[str, Array], x: Array, cont: Array, s: Array | None, h: Array) -> tuple[Array, ...]:
    """y of every step, the last h."""
    ys = []
    for t in range(len(x)):
        total = x[t] @ p["weight_x"].T + p["bias"] + (cont[t][:, None] * h) @ p["weight_h"].T
        h = np.tanh(total if s is None else total + s @ p["weight_static"].T)
        ys.append(np.tanh(h @ p["weight_y"].T + p["bias_y"]))
    return np.stack(ys), h


def build(kind: str, steps: int, streams: int, *, static: bool = False, exposed: bool = False) -> caffeport.Network:
    """A float64 net of one layer with seeded random weights: 2 x 3 inputs a step, 4 units, 2 x 1 static inputs."""
    shapes: dict[str, tuple[int, ...]] = {"x": (steps, streams, 2, 3), "cont": (steps, streams)}
    tops = 'top: "y"'
    if static:
        shapes["s"] = (streams, 2, 1)
    if exposed:
        for name in "hc"[: STATES[kind]]:
            shapes[f"{name}0"] = (1, streams, 4)
            tops += f' top: "{name}T"'
    param = f"num_output: 4 expose_hidden: {str(exposed).lower()} weight_filler {{ type: 'gaussian' std: 0.5 }}"
    filler = "bias_filler { type: 'uniform' min: -1 max: 1 }"
    return net_of(f'type: "{kind}" {tops} recurrent_param {{ {param} {filler} }}', shapes).double()


def layer_of(net: caffeport.Network) -> Any:
    return net.get_submodule("l")


def parameters(net: caffeport.Network) -> dict[str, Array]:
    return {name: value.detach().numpy() for name, value in layer_of(net).named_parameters()}


def values(net: caffeport.Network, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs, markers 1."""
    generator = torch.Generator().manual_seed(seed)
    fed = {
        name: torch.randn([n or 1 for n in shape], dtype=torch.float64, generator=generator)
        for name, shape in net.inputs.items()
    }
    return fed | {"cont": torch.ones_like(fed["cont"])}


def looped(kind: str, net: caffeport.Network, fed: dict[str, Tensor]) -> tuple[Array, ...]:
    """What the layer must give: y and the last states."""
    arrays = {name: value.detach().numpy() for name, value in fed.items()}
    x, cont = arrays["x"], arrays["cont"]
    static = arrays["s"].reshape(len(arrays["s"]), -1) if "s" in arrays else None
    zero = np.zeros((x.shape[1], 4))
    states = [arrays[f"{name}0"][0] if f"{name}0" in arrays else zero for name in "hc"[: STATES[kind]]]
    loop = lstm_loop if kind == "LSTM" else rnn_loop
    return loop(parameters(net), x.reshape(*x.shape[:2], -1), cont, static, *states)  # type: ignore[operator]


@settings(max_examples=40)
@given(
    st.sampled_from(["LSTM", "RNN"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["ones", "first 0", "mixed"]),
)
def test_against_a_loop(kind: str, steps: int, streams: int, static: bool, exposed: bool, markers: str) -> None:
    net = build(kind, steps, streams, static=static, exposed=exposed)
    fed = values(net)
    if markers == "first 0":
        fed["cont"][0] = 0
    elif markers == "mixed":  # Caffe multiplies, so that a marker may be a fraction
        fed["cont"] = torch.tensor(np.random.default_rng(steps).choice([0, 0.5, 1], (steps, streams)))
    with torch.no_grad():
        blobs = net.blobs(fed)
    y, *states = looped(kind, net, fed)
    np.testing.assert_allclose(blobs["y"], y, rtol=1e-10, atol=1e-12)
    if exposed:
        for name, state in zip("hc", states, strict=False):
            np.testing.assert_allclose(blobs[f"{name}T"], state[None], rtol=1e-10, atol=1e-12)


def test_torchs_own_lstm_gives_what_the_loop_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build("LSTM", 5, 2, exposed=True)
    fed = values(net)
    fed["cont"][0, 0] = 0.25
    fused = net(fed)
    monkeypatch.setattr(recurrent, "goes_on", lambda cont: False)
    for name, value in net(fed).items():
        torch.testing.assert_close(fused[name], value)


def test_which_markers_allow_torchs_own_lstm() -> None:
    cont = torch.ones(3, 2)
    cont[0, 1] = 0
    assert recurrent.goes_on(cont)
    cont[2, 1] = 0
    assert not recurrent.goes_on(cont)


@pytest.mark.parametrize("kind", STATES)
def test_each_call_starts_from_zeros(kind: str) -> None:
    net = build(kind, 3, 2)
    assert torch.equal(net(values(net)), net(values(net)))


@pytest.mark.parametrize("kind", STATES)
def test_a_carried_state_makes_two_calls_one(kind: str) -> None:
    net = build(kind, 4, 2)
    fed = values(net)
    whole = net(fed)
    layer_of(net).carry_state = True
    halves = [net({name: value[half] for name, value in fed.items()}) for half in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(torch.cat(halves), whole)
    assert all(not state.requires_grad for state in layer_of(net).state)
    layer_of(net).reset_state()
    torch.testing.assert_close(net(fed), whole)


def test_a_marker_of_0_forgets_a_carried_state() -> None:
    net = build("LSTM", 2, 2)
    fed = values(net)
    first = net(fed)
    layer_of(net).carry_state = True
    net(fed)
    fed["cont"][0] = 0
    torch.testing.assert_close(net(fed), first)


def test_a_carried_state_is_copied_converted_and_dropped_for_another_number_of_streams() -> None:
    net = build("LSTM", 2, 2)
    layer_of(net).carry_state = True
    fed = values(net)
    net(fed)
    twin = copy.deepcopy(net).float()
    torch.testing.assert_close(twin(fed), net(fed).float())
    one = {name: value[:, :1] for name, value in fed.items()}
    carried = net(one)
    layer_of(net).reset_state()
    torch.testing.assert_close(carried, net(one))


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("markers", ["ones", "mixed"])
def test_gradients(kind: str, markers: str) -> None:
    net = build(kind, 3, 2, exposed=True)
    fed = values(net)
    if markers == "mixed":
        fed["cont"][1, 0] = 0
    leaves = [fed[name].requires_grad_() for name in fed if name != "cont"]
    state = dict(net.named_parameters())

    def run(*args: Tensor) -> tuple[Tensor, ...]:
        inputs = dict(zip((name for name in fed if name != "cont"), args, strict=False)) | {"cont": fed["cont"]}
        weights = dict(zip(state, args[len(leaves) :], strict=True))
        return tuple(torch.func.functional_call(net, weights, (inputs,)).values())

    assert torch.autograd.gradcheck(run, (*leaves, *state.values()))


def test_parameters_keep_caffes_layout() -> None:
    shapes = {name: tuple(value.shape) for name, value in layer_of(build("LSTM", 2, 2, static=True)).named_parameters()}
    assert shapes == {"weight_x": (16, 6), "bias": (16,), "weight_static": (16, 2), "weight_h": (16, 4)}
    step = build("RNN", 2, 2, static=True).graph.steps[0]
    assert [blob.name for blob in step.blobs] == ["weight_x", "bias", "weight_static", "weight_h", "weight_y", "bias_y"]


def test_multiply_adds() -> None:
    step = build("RNN", 5, 3, static=True).graph.steps[0]
    shapes = [operand.shape for operand in step.bottoms]
    assert step.layer.multiply_adds(shapes, step.layer.describe(shapes)) == 5 * 3 * (6 * 4 + 4 * 4 + 4 * 4) + 3 * 2 * 4


def test_the_other_branch_is_exported() -> None:
    """An exported program must hold for all markers, so it has the loop inside."""
    net = build("LSTM", 3, 2)
    fed = values(net)
    program = torch.export.export(layer_of(net), (fed["x"], fed["cont"])).module()
    fed["cont"][1, 0] = 0
    torch.testing.assert_close(program(fed["x"], fed["cont"]), net(fed))


def test_modules_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        assert recurrent.LSTM(3, 2, static=1).weight_static.is_meta  # type: ignore[union-attr]


@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=20)
def test_lstm_unit(streams: int, hidden: int, mark: float) -> None:
    shapes = {"c": (1, streams, hidden), "gates": (1, streams, 4 * hidden), "cont": (1, streams)}
    rng = np.random.default_rng(hidden)
    c, gates = rng.normal(size=shapes["c"]), rng.normal(size=shapes["gates"])
    net = net_of('type: "LSTMUnit" top: "c1" top: "h1"', shapes)
    blobs = net.blobs(torch.tensor(c), torch.tensor(gates), torch.full(shapes["cont"], mark, dtype=torch.float64))
    i, f, o, g = np.split(gates, 4, axis=2)
    wanted = mark * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    np.testing.assert_allclose(blobs["c1"], wanted)
    np.testing.assert_allclose(blobs["h1"], sigmoid(o) * np.tanh(wanted))


@pytest.mark.parametrize(
    ("layer", "shapes", "message"),
    [
        pytest.param("LSTM", [(3, 2), (3, 2)], r"'l' \(LSTM\): wants steps x streams x ...", id="no input axis"),
        pytest.param("LSTM", [(3, 2, 4), (2, 3)], r"markers 'b1' are 2 x 3; wanted is 3 x 2", id="markers"),
        pytest.param("LSTM", [(3, 2, 4), (3, 2), (2,)], r"static input 'b2' is 2; wanted are 2 axes", id="static axes"),
        pytest.param("RNN", [(3, 2, 4), (3, 2), (3, 1)], r"the first of them 2 streams", id="static streams"),
        pytest.param("LSTM", [(3, 2, 4)], r"has 1 bottoms, Caffe wants 2 to 3", id="bottoms"),
        pytest.param("LSTMUnit", [(1, 2, 3), (1, 2, 9), (1, 2)], r"'b1' is 1 x 2 x 9; wanted is 1 x 2 x 12", id="rows"),
        pytest.param("LSTMUnit", [(2, 2, 3), (1, 2, 12), (1, 2)], r"'b0' is 2 x 2 x 3; wanted is 1 x 2 x 3", id="time"),
        pytest.param("LSTMUnit", [(1, 2, 3), (1, 2, 12), (1, 3)], r"'b2' is 1 x 3; wanted is 1 x 2", id="streams"),
    ],
)
def test_shapes_that_caffe_refuses(layer: str, shapes: list[tuple[int, ...]], message: str) -> None:
    tops = 'top: "c1" top: "h1"' if layer == "LSTMUnit" else 'top: "y" recurrent_param { num_output: 5 }'
    with pytest.raises(ShapeError, match=message):
        net_of(f'type: "{layer}" {tops}', {f"b{i}": shape for i, shape in enumerate(shapes)})


def test_a_state_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"the state 'h' is 2 x 5; wanted is 1 x 2 x 5"):
        net_of(
            'type: "RNN" top: "y" top: "hT" recurrent_param { num_output: 5 expose_hidden: true }',
            {"x": (3, 2, 4), "cont": (3, 2), "h": (2, 5)},
        )


def test_no_outputs() -> None:
    with pytest.raises(ShapeError, match="num_output is missing or 0"):
        net_of('type: "LSTM" top: "y"', {"x": (3, 2, 4), "cont": (3, 2)})


def test_quirks_name_the_state() -> None:
    assert any("starts from the state" in quirk.what for quirk in build("LSTM", 2, 2).quirks())
    assert not any("starts from the state" in quirk.what for quirk in build("LSTM", 2, 2, exposed=True).quirks())
