import json

import numpy as np

import caffeport as api
from tests.agreement import arrays
from tests.cli.conftest import NET, WEIGHTS
from tests.conftest import DIGITS


def test_a_folder_that_gives_caffes_answers(caffeport, inputs, tmp_path):
    folder = tmp_path / "digits"
    result = caffeport("convert", NET, WEIGHTS, "-o", folder)
    assert result.exit_code == 0
    for path in folder.iterdir():
        assert f"{path}: {path.stat().st_size:,} bytes" in result.stdout
    answers = api.load(folder)(arrays(inputs)["data"]).argmax(1)
    assert answers.tolist() == arrays(DIGITS / "predictions.npz")["argmax"][:8].tolist()


def test_json(caffeport, tmp_path):
    facts = json.loads(caffeport("convert", NET, WEIGHTS, "-o", tmp_path / "digits", "--json").stdout)
    assert facts["folder"] == str(tmp_path / "digits")
    assert "model.safetensors" in facts["bytes"]
    assert all(seconds >= 0 for seconds in facts["seconds"].values())


def test_an_existing_folder_is_kept_unless_forced(caffeport, tmp_path):
    folder = tmp_path / "digits"
    assert caffeport("convert", NET, WEIGHTS, "-o", folder).exit_code == 0
    before = (folder / "caffeport.json").read_bytes()
    refused = caffeport("convert", WEIGHTS, "-o", folder)
    assert refused.exit_code == 2 and "--force" in refused.stderr
    assert (folder / "caffeport.json").read_bytes() == before
    forced = caffeport("convert", WEIGHTS, "-o", folder, "--force")
    assert forced.exit_code == 0
    assert "warning: layer 'loss' (SoftmaxWithLoss) became Softmax" in forced.stderr
    assert (folder / "caffeport.json").read_bytes() != before


def test_a_net_without_weights_is_converted_with_a_warning(caffeport, tmp_path):
    result = caffeport("convert", NET, "-o", tmp_path / "digits", "--no-onnx")
    assert result.exit_code == 0
    assert "no weights were given: 4 layer(s) keep their fillers" in result.stderr


def test_missing_weights_stand_in_the_json(caffeport, tmp_path):
    facts = json.loads(caffeport("convert", NET, "-o", tmp_path / "digits", "--no-onnx", "--json").stdout)
    assert facts["warnings"] == ["no weights were given: 4 layer(s) keep their fillers, which are untrained"]


def test_a_converted_folder_needs_no_conversion(caffeport, tmp_path):
    assert caffeport("convert", NET, WEIGHTS, "-o", tmp_path / "digits", "--no-onnx").exit_code == 0
    result = caffeport("convert", tmp_path / "digits", "-o", tmp_path / "again")
    assert result.exit_code == 2
    assert "a folder that `caffeport convert` wrote" in result.stderr and "take it as it is" in result.stderr


def test_a_mean_is_kept(caffeport, tmp_path):
    mean = tmp_path / "mean.npy"
    np.save(mean, np.full((1, 8, 8), 3, np.float32))
    assert caffeport("convert", NET, WEIGHTS, "-o", tmp_path / "digits", "--mean", mean).exit_code == 0
    assert np.array_equal(np.load(tmp_path / "digits/mean.npy"), np.load(mean))


def test_a_converted_folder_can_be_inspected_and_run(caffeport, inputs, tmp_path):
    folder = tmp_path / "digits"
    caffeport("convert", NET, WEIGHTS, "-o", folder)
    assert "39,474 parameters" in caffeport("inspect", folder).stdout
    assert caffeport("run", folder, "--inputs", inputs, "-o", tmp_path / "out.npz").exit_code == 0


def test_nothing_is_left_of_a_failure(caffeport, tmp_path):
    result = caffeport("convert", NET, DIGITS / "solver.prototxt", "-o", tmp_path / "digits")
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []
