"""Crop layers without crop_param: the offsets that old forks derived, and taking them."""

import logging

import numpy as np
import pytest
import torch

import caffeport
from caffeport.alignment import bare_crops
from caffeport.description import describe
from caffeport.errors import InputError, ShapeError
from caffeport.store import convert


def conv(name: str, bottom: str, top: str, **param: int) -> str:
    fields = " ".join(f"{key}: {value}" for key, value in {"num_output": 2, **param}.items())
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{top}" '
        f'convolution_param {{ {fields} weight_filler {{ type: "xavier" }} }} }}\n'
    )


def up(name: str, bottom: str, top: str, **param: int) -> str:
    return conv(name, bottom, top, **param).replace("Convolution", "Deconvolution")


def pool(bottom: str, top: str) -> str:
    return (
        f'layer {{ name: "{top}" type: "Pooling" bottom: "{bottom}" top: "{top}" '
        "pooling_param { pool: MAX kernel_size: 2 stride: 2 } }\n"
    )


def crop(bottom: str, reference: str, top: str, param: str = "") -> str:
    return f'layer {{ name: "crop" type: "Crop" bottom: "{bottom}" bottom: "{reference}" top: "{top}" {param} }}\n'


DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 24 dim: 20 } } }\n'
RELU = 'layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }\n'
STEM = DATA + conv("a", "data", "a", kernel_size=3, pad=8) + RELU

NETS = [  # net, offsets by top
    pytest.param(STEM + crop("a", "data", "x"), {"x": (7, 7)}, id="a padded convolution: pad - 1"),
    pytest.param(
        STEM + pool("a", "p") + up("u", "p", "u", kernel_size=4, stride=2) + crop("u", "data", "x"),
        {"x": (8, 8)},
        id="pooling, and deconvolution back",
    ),
    pytest.param(
        STEM + pool("a", "p") + pool("p", "q") + up("u", "q", "u", kernel_size=8, stride=4) + crop("u", "data", "x"),
        {"x": (9, 9)},
        id="two poolings",
    ),
    pytest.param(
        DATA + conv("a", "data", "a", kernel_h=3, kernel_w=5, pad_h=4, pad_w=6) + crop("a", "data", "x"),
        {"x": (3, 4)},
        id="height and width differ",
    ),
    pytest.param(
        DATA + conv("a", "data", "a", kernel_size=3, pad=7, dilation=2) + crop("a", "data", "x"),
        {"x": (5, 5)},
        id="dilation widens the kernel",
    ),
    pytest.param(
        STEM + crop("a", "data", "x", "crop_param { axis: 2 offset: 3 }") + crop("a", "x", "y"),
        {"y": (3, 3)},
        id="over a Crop that states its offset",
    ),
    pytest.param(
        STEM + crop("a", "data", "x") + crop("a", "x", "y"),
        {"x": (7, 7), "y": (7, 7)},
        id="over a Crop whose offset is derived too",
    ),
    pytest.param(DATA + conv("a", "data", "a", kernel_size=3, pad=1) + crop("a", "data", "x"), {}, id="offset 0"),
    pytest.param(STEM + crop("a", "data", "x", "crop_param { }"), {}, id="an empty crop_param means Caffe 1.0"),
]


@pytest.mark.parametrize(("net", "offsets"), NETS)
def test_derived_offsets(net: str, offsets: dict[str, tuple[int, ...]]) -> None:
    crops = bare_crops(describe(net.encode()).graph)
    assert {found.step.tops[0].blob: found.offset for found in crops} == offsets


UNKNOWN = [
    pytest.param(
        DATA
        + 'layer { name: "other" type: "Input" top: "other" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } }'
        + crop("data", "other", "x"),
        "no origin",
        id="two inputs",
    ),
    pytest.param(STEM + pool("a", "p") + crop("a", "p", "x"), "different strides", id="strides"),
    pytest.param(
        DATA + conv("a", "data", "a", kernel_size=2, pad=3) + crop("a", "data", "x"), "would be 2.5", id="half a pixel"
    ),
]


@pytest.mark.parametrize(("net", "why"), UNKNOWN)
def test_what_cannot_be_derived_is_said(net: str, why: str) -> None:
    (warning,) = describe(net.encode()).warnings
    assert "'crop' (top 'x') unknown" in warning and why in warning
    with pytest.raises(ShapeError, match=f"crop=.aligned..*'crop.*{why}"):
        describe(net.encode(), crop="aligned")


HED = (
    STEM + crop("a", "data", "x") + pool("a", "p") + up("u", "p", "u", kernel_size=4, stride=2) + crop("u", "data", "y")
)


def test_caffe_numbers_with_a_warning_by_default_and_aligned_ones_on_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "caffeport"):
        plain = caffeport.load(HED.encode())
    assert "'crop' (top 'x') 7, 'crop#2' (top 'y') 8" in caplog.text and '"aligned"' in caplog.text
    caplog.clear()
    aligned = caffeport.load(HED.encode(), crop="aligned")
    assert "aligned" not in caplog.text
    data = torch.randn(1, 3, 24, 20)
    with torch.no_grad():
        first, second = plain.blobs(data), aligned.blobs(data)
    assert torch.equal(first["x"], first["a"][:, :, :24, :20])
    assert torch.equal(second["x"], second["a"][:, :, 7:31, 7:27])
    assert torch.equal(second["y"], second["u"][:, :, 8:32, 8:28])


def test_convert_writes_the_aligned_offsets_down(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    done = convert(HED.encode(), None, tmp_path / "hed", crop="aligned")
    text = (tmp_path / "hed/deploy.prototxt").read_text(encoding="utf-8")
    assert text.count("offset: 7") == 2 and text.count("offset: 8") == 2
    data = torch.randn(1, 3, 24, 20)
    again = caffeport.load(tmp_path / "hed")
    with torch.no_grad():
        np.testing.assert_array_equal(again.blobs(data)["y"], done.network.blobs(data)["y"])


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(InputError, match="crop is 'old', expected 'caffe' or 'aligned'"):
        describe(HED.encode(), crop="old")
