"""Gradients against real Caffe's backward pass: every net of ../shared/grads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import caffeport
from caffeport import Network
from tests.conftest import SHARED

GRADS = SHARED / "grads"
REL_L2 = 1e-4  # float32, both sides
FAULTS = {  # nets whose backward pass in Caffe is not the derivative of its own forward pass
    "mvn/002": "MVN's backward formula leaves eps out of the variance term",
    "lstm_unit/000": "with a marker c, LSTMUnit's forget gate takes (c f)(1 - c f) for its derivative, not c f (1 - f)",
    "in_place/000": "layers before the last of an in-place chain see the last one's numbers as their own",
    "in_place/001": "layers before the last of an in-place chain see the last one's numbers as their own",
}


def cases(derivative: bool) -> list[str]:
    index = json.loads((GRADS / "index.json").read_text()) if GRADS.is_dir() else []
    return [entry["case"] for entry in index if entry["derivative"] is derivative]


class Case:
    """A net, what was put in, and Caffe's gradients."""

    def __init__(self, name: str) -> None:
        folder = GRADS / name
        weights = folder / "weights.caffemodel"
        self.net: Network = caffeport.load(folder / "net.prototxt", weights if weights.exists() else None)
        with np.load(folder / "reference.npz") as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        self.inputs = {name: value.requires_grad_() for name, value in self.part("in")}

    def part(self, prefix: str) -> list[tuple[str, Tensor]]:
        """Arrays called `prefix::NAME`, by NAME."""
        return [(k.partition("::")[2], v) for k, v in self.arrays.items() if k.startswith(f"{prefix}::")]

    def loss(self, blobs: dict[str, Tensor]) -> Tensor:
        """What Caffe's backward pass began with: the outputs, weighted by their diffs."""
        return torch.stack([(blobs[name] * diff.to(blobs[name])).sum() for name, diff in self.part("diff")]).sum()

    def parameter(self, layer: str, index: int) -> Tensor | None:
        """The learned array, or None for one that takes no gradient."""
        step = next(step for step in self.net.graph.steps if step.key == layer)
        key, index = step.owners[index]
        owner = next(step for step in self.net.graph.steps if step.key == key)
        found = dict(self.net.get_submodule(self.net.names[key]).named_parameters())
        return found.get(owner.blobs[index].name)

    def gradients(self) -> list[tuple[str, Tensor, Tensor]]:
        """(name, ours, Caffe's) of each input and each learned array; ours zero where nothing arrives."""
        blobs = self.net.blobs(self.inputs)
        loss = self.loss(blobs)

        def ours(of: Tensor | None, like: Tensor) -> Tensor:
            found = None if of is None else torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True)[0]
            return torch.zeros_like(like) if found is None else found.reshape(like.shape)

        found = [(name, ours(self.inputs.get(name, blobs[name]), theirs), theirs) for name, theirs in self.part("din")]
        for key, theirs in self.part("dparam"):
            layer, _, index = key.rpartition("::")
            found.append((key, ours(self.parameter(layer, int(index)), theirs), theirs))
        return found


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative L2 distance; where theirs is zero, the length of ours."""
    length = theirs.double().norm().item()
    return (ours.double() - theirs.double()).norm().item() / (length or 1.0)


@pytest.mark.parametrize("name", cases(derivative=True))
def test_autograd_gives_caffes_gradients(name: str) -> None:
    gradients = Case(name).gradients()
    assert gradients
    for blob, ours, theirs in gradients:
        error = distance(ours, theirs)
        assert error <= REL_L2, f"{name}: gradient of {blob}: relative L2 {error:.1e}: {ours} for {theirs}"


@pytest.mark.parametrize("name", cases(derivative=False))
def test_autograd_gives_the_derivative_where_caffe_does_not(name: str) -> None:
    """Ours agrees with central differences of the forward pass, in float64; Caffe's does not, for a known reason."""
    assert name in FAULTS
    worst = max(distance(ours, theirs) for _, ours, theirs in Case(name).gradients())
    assert worst > 10 * REL_L2, f"{name}: Caffe's gradient is right; {FAULTS[name]}?"

    double = Case(name)
    net = double.net.double()
    parameters = dict(net.named_parameters())
    fed = {name: double.inputs[name].detach().double().requires_grad_() for name, _ in double.part("din")}
    markers = {name: value.detach().double() for name, value in double.inputs.items() if name not in fed}

    def loss(*values: Tensor) -> Tensor:
        given = dict(zip([*fed, *parameters], values, strict=True))
        state = {name: given[name] for name in parameters}
        inputs = {name: given[name] for name in fed} | markers
        outputs = torch.func.functional_call(net, state, (inputs,))
        return double.loss(outputs if isinstance(outputs, dict) else {net.outputs[0]: outputs})

    assert torch.autograd.gradcheck(loss, (*fed.values(), *parameters.values()), atol=1e-6, rtol=1e-5)


def test_every_net_was_found() -> None:
    folders = {str(path.parent.relative_to(GRADS)) for path in Path(GRADS).glob("*/*/net.prototxt")}
    assert folders == {*cases(True), *cases(False)}
    assert set(FAULTS) == set(cases(False))
