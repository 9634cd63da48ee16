"""The Network: feeding it, what it gives, and that it is a plain nn.Module in every respect."""

import weakref
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import caffeport
from caffeport import InputError, Network, ShapeError
from caffeport.network import module_names
from tests.test_graph import DATA, layer

CONV = "convolution_param { num_output: 6 kernel_size: 3 pad: 1 weight_filler { type: 'xavier' } }"
INNER = "inner_product_param { num_output: 7 weight_filler { type: 'xavier' } }"
NET = (
    DATA
    + layer("conv", "Convolution", "data", "conv", CONV)
    + layer("bn", "BatchNorm", "conv", "bn")
    + layer("scale", "Scale", "bn", "bn", "scale_param { bias_term: true filler { value: 0.7 } }")
    + layer("relu", "ReLU", "bn", "bn")
    + layer("pool", "Pooling", "bn", "pool", "pooling_param { kernel_size: 2 stride: 2 }")
    + layer("lrn", "LRN", "pool", "lrn")
    + layer("ip", "InnerProduct", "lrn", "ip", INNER)
    + layer("prob", "Softmax", "ip", "prob")
)


def load(text: str, **arguments: object) -> Network:
    return caffeport.load(text.encode(), **arguments)  # type: ignore[arg-type]


@pytest.fixture
def network() -> Network:
    built = load(NET)
    built.get_submodule("bn").running_var.fill_(1.0)  # Caffe's filler leaves 0
    return built


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


# ---- what it looks like


def test_it_reads_as_plain_pytorch(network: Network) -> None:
    shown = str(network)
    assert "(conv): Conv2d(3, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))" in shown
    assert "(ip): Linear(in_features=36, out_features=7, bias=True)" in shown
    assert {"conv.weight", "conv.bias", "bn.running_mean", "scale.weight", "ip.bias"} <= set(network.state_dict())
    assert not network.training
    assert network.inputs == {"data": (2, 3, 4, 5)}
    assert network.outputs == ["prob"]


HOSTILE = [
    "a.b",
    "a_b",
    "class",
    "forward",
    "graph",
    "names",
    "_modules",
    "_plan",
    '"',
    "'",
    "../x",
    "a/b",
    "",
    " ",
    "é\n",
    "0",
    "n" * 65536,
]


def test_any_name_is_a_layer(x: Tensor) -> None:
    def escaped(name: str) -> str:
        return name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    chain = ["data", *(f"t{i}" for i in range(len(HOSTILE)))]
    layers = [
        layer(escaped(name), "Scale", bottom, top, "scale_param { filler { value: 2 } }")
        for name, bottom, top in zip(HOSTILE, chain, chain[1:], strict=False)
    ]
    network = load(DATA + "".join(layers))
    assert len(set(network.names.values())) == len(HOSTILE)
    with torch.no_grad():
        blobs = network.blobs(x)
    for i, name in enumerate(HOSTILE):
        assert torch.equal(blobs[f"{name}::t{i}"], x * 2.0 ** (i + 1))
    assert len(network.state_dict()) == len(HOSTILE)
    deepcopy(network).load_state_dict(network.state_dict())


def test_a_name_with_nul_is_a_layer(x: Tensor) -> None:
    network = load(DATA + layer("a\\000b", "ReLU", "data", "y"))
    assert torch.equal(network.blobs(x)["a\0b::y"], x.relu())


def test_blobs_of_any_name(x: Tensor) -> None:
    network = load(DATA.replace('"data"', '"a.b::\\"c"') + layer("l", "ReLU", 'a.b::\\"c', "forward"))
    assert torch.equal(network({'a.b::"c': x}), x.relu())


def test_module_names_are_unique_in_linear_time() -> None:
    keys = ["".join("._"[i >> bit & 1] for bit in range(13)) for i in range(2**13)]
    names = module_names(keys)
    assert len(set(names.values())) == 2**13
    assert module_names(["conv", "a.b", "forward", ""]) == {
        "conv": "conv",
        "a.b": "a_b",
        "forward": "forward_",
        "": "_",
    }


# ---- feeding it


