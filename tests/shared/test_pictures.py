"""Preprocessing inside of an ONNX file and outside, on the shared pictures, against what real Caffe recorded.

Resizing is outside of both, so that the net's input is equal to the bit; what follows is as close as two float32
runtimes are (`disagreement`). pycaffe resizes to floats, so that there pixels differ by their rounding.
"""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffeport
from caffeport.export.proof import run
from caffeport.formats import read_mean
from caffeport.layers import Array
from caffeport.preprocess import Preprocessing
from tests.agreement import arrays, disagreement
from tests.conftest import SHARED

FOLDER, MEMNET = SHARED / "nets" / "preprocess", SHARED / "nets" / "memnet"
NAMES = sorted(path.stem for path in (FOLDER / "pictures").glob("*"))


@pytest.fixture(scope="module")
def recorded() -> dict[str, Array]:
    return arrays(FOLDER / "opencv.npz")


@pytest.fixture(scope="module")
def pictures(recorded: dict[str, Array]) -> dict[str, Array]:
    """uint8 RGB; as OpenCV read them where that is recorded, since JPEG libraries differ."""
    cv2 = pytest.importorskip("cv2")
    paths = sorted((FOLDER / "pictures").glob("*"))
    read = {path.stem: recorded.get(f"{path.stem}/imread", cv2.imread(str(path))) for path in paths}
    return {name: np.ascontiguousarray(picture[..., ::-1]) for name, picture in read.items()}


@pytest.fixture(scope="module")
def squares(pictures: dict[str, Array], recorded: dict[str, Array]) -> Array:
    """(13, 256, 256, 3) uint8 RGB, resized as the recorded pipeline did; checked against what that has recorded."""
    cv2 = pytest.importorskip("cv2")
    made = np.stack([cv2.resize(picture, (256, 256)) for picture in pictures.values()])
    for name, picture in zip(pictures, made, strict=True):
        key = f"{name}/resize256_u8"
        part = picture if key in recorded else picture[::4, ::4]
        np.testing.assert_array_equal(part[..., ::-1], recorded.get(key, recorded.get(f"{key}_sub4")), err_msg=name)
    return made


def fed(pictures: Array, layout: str) -> Array:
    return pictures if layout == "NHWC" else np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))


# ---- every picture at its own size


CONVOLUTION = """input: "data" input_shape { dim: 1 dim: 3 dim: 5 dim: 3 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }"""


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    "how, spatial",
    [
        pytest.param({"mean": (104.0, 117.0, 123.0), "scale": 0.017}, "dynamic", id="mean values and scale"),
        pytest.param({"mean": 127.5, "scale": 1 / 127.5, "bgr": False}, "dynamic", id="red first"),
        pytest.param({"mean": (104.0, 117.0, 123.0), "crop": (5, 3)}, None, id="a crop that the smallest one fits"),
    ],
)
def test_pictures_of_any_size(
    how: dict[str, Any], spatial: str | None, layout: str, pictures: dict[str, Array], tmp_path: Path
) -> None:
    network, prepare = caffeport.load(CONVOLUTION.encode()), Preprocessing(**how)
    options = {"spatial": spatial, "preprocess": prepare, "layout": layout, "outputs": ["data", "conv"]}
    path = caffeport.export_onnx(network, tmp_path / "net.onnx", **options).path
    for name, picture in pictures.items():
        got = run(path, {"image": fed(picture[None], layout)})
        want = prepare(picture)
        np.testing.assert_array_equal(got["data#2"], want, err_msg=name)
        with torch.no_grad():
            assert disagreement(got["conv"], network(want).numpy()) is None, name


# ---- MemNet: the recorded scores of real Caffe


@pytest.fixture(scope="module")
def memnet(tmp_path_factory: pytest.TempPathFactory) -> caffeport.Network:
    path = tmp_path_factory.mktemp("memnet") / "memnet.caffemodel"
    subprocess.run([sys.executable, MEMNET / "make_weights.py", path], check=True, capture_output=True)
    network = caffeport.load(MEMNET / "deploy.prototxt", path)
    path.unlink()
    return network


def mean() -> Array:
    return read_mean(MEMNET / "mean.binaryproto").array


RECIPES = [  # what scores.npz calls it, how, layout
    pytest.param("center14", lambda: {"mean": mean()}, "NHWC", id="mean picture"),
    pytest.param("center14", lambda: {"mean": mean()}, "NCHW", id="mean picture, channels first"),
    pytest.param("variant/mean_pixel", lambda: {"mean": mean().mean((1, 2))}, "NHWC", id="mean values"),
    pytest.param("variant/no_mean", dict, "NCHW", id="no mean"),
    pytest.param("variant/rgb", lambda: {"mean": mean(), "bgr": False}, "NHWC", id="red first"),
]


