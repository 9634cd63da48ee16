"""What every layer type promises, on every net for which real Caffe's or a fork's numbers are at hand."""

import json
import random
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import caffeport
from caffeport import CaffeportError, Network
from caffeport.description import describe
from caffeport.layers import Layer, Shape, compatible
from caffeport.layers.data import DataLayer
from caffeport.layers.documentation import Documentation, documentation
from caffeport.layers.training import TrainingOnly
from tests.agreement import arrays, disagreement
from tests.conftest import SHARED, needs_shared

UNJUDGED = (TrainingOnly, DataLayer)  # refused with a word on why, and inputs: neither computes anything
WITHOUT_NET = {  # judged by a plain loop in the file named
    "HDF5Output": "writes a file, computes nothing",
    **dict.fromkeys(("YoloDetectionOutput", "Yolov3DetectionOutput"), "test_detection.py"),
    **dict.fromkeys(("CONVOLUTION3D", "DECONVOLUTION3D", "POOLING3D"), "test_video.py"),
    **dict.fromkeys(("Convolution3D", "Deconvolution3D", "Pooling3D"), "test_video.py"),
}
SORTED = {"DetectionOutput", "Proposal", "rpn.proposal_layer.ProposalLayer"}  # non-maximum suppression: how many rows?
NO_BATCH = {  # independent in Caffe's sense, but axis 0 is not free
    **dict.fromkeys(("scale/000", "scale/011", "bias/005"), "the weights have the batch's axis"),
    "lstm/004": "axis 0 is time",
}
KINKED = {"multinomial_loss/002": "a probability of 0, where the logarithm is cut"}
LIMIT = 4000  # values in the inputs of a net that gradcheck takes on


def cases(**wanted: bool) -> list[Any]:
    """Folders of ../shared/parity and parity_forks as pytest parameters, those whose index entry says so."""
    found = []
    for folder in ("parity", "parity_forks"):
        index = SHARED / folder / "index.json"
        for entry in json.loads(index.read_text()) if index.exists() else []:
            if all(entry.get(key) is value for key, value in wanted.items()):
                found.append(pytest.param(SHARED / folder / entry["case"], id=entry["case"]))
    return found