def test_ways_to_feed(network: Network, x: Tensor) -> None:
    want = network(x)
    for got in (network(data=x), network({"data": x}), network(x.numpy()), network(data=x.numpy().astype(np.float64))):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(network.blobs({"data": x})["prob"], want)


def test_several_outputs_are_a_dict(x: Tensor) -> None:
    network = load(DATA + layer("b", "TanH", "data", "b") + layer("a", "AbsVal", "data", "a"))
    outputs = network(x)
    assert list(outputs) == ["a", "b"]
    assert torch.equal(outputs["a"], x.abs())


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((), {}, "takes 'data'; not given: 'data'"),
        ((1, 2), {}, "2 arrays were given"),
        ((1,), {"dat": 1}, "not an input: 'dat'"),
        (({"dat": 1},), {}, "not given: 'data'; not an input: 'dat'"),
    ],
)
def test_wrong_inputs_are_named(network: Network, args: tuple, kwargs: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        network(*args, **kwargs)


NO_ARRAYS = [
    pytest.param("abc", "type <U3", id="text"),
    pytest.param(None, "type object", id="None"),
    pytest.param({"a": 1}, "type object", id="a mapping"),
    pytest.param([[1.0, 2.0], [3.0]], "inhomogeneous", id="ragged lists"),
    pytest.param(np.full((2, 3, 4, 5), "1"), "type <U1", id="digits"),
    pytest.param(np.zeros((2, 3, 4, 5), np.complex64), "type complex64", id="complex array"),
    pytest.param(torch.zeros(2, 3, 4, 5, dtype=torch.complex64), "tensor is complex", id="complex tensor"),
    pytest.param(torch.zeros(2, 3, 4, 5, device="meta"), "meta device", id="meta tensor"),
]


@pytest.mark.parametrize("array, message", NO_ARRAYS)
def test_what_is_no_array_of_real_numbers(network: Network, array: object, message: str) -> None:
    for run in (lambda: network(data=array), lambda: network.blobs({"data": array})):
        with pytest.raises(InputError, match=rf"blob 'data': .*{message}"):
            run()


def test_a_network_without_numbers_takes_tensors_without() -> None:
    network = load(NET).to("meta")
    assert network(torch.zeros(2, 3, 4, 5, device="meta")).shape == (2, 7)


def test_other_batch_and_spatial_sizes() -> None:
    network = load(
        DATA
        + layer("c", "Convolution", "data", "c", CONV)
        + layer("p", "Pooling", "c", "p", "pooling_param { kernel_size: 2 stride: 2 }")
    )
    assert network(torch.zeros(7, 3, 9, 10)).shape == (7, 6, 5, 5)
    assert network(torch.zeros(1, 3, 2, 2)).shape == (1, 6, 1, 1)


def test_a_size_that_does_not_fit_names_the_layer(network: Network) -> None:
    with pytest.raises(ShapeError, match=r"layer 'ip' \(InnerProduct\)"):
        network(torch.zeros(2, 3, 9, 9))
    with pytest.raises(ShapeError, match=r"layer 'conv' \(Convolution\)"):
        network(torch.zeros(2, 4, 4, 5))
    with pytest.raises(ShapeError, match="blob 'data': got shape 3 x 4 x 5, the net declares 2 x 3 x 4 x 5"):
        network(torch.zeros(3, 4, 5))


def test_open_shapes_are_checked_at_the_first_call() -> None:
    network = load(NET, inputs={"data": (None, 3, 4, 5)})
    assert network.inputs == {"data": (None, 3, 4, 5)}
    assert network(torch.zeros(9, 3, 4, 5)).shape == (9, 7)


# ---- running it


def test_forward_gives_what_blobs_gives(network: Network, x: Tensor) -> None:
    """With gradients on and off: forward computes BatchNorm and Scale in one call, and ReLU in place, where it may."""
    with torch.no_grad():
        torch.testing.assert_close(network(x), network.blobs(x)["prob"])
    torch.testing.assert_close(network(x), network.blobs(x)["prob"])


@pytest.mark.parametrize(
    "first",
    [
        layer("r", "ReLU", "data", "data"),
        layer("f", "Flatten", "data", "y") + layer("r", "ReLU", "y", "y"),
        layer("s", "Split", "data", "y z") + layer("r", "ReLU", "y", "y"),
        layer("d", "Dropout", "data", "y") + layer("r", "ReLU", "y", "y"),
        layer("p", "Power", "data", "y") + layer("r", "ReLU", "y", "y"),
        layer("r", "ReLU6", "data", "data"),
    ],
)
def test_the_callers_array_is_never_written_to(first: str, x: Tensor) -> None:
    network = load(DATA + first)
    before = x.clone()
    with torch.no_grad():
        network(x)
        network.blobs(x)
    assert torch.equal(x, before)


def test_blobs_keep_every_value_of_an_in_place_chain(network: Network, x: Tensor) -> None:
    blobs = network.blobs(x)
    assert torch.equal(blobs["relu::bn"], blobs["scale::bn"].relu())
    assert torch.equal(blobs["bn"], blobs["relu::bn"])
    assert (blobs["bn::bn"] < 0).any()


def test_values_are_freed_while_forward_runs(x: Tensor) -> None:
    network = load(DATA + "".join(layer(f"l{i}", "TanH", f"y{i - 1}" if i else "data", f"y{i}") for i in range(5)))
    alive: list[weakref.ref[Tensor]] = []
    counts = []

    def count(_module: nn.Module, _args: object, output: Tensor) -> None:
        alive.append(weakref.ref(output))
        counts.append(sum(ref() is not None for ref in alive))

    for module in network.children():
        module.register_forward_hook(count)
    with torch.no_grad():
        network(x)
    assert max(counts) <= 2  # a layer's bottom and its top


# ---- up to a blob


def test_truncate(network: Network, x: Tensor) -> None:
    blobs = network.blobs(x)
    for blob in ("pool", "bn", "scale::bn", "conv::conv", "ip"):
        cut = network.truncate(blob)
        assert torch.equal(cut.blobs(x)[blob], blobs[blob])
        torch.testing.assert_close(cut(x), blobs[blob])
    cut = network.truncate("pool")
    assert cut.outputs == ["pool"]
    assert not hasattr(cut, "ip")
    assert cut.get_submodule("conv") is network.get_submodule("conv")


def test_truncate_leaves_out_inputs_that_are_not_needed(x: Tensor) -> None:
    two = (
        DATA + DATA.replace('"data"', '"more"') + layer("r", "ReLU", "data", "y") + layer("e", "Eltwise", "y more", "z")
    )
    cut = load(two).truncate("y")
    assert list(cut.inputs) == ["data"]
    assert torch.equal(cut(x), x.relu())


def test_truncate_at_an_unknown_blob_lists_the_known(network: Network) -> None:
    with pytest.raises(InputError, match=r"no blob 'fc7'.*'conv', 'bn'"):
        network.truncate("fc7")


# ---- shared parameters


XAVIER = "bias_term: false weight_filler { type: 'xavier' }"
NAMED = "param { name: 'w' share_mode: PERMISSIVE }"
TIED = (
    'input: "data" input_shape { dim: 2 dim: 5 }'
    + layer("encode", "InnerProduct", "data", "code", f"{NAMED} inner_product_param {{ num_output: 3 {XAVIER} }}")
    + layer(
        "decode",
        "InnerProduct",
        "code",
        "out",
        f"{NAMED} inner_product_param {{ num_output: 5 transpose: true {XAVIER} }}",
    )
)
PERMISSIVE = (
    DATA
    + layer(
        "one",
        "Convolution",
        "data",
        "x",
        f"{NAMED} convolution_param {{ num_output: 4 kernel_h: 4 kernel_w: 5 {XAVIER} }}",
    )
    + layer("flat", "Flatten", "data", "flat", "flatten_param { axis: 2 }")
    + layer("two", "InnerProduct", "flat", "y", f"{NAMED} inner_product_param {{ num_output: 12 axis: 2 {XAVIER} }}")
)


def test_tied_weights_one_of_them_transposed() -> None:
    network = load(TIED)
    x = torch.randn(2, 5)
    weight = network.state_dict()["encode.weight"]
    assert len(list(network.parameters())) == 1
    torch.testing.assert_close(network(x), x @ weight.T @ weight)


@pytest.mark.parametrize("text", [TIED, PERMISSIVE])
def test_sharing_survives_what_people_do_to_modules(text: str) -> None:
    network = load(text)
    shape = next(iter(network.inputs.values()))
    x = torch.randn(*shape)
    want = network.blobs(x)
    for other in (deepcopy(network), deepcopy(network).double(), network.truncate(network.outputs[-1])):
        assert len(list(other.parameters())) == 1
        got = other.blobs(x)
        assert all(torch.allclose(got[key].float(), value, atol=1e-6) for key, value in want.items() if key in got)
    copy = deepcopy(network)
    with torch.no_grad():
        next(copy.parameters()).zero_()
    outputs = copy(x)
    for value in outputs.values() if isinstance(outputs, dict) else [outputs]:
        assert not value.any()  # each of the layers reads the copy's one parameter
    assert torch.equal(network.blobs(x)[network.outputs[0]], want[network.outputs[0]])


def test_gradients_of_all_sharers_meet_in_the_owner() -> None:
    network = load(PERMISSIVE)
    x = torch.randn(2, 3, 4, 5)
    outputs = network(x)
    (weight,) = network.parameters()
    parts = [torch.autograd.grad(value.sum(), weight, retain_graph=True)[0] for value in outputs.values()]
    (both,) = torch.autograd.grad(sum(value.sum() for value in outputs.values()), weight)
    assert all(part.any() for part in parts)
    torch.testing.assert_close(both, parts[0] + parts[1])


# ---- an nn.Module like any other


def test_gradients_flow_to_inputs_and_parameters(network: Network, x: Tensor) -> None:
    x.requires_grad_()
    network(x)[:, 0].sum().backward()
    assert x.grad is not None and x.grad.any()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_state_dict_round_trip(network: Network, x: Tensor) -> None:
    other = load(NET, seed=1)
    assert not torch.equal(other(x), network(x))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x), network(x))