@pytest.mark.slow
@pytest.mark.parametrize("key, how, layout", RECIPES)
def test_memnet_on_every_picture(
    key: str, how: Any, layout: str, memnet: caffeport.Network, squares: Array, tmp_path: Path
) -> None:
    prepare = Preprocessing(crop=(227, 227), **how())
    options = {"preprocess": prepare, "layout": layout, "outputs": ["data", "fc8-euclidean"], "prove": False}
    path = caffeport.export_onnx(memnet, tmp_path / "memnet.onnx", **options).path
    got, want = run(path, {"image": fed(squares, layout)}), prepare(squares)
    np.testing.assert_array_equal(got["data#2"], want)
    scores = got["fc8-euclidean"][:, 0]
    with torch.no_grad():
        outside = memnet(want).numpy()[:, 0]
    caffes = arrays(FOLDER / "scores.npz")[key]
    for name, score, ours, caffe in zip(NAMES, scores, outside, caffes, strict=True):
        assert disagreement(score[None], ours[None]) is None, name
        assert disagreement(score[None], caffe[None]) is None, name
    path.unlink()


# ---- what Caffe's own data layer and pycaffe's Transformer gave


IMAGE_DATA = [  # SHA-256 of what real Caffe's ImageData layer gives for 12_exact256 in TEST phase, float32
    pytest.param(
        {"mean": "file", "crop": (227, 227)},
        "56acad492ecb7c76f4d27909cb72742e8b508084d5413ffdb3d7108dde3a6b3d",
        id="mean_file, crop_size 227",
    ),
    pytest.param(
        {"mean": "file", "crop": (200, 200), "scale": 0.017},
        "b9a622f364ecae015938039faff4ff1fad0c16fb7c7a824fd3d6ab44e9188750",
        id="mean_file, crop_size 200, scale",
    ),
    pytest.param(
        {"mean": (104.0, 117.0, 123.0), "crop": (101, 101), "scale": 0.017},
        "1fab113231bd4551893841f94a694cb0a74497564ecab5843b5099d81d96108d",
        id="mean_value three times, crop_size 101, scale",
    ),
    pytest.param(
        {"mean": (128.0,), "scale": 0.0078125},
        "e812b27e2b6b246016a8ac520bd019f9a7dabe7967cddaf690fcd57467d3f4d2",
        id="mean_value once, scale",
    ),
]


@pytest.mark.parametrize("how, digest", IMAGE_DATA)
def test_caffes_own_data_layer_gives_the_same_bits(
    how: dict[str, Any], digest: str, pictures: dict[str, Array]
) -> None:
    prepare = Preprocessing(**how | ({"mean": mean()} if how["mean"] == "file" else {}))
    assert hashlib.sha256(prepare(pictures["12_exact256"]).astype("<f4").tobytes()).hexdigest() == digest


TRANSFORMER = [  # what pycaffe.npz calls it, how
    ("A_swap_raw255_meanpixel", {"mean": (104.0, 117.0, 123.0)}),
    ("B_A_and_input_scale_0.017", {"mean": (104.0, 117.0, 123.0), "scale": 0.017}),
    ("C_swap_raw255_meanimage", {"mean": "mean_image"}),
    ("D_raw255_only", {"bgr": False}),
]


@pytest.mark.parametrize("key, how", TRANSFORMER)
def test_pycaffes_transformer_after_its_resize(key: str, how: dict[str, Any], tmp_path: Path) -> None:
    """Its resized picture is float; as uint8 it loses half a step of a pixel at most, times the scale."""
    data = arrays(FOLDER / "pycaffe.npz")
    resized = data["transformer/E_nothing_but_transpose"].transpose(1, 2, 0)[None]
    picture = np.rint(resized * np.float32(255)).astype(np.uint8)
    how = how | ({"mean": data[f"transformer/{how['mean']}"]} if isinstance(how.get("mean"), str) else {})
    prepare = Preprocessing(**how)
    network = caffeport.load(CONVOLUTION.replace("dim: 5 dim: 3", "dim: 37 dim: 61").encode())
    path = caffeport.export_onnx(network, tmp_path / "net.onnx", preprocess=prepare, outputs=["data", "conv"]).path
    got, want = run(path, {"image": picture})["data#2"][0], data[f"transformer/{key}"]
    assert np.abs(got - want).max() <= (0.5 + 1e-4) * prepare.scale
