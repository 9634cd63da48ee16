"""Work on inner blobs: starting there, labels left out, and gradients without hooks."""

import pytest
import torch

import caffeport
from caffeport.errors import InputError

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 1 dim: 8 dim: 8 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 2 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool1" top: "fc"
        inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy" }
"""


@pytest.fixture
def network() -> caffeport.Network:
    return caffeport.load(NET.encode())


@pytest.fixture
def data() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_run_can_start_at_an_inner_blob(network, data) -> None:
    pool1 = network.blobs({"data": data})["pool1"]
    changed = network.blobs({"pool1": pool1 * 2})
    torch.testing.assert_close(changed["fc"], network.get_submodule("fc")((pool1 * 2).flatten(1)))
    assert torch.equal(changed["pool1"], pool1 * 2)
    assert not {"data", "conv1", "conv1::conv1"} & changed.keys()


def test_a_blob_with_layers_in_place_starts_after_them_and_its_writer_before_them(network, data) -> None:
    conv1 = network.blobs({"data": data})["conv1::conv1"]
    assert conv1.min() < 0
    before, after = network.blobs({"conv1::conv1": conv1}), network.blobs({"conv1": conv1})
    assert torch.equal(before["conv1"], conv1.relu()) and torch.equal(after["conv1"], conv1)
    assert torch.equal(before["pool1"], network.blobs({"data": data})["pool1"])


def test_an_unknown_blob_names_the_inputs(network, data) -> None:
    with pytest.raises(InputError, match=r"takes 'data', 'label'.* not an input: 'pool9'"):
        network.blobs({"pool9": data})
    with pytest.raises(InputError, match=r"not an input: 'relu1'; 'relu1' is a layer, which writes 'relu1::conv1'"):
        network.blobs({"relu1": data})


def test_without_labels_what_judges_is_left_out(network, data) -> None:
    values = network.blobs({"data": data})
    assert "prob" in values and not {"label", "loss", "accuracy"} & values.keys()
    every = network.blobs({"data": data, "label": torch.tensor([1.0, 2.0])})
    assert {"loss", "accuracy"} <= every.keys() and torch.equal(every["prob"], values["prob"])
    with pytest.raises(InputError, match=r"not given: 'data'"):
        network.blobs({"label": torch.tensor([1.0, 2.0])})
    with pytest.raises(InputError, match=r"not given: 'label'"):
        network({"data": data})  # its outputs are the loss and the accuracy


def test_a_net_cut_after_a_loss_needs_its_label(network, data) -> None:
    with pytest.raises(InputError, match=r"not given: 'label'"):
        network.truncate("loss").blobs({"data": data})


LABELS = [  # layers after two inputs, a and b; which of the two blobs() can do without
    pytest.param('layer { name: "l" type: "EuclideanLoss" bottom: "a" bottom: "b" top: "l" }', set(), id="only a loss"),
    pytest.param(
        'layer { name: "s" type: "Silence" bottom: "b" } layer { name: "p" type: "Power" bottom: "a" top: "p" }',
        {"b"},
        id="Silence",
    ),
    pytest.param(
        'layer { name: "s" type: "Slice" bottom: "b" top: "b1" top: "b2" slice_param { axis: 1 } } '
        'layer { name: "p" type: "InnerProduct" bottom: "a" top: "p" inner_product_param { num_output: 1 } } '
        'layer { name: "l" type: "EuclideanLoss" bottom: "p" bottom: "b1" top: "l" } '
        'layer { name: "m" type: "EuclideanLoss" bottom: "p" bottom: "b2" top: "m" }',
        {"b"},
        id="labels that are sliced first",
    ),
    pytest.param(
        'layer { name: "e" type: "Eltwise" bottom: "a" bottom: "b" top: "e" }', set(), id="a layer that is no judge"
    ),
]


@pytest.mark.parametrize(("layers", "spared"), LABELS)
def test_which_inputs_are_labels(layers: str, spared: set[str]) -> None:
    inputs = "".join(
        f'layer {{ name: "{n}" type: "Input" top: "{n}" input_param {{ shape {{ dim: 3 dim: 2 }} }} }} ' for n in "ab"
    )
    graph = caffeport.load((inputs + layers).encode()).graph
    assert {value.blob for value in graph.judged} == spared


def test_grad_cam_needs_no_hooks(network, data) -> None:
    blobs = network.blobs({"data": data})
    (grad,) = torch.autograd.grad(blobs["fc"][0, 1], blobs["conv1"])
    weight = network.get_parameter("fc.weight")[1].reshape(3, 3, 3)
    # The gradient goes to the largest value of each pooling window, weighted as fc weights that window.
    torch.testing.assert_close(grad[0].sum(), weight.sum())
    assert not grad[1].any()
    heat = (grad.mean((2, 3), keepdim=True) * blobs["conv1"]).sum(1).relu()
    assert heat.shape == (2, 6, 6)


def test_a_gradient_reaches_the_input_past_in_place_layers(network, data) -> None:
    data.requires_grad_(True)
    network.blobs({"data": data})["pool1"].norm().backward()
    assert data.grad is not None and data.grad.abs().sum() > 0


def test_no_graph_is_kept_where_gradients_are_off(network, data) -> None:
    with torch.no_grad():
        assert not any(value.requires_grad for value in network.blobs({"data": data}).values())