def case_of(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def weights_of(folder: Path) -> Path | None:
    return folder / "weights.caffemodel" if (folder / "weights.caffemodel").exists() else None


def load(folder: Path) -> Network:
    return caffeport.load(folder / "net.prototxt", weights_of(folder))


def inputs_of(folder: Path) -> dict[str, Tensor]:
    stored = arrays(folder / "reference.npz")
    return {key.removeprefix("in::"): torch.from_numpy(x) for key, x in stored.items() if key.startswith("in::")}


@cache
def nets_by_class() -> dict[type[Layer], list[Path]]:
    """The nets that each class is part of, those of few layers first."""
    by_class: dict[type[Layer], list[tuple[int, Path]]] = {}
    for case in cases():
        (folder,) = case.values
        graph = describe(folder / "net.prototxt", weights_of(folder)).graph
        for layer in [*(step.layer for step in graph.steps), *graph.data_layers]:
            by_class.setdefault(type(layer), []).append((len(graph.steps), folder))
    return {cls: [folder for _, folder in sorted(nets)] for cls, nets in by_class.items()}


def entries() -> list[Any]:
    return [pytest.param(entry, id=f"{entry.layer_type} {entry.variant}".strip()) for entry in documentation()]


# ---- the registry


@pytest.mark.parametrize("entry", entries())
def test_every_type_is_documented(entry: Documentation) -> None:
    assert entry.cls.__doc__, "a class needs a docstring of its own"
    assert entry.summary.endswith(".") and len(entry.summary) < 120
    assert {"Shapes", "PyTorch", "Source"} <= set(entry.sections)
    assert entry.difference
    assert "ONNX" in entry.sections["PyTorch"] or issubclass(entry.cls, UNJUDGED)
    if entry.cls.param_field and not issubclass(entry.cls, UNJUDGED):
        assert "Params" in entry.sections


@needs_shared
@pytest.mark.parametrize("entry", entries())
def test_every_type_has_a_net_of_real_numbers(entry: Documentation) -> None:
    if entry.layer_type not in WITHOUT_NET and not issubclass(entry.cls, UNJUDGED):
        assert nets_by_class().get(entry.cls), f"no net of ../shared has {entry.layer_type} ({entry.cls.__name__})"


@needs_shared
@pytest.mark.parametrize("entry", entries())
def test_bottoms_of_any_shape_are_taken_or_refused(entry: Documentation) -> None:
    """What a layer says of shapes that its author did not think of: an answer or a CaffeportError."""
    pick = random.Random(entry.layer_type)

    def changed(shape: Shape) -> Shape:
        if pick.random() < 0.3:
            return tuple(pick.choice([None, 1, 2, 3, 7]) for _ in range(pick.randint(0, 6)))
        sizes = [pick.choice([None, 1, 50]) if pick.random() < 0.2 else size for size in shape]
        return tuple(sizes[: len(sizes) - (pick.random() < 0.2)])

    for folder in nets_by_class().get(entry.cls, [])[:3]:
        for step in describe(folder / "net.prototxt", weights_of(folder)).graph.steps:
            for _ in range(100 if type(step.layer) is entry.cls else 0):
                shapes = [changed(operand.shape) for operand in step.bottoms]
                try:
                    tops = step.layer.describe(shapes)
                    step.layer.blobs(shapes)
                    step.layer.quirks(shapes)
                    step.layer.multiply_adds(shapes, tops)
                    with torch.device("meta"):
                        step.layer.module(shapes)
                except CaffeportError as error:
                    message = str(error)
                    assert step.key in message


# ---- every net


@pytest.mark.parametrize("folder", cases())
def test_the_shape_rule_says_what_the_module_makes(folder: Path) -> None:
    network, fed = load(folder), inputs_of(folder)
    shapes = network.graph.shapes({value: tuple(fed[value.blob].shape) for value in network.graph.inputs})
    with torch.no_grad():
        blobs = network.blobs(fed)
    for value, shape in shapes.items():
        if value in network.graph.labels:
            continue
        made = tuple(blobs[value.key].shape)
        assert compatible(shape, made), f"{value.key}: rule {shape}, module {made}"
    for value in network.graph.inputs:
        if value not in network.graph.labels:  # MemoryData declares (B) and runs with (B, 1, 1, 1)
            assert compatible(value.shape, tuple(blobs[value.blob].shape))


@pytest.mark.parametrize("folder", cases())
def test_copies_and_states_are_whole(folder: Path) -> None:
    """A deep copy computes the same; with its numbers overwritten and then restored by state_dict, again."""
    network, fed = load(folder), inputs_of(folder)
    copy = deepcopy(network)
    with torch.no_grad():
        for tensor in copy.state_dict().values():
            tensor.fill_(3)
        copy.load_state_dict(network.state_dict())
        want, got = network.blobs(fed), copy.blobs(fed)
    assert all(torch.equal(got[key].nan_to_num(7), value.nan_to_num(7)) for key, value in want.items())


@pytest.mark.parametrize("folder", cases())
def test_no_run_writes_to_its_inputs_or_leaves_a_trace(folder: Path) -> None:
    network, fed = load(folder), inputs_of(folder)
    before = {name: value.clone() for name, value in fed.items()}
    state = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        first, _, second = network.blobs(fed), network(fed), network.blobs(fed)
    assert all(torch.equal(fed[name].nan_to_num(7), value.nan_to_num(7)) for name, value in before.items())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert all(torch.equal(value.nan_to_num(7), second[key].nan_to_num(7)) for key, value in first.items())


@pytest.mark.parametrize("folder", cases(differentiable=True))
def test_float64_agrees_and_stays_float64(folder: Path) -> None:
    network, fed = load(folder), inputs_of(folder)
    with torch.no_grad():
        single = network.blobs(fed)
        double = network.double().blobs({name: value.double() for name, value in fed.items()})
    for key, value in single.items():
        assert double[key].dtype == torch.float64, key
        wrong = disagreement(value.detach().numpy(), double[key].detach().numpy().astype(np.float32))
        assert wrong is None, f"{key}: float32 and float64: {wrong}"


@pytest.mark.parametrize("folder", cases(batch_independent=True))
def test_an_item_is_the_same_alone_and_among_three(folder: Path) -> None:
    if case_of(folder) in NO_BATCH:
        pytest.skip(NO_BATCH[case_of(folder)])
    network, fed = load(folder), inputs_of(folder)
    with torch.no_grad():
        one = network.blobs({name: value[:1] for name, value in fed.items()})
        three = network.blobs({name: value[[0, -1, 0]] for name, value in fed.items()})
    for name in network.outputs:
        rows = len(one[name])  # 1, but for tops that hold several rows of an item
        for part in (three[name][:rows], three[name][-rows:]):
            assert disagreement(part.numpy(), one[name].numpy()) is None, name


@pytest.mark.parametrize("folder", cases(differentiable=True))
def test_gradients_are_those_of_the_function(folder: Path) -> None:
    """gradcheck, by all inputs but markers and labels, and by all parameters."""
    network, fed = load(folder).double(), {name: value.double() for name, value in inputs_of(folder).items()}
    real = [name for name, value in fed.items() if (value != value.round()).any()]
    parameters = dict(network.named_parameters())
    if sum(value.numel() for value in fed.values()) > LIMIT:
        pytest.skip("a larger net of layers that smaller ones have too")
    finite = all(value.isfinite().all() for value in network.blobs(fed).values())
    if not finite or not real or case_of(folder) in KINKED:
        pytest.skip("not finite here, at a kink, or no real input")

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip([*real, *parameters], values, strict=True))
        blobs = torch.func.functional_call(
            network, {key: given[key] for key in parameters}, ({**fed, **{name: given[name] for name in real}},)
        )
        found = blobs.values() if isinstance(blobs, dict) else [blobs]
        return tuple(value for value in found if value.requires_grad)

    leaves = [value.clone().requires_grad_() for value in (*(fed[name] for name in real), *parameters.values())]
    if not outputs(*leaves):
        pytest.skip("no output depends on a real input")
    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True, eps=1e-7, atol=1e-4, rtol=1e-4)


# ---- one net of each type


@needs_shared
@pytest.mark.filterwarnings("ignore:.*get_attr:UserWarning")  # of constants, torch 2.6 and 2.7
@pytest.mark.parametrize("entry", entries())
def test_export(entry: Documentation) -> None:
    """torch.export takes the smallest net with this type."""
    nets = nets_by_class().get(entry.cls, [])
    if not nets or entry.layer_type in SORTED or issubclass(entry.cls, UNJUDGED):
        pytest.skip("no net of numbers, or its rows are only known at run time")
    network, fed = load(nets[0]), inputs_of(nets[0])
    values = tuple(fed[name] for name in network.inputs)
    program = torch.export.export(network, values, strict=False)
    want, got = network(*values), program.module()(*values)
    for a, b in zip(*(list(x.values()) if isinstance(x, dict) else [x] for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
