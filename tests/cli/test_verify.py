"""`caffeport verify`, `dump-script` and `convert --reference`."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from caffeport.cli import main
from caffeport.verification import Report
from tests.conftest import DIGITS

NET = [str(DIGITS / "deploy.prototxt"), str(DIGITS / "digits.caffemodel")]
REFERENCE = str(DIGITS / "reference.npz")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """The reference with one layer's numbers scaled."""
    with np.load(REFERENCE) as held:
        arrays = {key: held[key] for key in held.files}
    arrays["conv2::conv2"] = arrays["conv2::conv2"] * np.float32(1.25)
    np.savez(tmp_path / "wrong.npz", **arrays)
    return tmp_path / "wrong.npz"


def test_a_right_net() -> None:
    done = run("verify", *NET, "--reference", REFERENCE)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert sum(line.startswith("ok") for line in lines) == 10
    assert lines[-3] == "passed: 10 of 10 layers judged alone"
    assert "4 of 4 layers' weights equal the file's" in lines[-2]
    assert lines[-1] == "beside reference.npz, on cpu, ieee"


def test_a_wrong_layer_is_shown_in_full_and_the_status_is_1(wrong: Path) -> None:
    done = run("verify", *NET, "--reference", wrong)
    assert done.exit_code == 1
    assert "conv2 (Convolution), top conv2: differs" in done.output
    assert "probable cause: a constant factor: the reference is ours times 1.25" in done.output
    assert "failed: first at layer 'conv2'" in done.output


def test_fail_fast(wrong: Path) -> None:
    done = run("verify", *NET, "--reference", wrong, "--fail-fast")
    assert done.exit_code == 1
    assert "pool2" not in done.output


def test_json_and_html(tmp_path: Path) -> None:
    done = run("verify", *NET, "--reference", REFERENCE, "--html", tmp_path / "r.html", "--json", tmp_path / "r.json")
    assert done.exit_code == 0
    assert Report.read(tmp_path / "r.json").passed
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    printed = run("verify", *NET, "--reference", REFERENCE, "--json", "-")
    assert json.loads(printed.stdout)["passed"] is True


def test_precisions_and_limits() -> None:
    done = run("verify", *NET, "--reference", REFERENCE, "--precision", "ieee,tf32, bf16", "--limits", "10,20")
    assert done.exit_code == 0
    assert "tf32 (emulated)" in done.output
    assert "(limit 10)" in done.output
    assert run("verify", *NET, "--reference", REFERENCE, "--limits", "1e-9,1e-9").exit_code == 1


def test_inputs_beside_the_reference(tmp_path: Path) -> None:
    with np.load(REFERENCE) as held:
        np.savez(tmp_path / "fed.npz", data=held["in::data"])
        np.savez(tmp_path / "rest.npz", **{key: held[key] for key in held.files if key not in ("in::data", "data")})
    assert run("verify", *NET, "--reference", tmp_path / "rest.npz", "--inputs", tmp_path / "fed.npz").exit_code == 0
    refused = run("verify", *NET, "--reference", tmp_path / "rest.npz")
    assert refused.exit_code == 2
    assert "does not hold the net's input 'data'" in refused.output


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--reference", "nowhere.npz"], "nowhere.npz: no such file"),
        (["--reference", "caffe:/nowhere/python"], "cannot be started"),
        (["--reference", REFERENCE, "--precision", "int8"], "precision 'int8'"),
        (["--reference", REFERENCE, "--limits", "16"], "expected two numbers"),
        (["--reference", REFERENCE, "--limits", "-1,32"], "expected two numbers above 0"),
        (["--reference", REFERENCE, "--limits", "16,nan"], "expected two numbers above 0"),
        (["--reference", REFERENCE, "--limits", "inf,32"], "expected two numbers above 0"),
        (["--reference", REFERENCE, "--device", "warp"], "device 'warp'"),
        (["--reference", REFERENCE, "--html", "/nowhere/r.html"], "no such folder"),
        ([], "--reference"),
    ],
)
def test_bad_use_ends_with_2_and_a_sentence(arguments: list[str], words: str) -> None:
    done = run("verify", *NET, *arguments)
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output


def test_what_run_writes_is_a_reference(tmp_path: Path) -> None:
    with np.load(REFERENCE) as held:
        np.savez(tmp_path / "fed.npz", data=held["in::data"])
    assert run("run", *NET, "--inputs", tmp_path / "fed.npz", "-o", tmp_path / "ran.npz").exit_code == 0
    assert run("verify", *NET, "--reference", tmp_path / "ran.npz").exit_code == 0


def test_convert_verifies_before_it_writes(tmp_path: Path, wrong: Path) -> None:
    done = run("convert", *NET, "-o", tmp_path / "net", "--reference", REFERENCE)
    assert done.exit_code == 0
    assert "verification passed: 10 of 10 layers judged alone" in done.output
    assert Report.read(tmp_path / "net" / "report.json").passed
    assert (tmp_path / "net" / "report.html").is_file()
    assert run("verify", tmp_path / "net", "--reference", REFERENCE).exit_code == 0
    failed = run("convert", *NET, "-o", tmp_path / "other", "--reference", wrong)
    assert failed.exit_code == 1
    assert "nothing was written" in failed.output
    assert not (tmp_path / "other").exists()


def test_the_script_is_printed_or_written(tmp_path: Path) -> None:
    printed = run("dump-script")
    assert printed.exit_code == 0
    compile(printed.output, "record_caffe.py", "exec")
    assert run("dump-script", "-o", tmp_path / "record.py").exit_code == 0
    assert (tmp_path / "record.py").read_text() == printed.output
