import json

import numpy as np
import pytest

from tests.cli.conftest import NET, WEIGHTS
from tests.conftest import DIGITS

PARAMETERS = {"conv1": 200, "conv2": 5_792, "ip1": 32_832, "ip2": 650}
MULTIPLY_ADDS = {  # windows times kernel values times output channels
    "conv1": 8 * 8 * 9 * 1 * 20,
    "conv2": 8 * 8 * 9 * 20 * 32,
    "ip1": 512 * 64,
    "ip2": 64 * 10,
}


def test_the_table(caffeport):
    result = caffeport("inspect", NET, WEIGHTS)
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert "V2 text" in lines[0]
    assert "V2 binary with 39,474 stored values in 8 float32 arrays" in lines[1]
    assert lines[2:4] == ["input data: 1 x 1 x 8 x 8", "output prob: 1 x 10"]
    assert lines[4].split() == ["layer", "type", "bottoms", "tops", "parameters", "multiply-adds"]
    assert lines[7].split("  ")[0] == "conv2"
    assert "conv2 (1 x 32 x 8 x 8)" in lines[7] and lines[7].endswith("5,792        368,640")
    assert lines[-1] == "10 layers, 39,474 parameters, 413,568 multiply-adds"


def test_json(caffeport):
    facts = json.loads(caffeport("inspect", NET, WEIGHTS, "--json").stdout)
    assert facts["name"] == "digits"
    assert [file["form"] for file in facts["files"]] == ["V2 text", "V2 binary"]
    assert facts["files"][1]["stored_types"] == {"float32": 8}
    assert facts["inputs"] == {"data": [1, 1, 8, 8]}
    assert facts["outputs"] == {"prob": [1, 10]}
    layers = {layer["name"]: layer for layer in facts["layers"]}
    assert layers["pool2"]["tops"] == {"pool2": [1, 32, 4, 4]}
    assert layers["relu1"]["bottoms"] == {"conv1": [1, 20, 8, 8]}
    assert {name: layer["parameters"] for name, layer in layers.items() if layer["parameters"]} == PARAMETERS
    assert {name: layer["multiply_adds"] for name, layer in layers.items() if layer["parameters"]} == MULTIPLY_ADDS
    assert facts["parameters"] == 39_474
    assert facts["multiply_adds"] == sum(MULTIPLY_ADDS.values())


def test_input_shapes_of_ones_own(caffeport):
    facts = json.loads(caffeport("inspect", NET, "--input", "data=5,1,8,8", "--json").stdout)
    assert facts["outputs"] == {"prob": [5, 10]}
    assert facts["multiply_adds"] == 5 * sum(MULTIPLY_ADDS.values())


def test_an_open_dimension_stays_open(caffeport):
    result = caffeport("inspect", NET, "--input", "data=?,1,8,8")
    assert "output prob: ? x 10" in result.stdout
    assert "multiply-adds unknown: shapes are open" in result.stdout


@pytest.mark.parametrize("name, form", [("digits.caffemodel", "V2 binary"), ("digits_v1.caffemodel", "V1 binary")])
def test_weights_alone_show_their_net(caffeport, name, form):
    result = caffeport("inspect", DIGITS / name)
    assert result.exit_code == 0
    assert form in result.stdout
    assert "10 layers, 39,474 parameters" in result.stdout


def test_hdf5_alone_shows_its_arrays(caffeport):
    result = caffeport("inspect", DIGITS / "digits.caffemodel.h5")
    assert result.exit_code == 0
    assert "HDF5 weights with 39,474 stored values" in result.stdout
    assert "32 x 20 x 3 x 3, 32" in result.stdout
    facts = json.loads(caffeport("inspect", DIGITS / "digits.caffemodel.h5", "--json").stdout)
    assert facts["layers"][0] == {"name": "conv1", "blobs": [[20, 1, 3, 3], [20]]}


def test_a_mean(caffeport, tmp_path):
    path = tmp_path / "mean.npy"
    np.save(path, np.zeros((3, 4, 5), np.float32))
    assert "3 x 4 x 5" in caffeport("inspect", path).stdout
    assert json.loads(caffeport("inspect", path, "--json").stdout)["shape"] == [3, 4, 5]


def test_a_solver_is_no_net(caffeport):
    result = caffeport("inspect", DIGITS / "solver.prototxt")
    assert result.exit_code == 2
    assert "this is a solver, not a net; its net is 'train_test.prototxt'" in result.stderr


def test_what_cannot_be_built_is_listed_before_the_error(caffeport, tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text('input: "data" layer { name: "odd" type: "NoSuchLayer" bottom: "data" top: "out" }')
    result = caffeport("inspect", path)
    assert result.exit_code == 2
    assert "NoSuchLayer" in result.stdout
    assert "layer 'odd' (NoSuchLayer)" in result.stderr


def test_names_cannot_reach_the_terminal(caffeport, tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(
        r'layer { name: "in" type: "Input" top: "in" input_param { shape { dim: 1 dim: 2 } } }'
        r' layer { name: "\033[2J[bold]x" type: "ReLU" bottom: "in" top: "out" }'
    )
    result = caffeport("inspect", path)
    assert "\033" not in result.stdout
    assert r"\x1b[2J[bold]x" in result.stdout


def test_rules(caffeport):
    facts = json.loads(caffeport("inspect", DIGITS / "train_test.prototxt", "--phase", "train", "--json").stdout)
    assert "accuracy" not in {layer["name"] for layer in facts["layers"]}


def test_a_folder_that_caffeport_did_not_write(caffeport, tmp_path):
    result = caffeport("inspect", tmp_path)
    assert result.exit_code == 2
    assert "expected a Caffe file, or a folder that `caffeport convert` wrote" in result.stderr


def test_a_converted_folder_takes_other_shapes_but_no_other_rules(caffeport, tmp_path):
    folder = tmp_path / "digits"
    assert caffeport("convert", NET, WEIGHTS, "-o", folder, "--no-onnx").exit_code == 0
    facts = json.loads(caffeport("inspect", folder, "--input", "data=5,1,8,8", "--json").stdout)
    assert facts["outputs"] == {"prob": [5, 10]}
    result = caffeport("inspect", folder, "--phase", "TRAIN", "--stage", "deploy")
    assert result.exit_code == 2
    assert "phase, stages cannot be asked of a converted folder" in result.stderr
