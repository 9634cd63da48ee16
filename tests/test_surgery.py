"""Arrays under other names and shapes than the net's: `reshape`, and the hints that name it."""

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import caffeport
from caffeport.description import describe
from caffeport.errors import InputError, WeightsError
from tests.formats.wire_writer import message, packed, shape, text

INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 3 dim: 4 } } }\n'
RANDOM = np.random.default_rng(0)
FC = RANDOM.standard_normal((5, 24)).astype(np.float32), RANDOM.standard_normal(5).astype(np.float32)


def conv(name: str, outputs: int = 5) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "data" top: "{name}" '
        f"convolution_param {{ num_output: {outputs} kernel_h: 3 kernel_w: 4 }} }}\n"
    )


def fc(name: str, bottom: str = "data") -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" '
        "inner_product_param { num_output: 5 } }\n"
    )


def binary(**layers: tuple[np.ndarray, ...]) -> bytes:
    """A V2 .caffemodel with these arrays."""
    entries = []
    for name, arrays in layers.items():
        blobs = [message(7, packed(5, array.ravel()), shape(*array.shape)) for array in arrays]
        entries.append(message(100, text(1, name), text(2, "InnerProduct"), *blobs))
    return b"".join(entries)


def hdf5(path: Path, **layers: tuple[np.ndarray, ...]) -> Path:
    with h5py.File(path, "w") as file:
        for name, arrays in layers.items():
            for i, array in enumerate(arrays):
                file.create_dataset(f"data/{name}/{i}", data=array)
    return path


@pytest.fixture(params=["binary", "hdf5"])
def weights(request: pytest.FixtureRequest, tmp_path: Path):
    """A maker of weights files, in both forms."""
    return binary if request.param == "binary" else lambda **layers: hdf5(tmp_path / "w.caffemodel.h5", **layers)


@pytest.mark.parametrize(
    ("stored", "layer", "reshape"),
    [
        pytest.param("fc6", "fc6", ["fc6"], id="same name"),
        pytest.param("fc6", "fc6-conv", {"fc6": "fc6-conv"}, id="rename, as a mapping"),
        pytest.param("fc6", "fc6-conv", ["fc6=fc6-conv"], id="rename, as on the command line"),
        pytest.param("fc6", "fc6-conv", ["fc6-conv"], id="the only arrays that agree"),
        pytest.param("a=b", "a=b", ["a=b"], id="a name with an equals sign"),
    ],
)
def test_fully_connected_numbers_in_a_convolution(weights, stored: str, layer: str, reshape: object) -> None:
    network = caffeport.load((INPUT + conv(layer)).encode(), weights(**{stored: FC}), reshape=reshape)
    x = torch.randn(1, 2, 3, 4)
    wanted = x.flatten(1) @ torch.from_numpy(FC[0]).T + torch.from_numpy(FC[1])
    torch.testing.assert_close(network(x).flatten(1), wanted)


def test_the_error_says_that_the_counts_agree_and_what_to_pass(weights) -> None:
    with pytest.raises(WeightsError, match=r"5 x 24 .* wants 5 x 2 x 3 x 4; the counts agree: reshape=\['fc6'\]"):
        caffeport.load((INPUT + conv("fc6")).encode(), weights(fc6=FC))
    with pytest.raises(WeightsError, match=r"fc6-conv.* the counts agree: reshape=\{'fc6': 'fc6-conv'\} \(--reshape"):
        caffeport.load((INPUT + conv("fc6-conv")).encode(), weights(fc6=FC))


def test_another_count_is_refused_with_and_without_reshape(weights) -> None:
    net = (INPUT + conv("fc6", outputs=6)).encode()
    with pytest.raises(WeightsError, match=r"5 x 24 .* wants 6 x 2 x 3 x 4$"):
        caffeport.load(net, weights(fc6=FC))
    with pytest.raises(WeightsError, match=r"5 x 24 .* wants 6 x 2 x 3 x 4$"):
        caffeport.load(net, weights(fc6=FC), reshape=["fc6"])


def test_a_renamed_layer_is_guessed_and_can_be_taken(caplog: pytest.LogCaptureFixture) -> None:
    net, stored = (INPUT + fc("fc8")).encode(), binary(fc8_apple=FC)
    with pytest.raises(WeightsError, match=r"'fc8_apple' \(5 x 24, 5\) have its shapes: renamed\?"):
        caffeport.load(net, stored)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "caffeport"):
        caffeport.load(net, stored, strict=False)
    assert "renamed? reshape={'fc8_apple': 'fc8'} (--reshape fc8_apple=fc8)" in caplog.text
    network = caffeport.load(net, stored, reshape={"fc8_apple": "fc8"})
    assert np.array_equal(network.get_parameter("fc8.weight").detach(), FC[0])


def test_the_arrays_that_were_taken_count_as_used() -> None:
    description = describe((INPUT + conv("fc6-conv")).encode(), binary(fc6=FC), reshape={"fc6": "fc6-conv"})
    assert description.warnings == []


def test_one_stored_layer_may_serve_two() -> None:
    net = (INPUT + fc("fc6") + conv("fc6-conv")).encode()
    network = caffeport.load(net, binary(fc6=FC), reshape={"fc6": "fc6-conv"})
    assert np.array_equal(network.get_parameter("fc6.weight").detach(), FC[0])
    assert np.array_equal(network.get_parameter("fc6-conv.weight").detach(), FC[0].reshape(5, 2, 3, 4))


@pytest.mark.parametrize(
    ("reshape", "error", "message"),
    [
        pytest.param("fc6", InputError, "the string 'fc6', expected a list", id="a string"),
        pytest.param(["fc6-conf"], InputError, "no layer 'fc6-conf'; did you mean 'fc6-conv'", id="unknown in the net"),
        pytest.param({"fc66": "fc6-conv"}, WeightsError, "no arrays of a layer 'fc66'; did you mean 'fc6'", id="file"),
        pytest.param(["fc6-conv"], WeightsError, "agree in number: 'fc6', 'fc7'; say which", id="two could be meant"),
    ],
)
def test_what_reshape_cannot_do(reshape: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        caffeport.load((INPUT + conv("fc6-conv")).encode(), binary(fc6=FC, fc7=FC), reshape=reshape)


def test_reshape_needs_weights() -> None:
    with pytest.raises(InputError, match=r"holds no arrays; give the weights too"):
        caffeport.load((INPUT + conv("fc6-conv")).encode(), reshape=["fc6-conv"])
