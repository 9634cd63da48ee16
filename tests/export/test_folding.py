"""Folded networks: fewer layers, the same function."""

import pickle
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import caffeport
from caffeport import folding
from caffeport.modules import packed
from caffeport.modules.packed import PackedConv2d
from tests.agreement import disagreement
from tests.conftest import DIGITS
from tests.export.test_onnx import SMALL, run

CONVOLUTION = (
    'convolution_param { num_output: 6 kernel_size: 3 bias_term: %s group: %d weight_filler { type: "xavier" } }'
)
AFTER = """
layer { name: "bn" type: "BatchNorm" bottom: "y" top: "y" batch_norm_param { eps: 0.01 } }
layer { name: "scale" type: "Scale" bottom: "y" top: "z" scale_param { bias_term: true filler { type: "uniform" }
        bias_filler { type: "uniform" } } }
layer { name: "bias" type: "Bias" bottom: "z" top: "z" bias_param { filler { type: "uniform" } } }
layer { name: "drop" type: "Dropout" bottom: "z" top: "z" }
layer { name: "relu" type: "ReLU" bottom: "z" top: "z" }
"""


def randomized(network: caffeport.Network) -> caffeport.Network:
    """The network with statistics as a trained one has them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + (0.5 if "var" in name else 0))
    return network


@pytest.mark.parametrize("type_", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("bias", ["true", "false"])
@pytest.mark.parametrize("group", [1, 2])
def test_affine_layers_go_into_the_convolution_before(type_: str, bias: str, group: int) -> None:
    net = (
        f"""input: "x" input_shape {{ dim: 2 dim: 4 dim: 7 dim: 8 }}
    layer {{ name: "conv" type: "{type_}" bottom: "x" top: "y" {CONVOLUTION % (bias, group)} }}"""
        + AFTER
    )
    network = randomized(caffeport.load(net.encode()))
    folded = network.folded()
    assert [step.key for step in folded.graph.steps] == ["conv", "relu"]
    x = torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert disagreement(folded(x).numpy(), network(x).numpy()) is None
        assert {"bias::z", "relu::z", "z"} <= set(folded.blobs(x)) <= {"x", "input::x", "bias::z", "relu::z", "z"}


def test_a_matrix_product_takes_them_too() -> None:
    net = """input: "x" input_shape { dim: 2 dim: 4 }
    layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 3 weight_filler {
            type: "xavier" } } }
    layer { name: "bn" type: "BatchNorm" bottom: "y" top: "y" }"""
    network = randomized(caffeport.load(net.encode()))
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert disagreement(network.folded()(x).numpy(), network(x).numpy()) is None
    assert len(network.folded().graph.steps) == 1


def test_a_matrix_product_along_a_later_axis_is_left_alone() -> None:
    net = """input: "x" input_shape { dim: 2 dim: 3 dim: 6 dim: 5 }
    layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 3 axis: -1
            weight_filler { type: "xavier" } } }
    layer { name: "bn" type: "BatchNorm" bottom: "y" top: "y" }"""
    network = randomized(caffeport.load(net.encode()))
    agree(network, network.folded(), torch.randn(2, 3, 6, 5))


@pytest.mark.parametrize(
    "after",
    [
        'layer { name: "r" type: "ReLU" bottom: "y" top: "r" }',  # somebody else reads what would be folded
        """layer { name: "c2" type: "Convolution" bottom: "y" top: "z" param { name: "w" }
                convolution_param { num_output: 4 kernel_size: 1 } }""",
    ],
    ids=["read twice", "shared weights"],
)
def test_what_others_need_is_left_alone(after: str) -> None:
    shared = 'param { name: "w" }' if "param" in after else ""
    net = f"""input: "x" input_shape {{ dim: 1 dim: 4 dim: 5 dim: 5 }}
    layer {{ name: "c" type: "Convolution" bottom: "x" top: "y" {shared}
            convolution_param {{ num_output: 4 kernel_size: 1
            weight_filler {{ type: "xavier" }} }} }}
    layer {{ name: "bn" type: "BatchNorm" bottom: "y" top: "n" }}
    {after}"""
    network = randomized(caffeport.load(net.encode()))
    folded = network.folded()
    assert len(folded.graph.steps) == len(network.graph.steps)
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        for name, want in network(x).items():
            assert disagreement(folded(x)[name].numpy(), want.numpy()) is None


def test_the_old_network_stays_as_it_is() -> None:
    network = randomized(caffeport.load(SMALL.encode()))
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    folded = network.folded()
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert folded.fc.weight is network.fc.weight  # nothing is held twice that did not change
    assert folded.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert folding.affine(network.relu1, 4) is None


def test_exports_of_the_folded_network(tmp_path: Path) -> None:
    network = randomized(caffeport.load(SMALL.encode()))
    done = caffeport.export_onnx(network, tmp_path / "net.onnx", fold=True)
    assert done.nodes == 7
    x = torch.randn(2, 3, 8, 9)
    with torch.no_grad():
        assert disagreement(run(done.path, {"data": x.numpy()})["prob"], network(x).numpy()) is None
    caffeport.export_source(network.folded(), tmp_path / "net.py")
    text = (tmp_path / "net.py").read_text()
    assert "nn.Conv2d(" in text and "mkldnn" not in text


def test_dropout_goes(tmp_path: Path) -> None:
    network = caffeport.load(DIGITS / "deploy.prototxt", DIGITS / "digits.caffemodel")
    assert {step.layer.spec.type for step in network.folded().graph.steps}.isdisjoint({"Dropout"})
    assert list(network.folded().graph.blobs) == list(network.graph.blobs)


PACKED = """input: "x" input_shape { dim: 2 dim: 4 dim: 9 dim: 8 }
layer { name: "conv" type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 6 kernel_size: 3 pad: 1
        stride: 2 group: 2 weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -1 } } }