def test_double_is_closer_to_the_truth(network: Network, x: Tensor) -> None:
    exact = deepcopy(network).double()(x)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(network(x).double(), exact, rtol=1e-5, atol=1e-7)


def test_a_net_of_buffers_alone_has_their_type(x: Tensor) -> None:
    network = load(DATA + layer("bn", "BatchNorm", "data", "bn")).double()
    assert network(x).dtype == torch.float64


def test_half(network: Network, x: Tensor) -> None:
    halved = deepcopy(network).half()(x)
    assert halved.dtype == torch.float16
    torch.testing.assert_close(halved.float(), network(x), rtol=1e-2, atol=1e-3)


def test_channels_last(network: Network, x: Tensor) -> None:
    other = deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(x.to(memory_format=torch.channels_last)), network(x))


@pytest.mark.parametrize("text", [NET, TIED, PERMISSIVE])
def test_export(text: str) -> None:
    network = load(text)
    x = torch.randn(*next(iter(network.inputs.values())))
    program = torch.export.export(network, (x,), strict=False)  # as it is from torch 2.8 on
    torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_compile(network: Network, x: Tensor) -> None:
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))
    torch.testing.assert_close(compiled(x[:1]), network(x[:1]))


def test_saving_the_state_and_loading_it_again(network: Network, x: Tensor, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "state.pt")
    other = load(NET, seed=1)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x), network(x))


@pytest.mark.parametrize(
    "layer, fed",
    [
        ('type: "BatchReindex" bottom: "a" bottom: "i"', {"a": torch.zeros(3, 4), "i": torch.tensor([0.0, 1, 5])}),
        ('type: "Embed" bottom: "i" embed_param { num_output: 3 input_dim: 5 }', {"i": torch.tensor([0.0, 1, 5])}),
    ],
)
def test_an_index_out_of_range_names_the_layer(layer: str, fed: dict[str, torch.Tensor]) -> None:
    inputs = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        + " ".join(f"dim: {n}" for n in x.shape)
        + " } } }\n"
        for name, x in fed.items()
    )
    network = caffeport.load(f'{inputs} layer {{ name: "look up" {layer} top: "o" }}'.encode())
    with pytest.raises(InputError, match="look up"):
        network(fed)
    with pytest.raises(InputError, match="look up"):
        network.blobs(fed)
