"""MemNet's exact topology with 227 MB of seeded weights, against real Caffe's numbers."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import caffeport
from caffeport import Network, WeightsError
from caffeport.layers import Array
from tests.agreement import disagreement
from tests.conftest import SHARED

MEMNET = SHARED / "nets" / "memnet"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memnet") / "memnet.caffemodel"
    subprocess.run([sys.executable, MEMNET / "make_weights.py", path], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def reference() -> Iterator[dict[str, Array]]:
    with np.load(MEMNET / "reference.npz") as arrays:
        yield {key: arrays[key] for key in arrays.files}


def assert_caffes(network: Network, reference: dict[str, Array]) -> None:
    with torch.no_grad():
        blobs = network.blobs({next(iter(network.inputs)): reference["in::data"]})
    for key, want in reference.items():
        if not key.startswith("in::"):  # the early blobs hold the first picture only
            assert disagreement(blobs[key].numpy()[: len(want)], want) is None, key


@pytest.mark.parametrize("net", ["deploy.prototxt", "deploy_v2.prototxt"])
def test_every_layer_is_caffes(net: str, weights: Path, reference: dict[str, Array]) -> None:
    assert_caffes(caffeport.load(MEMNET / net, weights), reference)


def test_weights_alone(weights: Path, reference: dict[str, Array]) -> None:
    assert_caffes(caffeport.load(weights), reference)


def test_relu_and_pooling_of_equal_inputs_are_equal_to_the_bit(weights: Path, reference: dict[str, Array]) -> None:
    """Layers that only select values, each fed with Caffe's own bottom."""
    network = caffeport.load(MEMNET / "deploy.prototxt", weights)
    fed = {f"relu{i}": f"conv{i}::conv{i}" for i in range(1, 6)}
    fed |= {f"relu{i}": f"fc{i}::fc{i}" for i in (6, 7)}
    fed |= {f"pool{i}": f"relu{i}::conv{i}" for i in (1, 2, 5)}
    for layer, bottom in fed.items():
        (want,) = (value for key, value in reference.items() if key.startswith(f"{layer}::"))
        got = network.get_submodule(layer)(torch.from_numpy(reference[bottom].copy())).numpy()
        shared = min(len(got), len(want))
        assert np.array_equal(got[:shared], want[:shared]), layer


def test_the_rebuild_does_not_take_these_weights(weights: Path) -> None:
    """Its conv1, conv2 and conv3 have other shapes: all three are named, nothing is reshaped."""
    with pytest.raises(WeightsError) as error:
        caffeport.load(MEMNET / "deploy_needell.prototxt", weights)
    assert all(f"'{layer}'" in str(error.value) for layer in ("conv1", "conv2", "conv3"))
    assert "96 x 3 x 11 x 11" in str(error.value) and "48 x 3 x 11 x 11" in str(error.value)
