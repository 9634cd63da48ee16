import errno
import json

import numpy as np
import pytest

from tests.agreement import arrays
from tests.cli.conftest import NET, WEIGHTS
from tests.conftest import DIGITS

REL_L2 = 1e-5  # float32


def test_all_blobs_as_caffe_computed_them(caffeport, inputs, tmp_path):
    out = tmp_path / "out.npz"
    result = caffeport("run", NET, WEIGHTS, "--inputs", inputs, "-o", out)
    assert result.exit_code == 0
    blobs, reference = arrays(out), arrays(DIGITS / "reference.npz")
    del reference["in::data"]
    assert set(blobs) >= set(reference)
    assert f"{len(blobs)} blobs" in result.stdout
    for name, wanted in reference.items():
        assert blobs[name].dtype == np.float32 and blobs[name].shape == wanted.shape
        error = np.linalg.norm(blobs[name] - wanted) / np.linalg.norm(wanted)
        assert error <= REL_L2, f"{name}: relative L2 {error:.1e}"
    assert list(tmp_path.glob(".*")) == []


def test_until(caffeport, inputs, tmp_path):
    out = tmp_path / "out.npz"
    result = caffeport("run", NET, WEIGHTS, "--inputs", inputs, "-o", out, "--until", "pool2", "--json")
    shapes = json.loads(result.stdout)
    assert shapes["pool2"] == [8, 32, 4, 4]
    assert not any(name.startswith("ip1") for name in shapes)
    assert {name: list(blob.shape) for name, blob in arrays(out).items()} == shapes


@pytest.mark.parametrize(
    "arguments, message",
    [
        pytest.param(["--until", "fc7"], "no blob 'fc7'", id="unknown blob"),
        pytest.param(["--device", "abacus"], "device 'abacus'", id="unknown device"),
        pytest.param(["--input", "data=1,1,12,12"], "ip1", id="shape that the weights refuse"),
    ],
)
def test_bad_arguments(caffeport, inputs, tmp_path, arguments, message):
    out = tmp_path / "out.npz"
    result = caffeport("run", NET, WEIGHTS, "--inputs", inputs, "-o", out, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


def test_inputs_of_other_names(caffeport, tmp_path):
    result = caffeport("run", NET, WEIGHTS, "--inputs", DIGITS / "predictions.npz", "-o", tmp_path / "out.npz")
    assert result.exit_code == 2
    assert "the net takes 'data'" in result.stderr


def save_text(path):
    path.write_text("data 1 2 3")


def save_single(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3, np.float32))


def save_objects(path):
    np.savez(path, data=np.array([{}], dtype=object))


def save_strings(path):
    np.savez(path, data=np.array(["a"]))


def save_cut(path):
    np.savez(path, data=np.zeros((8, 1, 8, 8), np.float32))
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("save", [save_text, save_single, save_objects, save_strings, save_cut])
def test_files_that_are_no_arrays(caffeport, tmp_path, save):
    path = tmp_path / "in.npz"
    save(path)
    result = caffeport("run", NET, WEIGHTS, "--inputs", path, "-o", tmp_path / "out.npz")
    assert result.exit_code == 2
    assert "in.npz" in result.stderr


def test_a_net_without_weights_is_run_with_a_warning(caffeport, inputs, tmp_path):
    result = caffeport("run", NET, "--inputs", inputs, "-o", tmp_path / "out.npz")
    assert result.exit_code == 0
    assert result.stderr == "warning: no weights were given: 4 layer(s) keep their fillers, which are untrained\n"


@pytest.mark.parametrize("command", ["run", "verify", "export"])
def test_what_a_converted_folder_cannot_do(caffeport, inputs, tmp_path, command):
    folder = tmp_path / "digits"
    assert caffeport("convert", NET, WEIGHTS, "-o", folder, "--no-onnx").exit_code == 0
    more = {
        "run": ("--inputs", inputs, "-o", tmp_path / "out.npz"),
        "verify": ("--reference", inputs),
        "export": ("-o", tmp_path / "out.py"),
    }[command]
    result = caffeport(command, folder, *more, "--phase", "TRAIN", "--input", "data=3,1,8,8")
    assert result.exit_code == 2
    assert "phase, inputs cannot be asked of a converted folder" in result.stderr


def test_a_place_that_cannot_be_written(caffeport, inputs, tmp_path, monkeypatch):
    def refuse(*_, **names):
        raise PermissionError(errno.EACCES, "Permission denied", f"{names['dir']}/{names['prefix']}xyz")

    monkeypatch.setattr("caffeport.files.tempfile.mkdtemp", refuse)
    result = caffeport("run", NET, WEIGHTS, "--inputs", inputs, "-o", tmp_path / "out.npz")
    assert result.exit_code == 2
    assert f"{tmp_path / 'out.npz'}: cannot be written: Permission denied" in result.stderr


def test_a_missing_folder(caffeport, inputs, tmp_path):
    result = caffeport("run", NET, WEIGHTS, "--inputs", inputs, "-o", tmp_path / "no/out.npz")
    assert result.exit_code == 2
    assert "no such folder" in result.stderr


def test_what_a_reference_was_fed(caffeport, tmp_path):
    """A file with in::BLOB gives these, and not its other arrays."""
    result = caffeport("run", NET, WEIGHTS, "--inputs", DIGITS / "reference.npz", "-o", tmp_path / "out.npz")
    assert result.exit_code == 0, result.output
    with np.load(DIGITS / "reference.npz") as wanted, np.load(tmp_path / "out.npz") as got:
        assert np.allclose(got["prob"], wanted["prob::prob"], atol=1e-6)