layer { name: "relu" type: "ReLU" bottom: "y" top: "y" }
layer { name: "one" type: "Convolution" bottom: "y" top: "z" convolution_param { num_output: 5 kernel_size: 1
        weight_filler { type: "xavier" } } }"""


def agree(network: caffeport.Network, folded: caffeport.Network, x: torch.Tensor) -> None:
    with torch.no_grad():
        assert disagreement(folded(x).numpy(), network(x).numpy()) is None


@pytest.mark.parametrize("shape", [(2, 4, 9, 8), (1, 4, 9, 8), (3, 4, 21, 30), (16, 4, 5, 5)])
def test_packed_convolutions_give_the_same_at_any_size(shape: tuple[int, ...]) -> None:
    network = caffeport.load(PACKED.encode())
    folded = network.folded()
    assert isinstance(folded.conv, PackedConv2d)
    agree(network, folded, torch.randn(2, 4, 9, 8))
    agree(network, folded, torch.randn(shape))
    agree(network, deepcopy(folded), torch.randn(shape))
    assert pickle.loads(pickle.dumps(folded.conv))._packed is None


@pytest.mark.parametrize(
    "name, value",
    [
        ("torch.ops.mkldnn", SimpleNamespace()),
        ("torch._C._nn.mkldnn_reorder_conv2d_weight", lambda weight: weight),
        ("torch._C._nn.mkldnn_reorder_conv2d_weight", lambda weight, *others: weight * 2),
    ],
    ids=["no such operator", "other arguments", "other numbers"],
)
def test_without_the_operators_that_pack(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    monkeypatch.setattr(name, value)
    assert not packed.works()
    monkeypatch.setattr(packed, "WORKS", packed.works())
    network = caffeport.load(PACKED.encode())
    folded = network.folded()
    agree(network, folded, torch.randn(2, 4, 9, 8))
    assert folded.conv._packed is None


def test_looking_for_them_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    assert packed.works() == packed.WORKS
    assert torch.equal(torch.get_rng_state(), before)


def test_source_of_packed_convolutions_is_compared_with_plain_ones(tmp_path: Path) -> None:
    net = """input: "x" input_shape { dim: 1 dim: 5 dim: 17 dim: 17 }
    layer { name: "conv" type: "ConvolutionDepthwise" bottom: "x" top: "y"
            convolution_param { kernel_size: 3 weight_filler { type: "gaussian" std: 1 } } }"""
    assert caffeport.export_source(caffeport.load(net.encode()).folded(), tmp_path / "net.py").path.exists()


def test_packed_weights_follow_their_parameter() -> None:
    network, x = caffeport.load(PACKED.encode()), torch.randn(2, 4, 9, 8)
    folded = network.folded()
    agree(network, folded, x)
    with torch.no_grad():
        network.conv.weight.mul_(2)
        folded.conv.weight.mul_(2)
    agree(network, folded, x)
    state = {name: tensor * 3 for name, tensor in network.state_dict().items()}
    network.load_state_dict(state)
    folded.load_state_dict(state)
    agree(network, folded, x)
    agree(network.double(), folded.double(), x.double())
    agree(network.float(), folded.float(), x)


def test_hooks_and_gradients_see_the_convolution_before_its_relu() -> None:
    folded, x = caffeport.load(PACKED.encode()).folded(), torch.randn(2, 4, 9, 8)
    seen: list[torch.Tensor] = []
    handle = folded.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        hooked = folded(x)
        handle.remove()
        assert disagreement(folded(x).numpy(), hooked.numpy()) is None
    assert seen[0].min() < 0
    x.requires_grad_()
    folded(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_torch_export_of_packed_convolutions() -> None:
    network, x = caffeport.load(PACKED.encode()), torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        got = torch.export.export(network.folded(), (x,)).module()(x)
        assert disagreement(got.numpy(), network(x).numpy()) is None
