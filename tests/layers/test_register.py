"""A layer of the user's own, registered from outside of the package: the README's example, and one with weights."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import caffeport
from caffeport.layers import TYPES, Blob, Layer, register
from tests.conftest import ROOT

NET = """
input: "data" input_shape {{ dim: 2 dim: 3 dim: 4 dim: 5 }}
layer {{ name: "own" type: {type} bottom: "data" top: "own" {rest} }}
"""
DATA = np.linspace(-4, 4, 120, dtype=np.float32).reshape(2, 3, 4, 5)


@pytest.fixture(autouse=True)
def _forget_what_is_registered():
    before = dict(TYPES)
    yield
    TYPES.clear()
    TYPES.update(before)


def net(layer_type: str, rest: str = "") -> bytes:
    return NET.format(type=f'"{layer_type}"', rest=rest).encode()


def test_the_readme_s_example_works():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## A layer of your own")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    with pytest.raises(
        caffeport.UnsupportedLayer, match=r"layer 'own' \(HSwish\).*@caffeport.layers.register\('HSwish'\)"
    ):
        caffeport.load(net("HSwish"))
    exec(compile(code, "README.md", "exec"), {})
    expected = DATA * np.minimum(np.maximum(DATA + 3, 0), 6) / 6
    np.testing.assert_allclose(caffeport.load(net("HSwish"))(DATA).numpy(), expected, atol=1e-6)


class Gain(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain[:, None, None]


def test_a_python_layer_with_weights():
    @register("tools.Gain")
    class GainLayer(Layer):
        def blobs(self, bottoms):
            return [Blob("gain", (bottoms[0][1],))]

        def module(self, bottoms):
            return Gain(bottoms[0][1])

    rest = 'python_param { module: "tools" layer: "Gain" } blobs { shape { dim: 3 } data: 1 data: 2 data: -3 }'
    network = caffeport.load(net("Python", rest))
    assert isinstance(network.own, Gain)
    np.testing.assert_array_equal(network(DATA).detach().numpy(), DATA * np.float32([1, 2, -3])[:, None, None])


def test_a_type_is_described_once():
    with pytest.raises(ValueError, match="'ReLU' is already described by ReLU"):
        register("ReLU")(type("Other", (Layer,), {}))


def test_all_unknown_types_are_named_at_once():
    text = net("Alpha") + b'layer { name: "b" type: "Beta" bottom: "own" top: "b" }'
    with pytest.raises(caffeport.UnsupportedLayer, match=r"(?s)2 layers.*'own' \(Alpha\).*'b' \(Beta\)"):
        caffeport.load(text)
