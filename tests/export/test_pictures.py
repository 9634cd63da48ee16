"""Exports that take pictures: the net's input to the bit, and no other picture than was meant."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import caffeport
from caffeport.export.proof import run
from caffeport.preprocess import Preprocessing

MEAN = np.random.default_rng(1).uniform(0, 255, (3, 12, 15)).astype(np.float32)


def network(*shape: int) -> caffeport.Network:
    sizes = " ".join(f"dim: {n}" for n in shape)
    return caffeport.load(
        f"""layer {{ name: "in" type: "Input" top: "data" input_param {{ shape {{ {sizes} }} }} }}
        layer {{ name: "relu" type: "ReLU" bottom: "data" top: "relu" }}""".encode()
    )


def pictures(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, height, width, channels), np.uint8)


WAYS = [  # how, height and width of the pictures
    pytest.param({}, (8, 9), id="blue first"),
    pytest.param({"bgr": False, "mean": 3.0}, (8, 9), id="red first, one mean"),
    pytest.param({"mean": (104.0, 117.0, 123.0), "scale": 0.017}, (8, 9), id="mean values and scale"),
    pytest.param({"crop": (8, 9), "bgr": False}, (8, 9), id="a crop of all"),
    pytest.param({"crop": (8, 9), "mean": (104.0, 117.0, 123.0)}, (13, 14), id="a crop with odd rests"),
    pytest.param({"crop": (8, 9), "mean": MEAN, "scale": 1 / 3}, (12, 15), id="mean picture, cropped"),
    pytest.param({"mean": MEAN[:, 2:10, 3:12]}, (8, 9), id="mean picture of the net's size"),
    pytest.param({"mean": (1.0, 2.0, 3.0), "crop": (8, 9), "transposed": True}, (20, 10), id="columns first"),
    pytest.param({"mean": MEAN, "crop": (8, 9), "transposed": True}, (15, 12), id="columns first, mean picture"),
]


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("how, size", WAYS)
def test_the_nets_input_is_that_of_preprocessing_outside_to_the_bit(
    how: dict[str, Any], size: tuple[int, int], layout: str, tmp_path: Path
) -> None:
    prepare, x = Preprocessing(**how), pictures(*size)
    options = {"preprocess": prepare, "layout": layout, "outputs": ["data", "relu"]}
    done = caffeport.export_onnx(network(2, 3, 8, 9), tmp_path / "net.onnx", **options)
    got = run(done.path, {"image": x if layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
    want = prepare(x)
    assert want.shape == (2, 3, 8, 9)
    np.testing.assert_array_equal(got["data#2"], want)
    np.testing.assert_array_equal(got["relu"], np.maximum(want, 0))


def test_grey_pictures(tmp_path: Path) -> None:
    prepare, x = Preprocessing(mean=33.0, crop=(8, 9)), pictures(10, 10, 1)
    done = caffeport.export_onnx(network(2, 1, 8, 9), tmp_path / "net.onnx", preprocess=prepare)
    np.testing.assert_array_equal(run(done.path, {"image": x})["relu"], np.maximum(prepare(x), 0))
    assert done.inputs == {"image": ("N", "height", "width", 1)}


def test_wide_crops_are_proved_with_pictures_that_are_large_enough(tmp_path: Path) -> None:
    prepare = Preprocessing(crop=(4, 40))
    assert caffeport.export_onnx(network(2, 3, 4, 40), tmp_path / "net.onnx", preprocess=prepare).report


# ---- pictures that were not meant


@pytest.mark.parametrize("size", [(7, 20), (20, 8), (1, 1), (4, 4)])
def test_a_picture_smaller_than_the_crop_is_an_error_that_says_so(size: tuple[int, int], tmp_path: Path) -> None:
    done = caffeport.export_onnx(
        network(2, 3, 8, 9), tmp_path / "net.onnx", preprocess=Preprocessing(crop=(8, 9)), prove=False
    )
    with pytest.raises(Exception, match="preprocessing/crop to 8 x 9"):
        run(done.path, {"image": pictures(*size)})


@pytest.mark.parametrize(
    "image, words",
    [
        pytest.param(pictures(12, 14), "Got: 14 Expected: 15", id="size"),
        pytest.param(np.ascontiguousarray(pictures(12, 15).transpose(0, 3, 1, 2)), "Expected: 12", id="axes"),
        pytest.param(pictures(12, 15).astype(np.float32), "expected: .tensor.uint8", id="floats"),
        pytest.param(pictures(12, 15, 1), "Got: 1 Expected: 3", id="grey"),
    ],
)
def test_a_mean_picture_fixes_the_size(image: np.ndarray, words: str, tmp_path: Path) -> None:
    prepare = Preprocessing(MEAN, crop=(8, 9))
    done = caffeport.export_onnx(network(2, 3, 8, 9), tmp_path / "net.onnx", preprocess=prepare, prove=False)
    assert done.inputs == {"image": ("N", 12, 15, 3)}
    with pytest.raises(Exception, match=words):
        run(done.path, {"image": image})


@pytest.mark.parametrize(
    "how, words",
    [
        pytest.param({"mean": (1.0, 2.0)}, "mean of 2 values for 3 channels", id="mean values"),
        pytest.param({"mean": MEAN[:1], "crop": (8, 9)}, r"mean of shape \(1, 12, 15\)", id="grey mean"),
        pytest.param({"mean": MEAN[0]}, r"mean of shape \(12, 15\)", id="two axes"),
        pytest.param({"mean": MEAN[None]}, r"mean of shape \(1, 3, 12, 15\)", id="a clip's mean"),
        pytest.param({"mean": MEAN}, "mean is 12 x 15, the net takes 8 x 9; give a crop", id="no crop"),
        pytest.param(
            {"mean": MEAN[:, :7], "crop": (8, 9)}, "mean is 7 x 15, smaller than the crop of 8 x 9", id="small"
        ),
        pytest.param({"crop": (9, 8)}, "the crop is 9 x 8, the net takes 8 x 9", id="other crop"),
    ],
)
def test_what_does_not_fit_the_net(how: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(caffeport.InputError, match=words):
        caffeport.export_onnx(network(2, 3, 8, 9), tmp_path / "net.onnx", preprocess=Preprocessing(**how))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "shape, layout, words",
    [((1, 2, 8, 9), "NHWC", "has 2 channels"), ((1, 3), "NHWC", "0 inputs of 4 axes"), ((1, 3, 8, 9), "HWC", "'HWC'")],
)
def test_nets_and_layouts_that_take_no_pictures(
    shape: tuple[int, ...], layout: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(caffeport.InputError, match=words):
        caffeport.export_onnx(network(*shape), tmp_path / "net.onnx", preprocess=Preprocessing(), layout=layout)


# ---- nets that leave sizes open


def test_the_mean_says_what_the_net_leaves_open(tmp_path: Path) -> None:
    opened = network(2, -1, -1, -1)
    done = caffeport.export_onnx(opened, tmp_path / "a.onnx", preprocess=Preprocessing(MEAN))
    assert done.inputs == {"image": ("N", 12, 15, 3)} and done.outputs == {"relu": ("N", 3, 12, 15)}
    done = caffeport.export_onnx(opened, tmp_path / "b.onnx", preprocess=Preprocessing((1.0, 2.0, 3.0)))
    assert done.inputs == {"image": ("N", "H", "W", 3)}
    with pytest.raises(caffeport.InputError, match="does not say how many channels"):
        caffeport.export_onnx(opened, tmp_path / "c.onnx", preprocess=Preprocessing())


# ---- what the file says


def test_the_metadata_hold_the_preprocessing(tmp_path: Path) -> None:
    prepare = Preprocessing((103.94, 116.78, 123.68), 0.017, (8, 9))
    done = caffeport.export_onnx(network(2, 3, 8, 9), tmp_path / "net.onnx", preprocess=prepare, layout="NCHW")
    model = onnx.load(done.path)
    told = json.loads({fact.key: fact.value for fact in model.metadata_props}["preprocessing"])
    assert told == {
        "input": "uint8 RGB NCHW",
        "mean": [103.94, 116.78, 123.68],
        "scale": 0.017,
        "crop": [8, 9],
        "bgr": True,
        "transposed": False,
    }
    assert done.preprocessing == told | {"crop": (8, 9)}
    assert "RGB pictures" in model.graph.input[0].doc_string


def test_of_a_mean_picture_the_metadata_hold_the_shape(tmp_path: Path) -> None:
    prepare = Preprocessing(MEAN, crop=(8, 9))
    done = caffeport.export_onnx(network(2, 3, 8, 9), tmp_path / "net.onnx", preprocess=prepare)
    assert done.preprocessing is not None
    assert done.preprocessing["mean"] == {"shape": (3, 12, 15)}
    assert caffeport.export_onnx(network(2, 3, 8, 9), tmp_path / "net.onnx").preprocessing is None
