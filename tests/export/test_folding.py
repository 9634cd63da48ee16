"""Folded networks: fewer layers, the same function."""

from pathlib import Path

import pytest
import torch

import caffeport
from caffeport import folding
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


def test_dropout_goes(tmp_path: Path) -> None:
    network = caffeport.load(DIGITS / "deploy.prototxt", DIGITS / "digits.caffemodel")
    assert {step.layer.spec.type for step in network.folded().graph.steps}.isdisjoint({"Dropout"})
    assert list(network.folded().graph.blobs) == list(network.graph.blobs)
