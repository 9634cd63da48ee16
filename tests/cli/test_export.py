"""`caffeport export`."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.conftest import DIGITS, ROOT

NET = (DIGITS / "deploy.prototxt", DIGITS / "digits.caffemodel")


def test_onnx(caffeport, tmp_path: Path) -> None:
    result = caffeport("export", *NET, "-o", tmp_path / "digits.onnx", "--fold", "--batch", "4", "--all-blobs")
    assert result.exit_code == 0, result.output
    assert "passed" in result.stdout
    model = onnx.load(tmp_path / "digits.onnx")
    assert [output.name for output in model.graph.output] == ["conv1", "conv2", "pool2", "ip1", "ip2", "prob"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


def test_pictures(caffeport, tmp_path: Path) -> None:
    options = ("--with-preprocessing", "--mean", "3", "--scale", "0.0625", "--layout", "NCHW", "--outputs", "ip2")
    result = caffeport("export", *NET, "-o", tmp_path / "digits.onnx", *options)
    assert result.exit_code == 0, result.output
    model = onnx.load(tmp_path / "digits.onnx")
    assert [value.name for value in model.graph.input] == ["image"]


def test_the_mean_of_a_converted_folder_is_used(caffeport, tmp_path: Path) -> None:
    np.save(tmp_path / "mean.npy", np.full((1, 8, 8), 3, np.float32))
    folder = tmp_path / "digits"
    assert caffeport("convert", *NET, "-o", folder, "--no-onnx", "--mean", tmp_path / "mean.npy").exit_code == 0
    result = caffeport("export", folder, "-o", tmp_path / "digits.onnx", "--with-preprocessing")
    assert result.exit_code == 0, result.output
    assert "Sub" in [node.op_type for node in onnx.load(tmp_path / "digits.onnx").graph.node]


TRAINED = """
layer { name: "d" type: "Data" top: "data" top: "label" transform_param { %s } data_param { batch_size: 4 } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


@pytest.mark.parametrize("converted", [False, True])
def test_the_nets_own_preprocessing_is_used_and_options_override_it(caffeport, tmp_path: Path, converted: bool) -> None:
    net, output = tmp_path / "train.prototxt", tmp_path / "net.onnx"
    net.write_text(TRAINED % "mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.017 crop_size: 8 mirror: true")
    if converted:
        assert caffeport("convert", net, "-o", tmp_path / "folder", "--no-onnx").exit_code == 0
    place = (tmp_path / "folder",) if converted else (net, "--deploy")
    result = caffeport("export", *place, "-o", output, "--with-preprocessing")
    assert result.exit_code == 0, result.output
    assert "preprocessing: input uint8 RGB NHWC, mean [104.0, 117.0, 123.0], scale 0.017, crop (8, 8)" in result.stdout
    told = json.loads({fact.key: fact.value for fact in onnx.load(output).metadata_props}["preprocessing"])
    assert told["mean"] == [104, 117, 123] and told["scale"] == 0.017 and told["crop"] == [8, 8] and told["bgr"]

    options = ("--mean", "1.5", "--scale", "1", "--no-centre-crop", "--rgb", "--json")
    result = caffeport("export", *place, "-o", output, "--with-preprocessing", *options)
    told = json.loads(result.stdout)["preprocessing"]
    assert told["mean"] == [1.5] and told["scale"] == 1 and told["crop"] is None and not told["bgr"]


def test_a_mean_file_that_is_not_given_is_named(caffeport, tmp_path: Path) -> None:
    net = tmp_path / "train.prototxt"
    net.write_text(TRAINED % 'mean_file: "ilsvrc.binaryproto" crop_size: 8')
    shape = ("--input", "data=1,3,8,8")
    result = caffeport("export", net, "--deploy", "-o", tmp_path / "x.onnx", "--with-preprocessing", *shape)
    assert result.exit_code == 2
    assert "mean_file is 'ilsvrc.binaryproto': give that file as the mean (--mean FILE)" in result.output


def test_a_centre_crop_to_an_open_size(caffeport, tmp_path: Path) -> None:
    net = tmp_path / "open.prototxt"
    net.write_text(
        'input: "data" input_shape { dim: 1 dim: 3 dim: -1 dim: -1 } '
        'layer { name: "relu" type: "ReLU" bottom: "data" top: "relu" }'
    )
    options = ("--with-preprocessing", "--mean", "0", "--centre-crop")
    result = caffeport("export", net, "-o", tmp_path / "x.onnx", *options)
    assert result.exit_code == 2
    assert "the net does not say its input's size; give it: --input data=N,C,H,W" in result.output
    options += ("--input", "data=1,3,8,9")
    assert caffeport("export", net, "-o", tmp_path / "x.onnx", *options).exit_code == 0
    sizes = onnx.load(tmp_path / "x.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == ["N", "height", "width", 3]


def test_source(caffeport, tmp_path: Path) -> None:
    result = caffeport("export", *NET, "-o", tmp_path / "digits.py")
    assert result.exit_code == 0, result.output
    assert "class " in (tmp_path / "digits.py").read_text()


@pytest.mark.parametrize("fold", [(), ("--fold",)])
def test_pt2(caffeport, tmp_path: Path, fold: tuple[str, ...]) -> None:
    result = caffeport("export", *NET, "-o", tmp_path / "digits.pt2", *fold)
    assert result.exit_code == 0, result.output
    program = torch.export.load(tmp_path / "digits.pt2").module()
    assert program(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


@pytest.mark.parametrize(
    "name, facts",
    [
        ("digits.onnx", {"opset": 20, "outputs": {"prob": ["N", 10]}, "notes": []}),
        ("digits.py", {"class": "Digits", "outputs": ["prob"]}),
        ("digits.pt2", {"outputs": ["prob"]}),
    ],
)
def test_json(caffeport, tmp_path: Path, name: str, facts: dict[str, object]) -> None:
    result = caffeport("export", *NET, "-o", tmp_path / name, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert {key: told[key] for key in facts} == facts
    assert told["path"] == str(tmp_path / name)
    assert told["bytes"] == (tmp_path / name).stat().st_size
    assert told["seconds"] > 0
    assert told.get("verdict", "passed").startswith("passed")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("-o", "digits.txt"), "must end in .onnx, .py or .pt2"),
        (("-o", "nowhere/digits.onnx"), "no such folder"),
        (("-o", "digits.onnx", "--outputs", "nope"), "no blob 'nope'"),
        (("-o", "digits.onnx", "--mean", "3"), "belong to --with-preprocessing"),
        (("-o", "digits.onnx", "--no-centre-crop"), "belong to --with-preprocessing"),
        (
            ("-o", "digits.onnx", "--with-preprocessing"),
            "give the mean (--mean FILE or B,G,R; 0 for none) or the scale",
        ),
        (("-o", "digits.onnx", "--with-preprocessing", "--mean", "1,2,3"), "a mean of 3 values for 1 channels"),
        (("-o", "digits.onnx", "--with-preprocessing", "--scale", "nan"), "expected a finite number"),
        (("-o", "digits.onnx", "--batch", "-3"), "expected a number from 1 on"),
        (("-o", "digits.py", "--all-blobs"), "are for .onnx only"),
    ],
)
def test_refusals(caffeport, tmp_path: Path, monkeypatch, arguments: tuple[str, ...], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = caffeport("export", *NET, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ("export", *NET, "-o", "net.onnx"),
        ("export", *NET, "-o", "net.pt2"),
        ("convert", *NET, "-o", "net"),
        ("run", *NET, "--inputs", DIGITS / "reference.npz", "-o", "out.npz"),
        ("verify", *NET, "--reference", DIGITS / "reference.npz", "--html", "report.html"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_written_to_its_end(tmp_path: Path, command: tuple[str | Path, ...]) -> None:
    """The system allows files of 16 KiB only, as if the disk were full then; the net has 150 KB of weights."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "caffeport", *command], capture_output=True, text=True, check=False,
        preexec_fn=_short_files, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: ") and "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def _short_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))
