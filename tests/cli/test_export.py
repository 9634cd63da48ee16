"""`caffeport export`."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.conftest import DIGITS

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


def test_source(caffeport, tmp_path: Path) -> None:
    result = caffeport("export", *NET, "-o", tmp_path / "digits.py")
    assert result.exit_code == 0, result.output
    assert "class " in (tmp_path / "digits.py").read_text()


def test_pt2(caffeport, tmp_path: Path) -> None:
    result = caffeport("export", *NET, "-o", tmp_path / "digits.pt2")
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
