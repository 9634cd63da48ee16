"""Options that several commands share: --stage, --reshape, --crop."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from tests.test_alignment import HED
from tests.test_description import STAGED
from tests.test_surgery import FC, INPUT, binary, conv

Cli = Callable[..., Result]


@pytest.fixture
def surgery(tmp_path: Path) -> tuple[Path, Path]:
    net, weights = tmp_path / "net.prototxt", tmp_path / "fc.caffemodel"
    net.write_text(INPUT + conv("fc6-conv"), encoding="utf-8")
    weights.write_bytes(binary(fc6=FC))
    return net, weights


def test_reshape(caffeport: Cli, surgery: tuple[Path, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", data=np.ones((1, 2, 3, 4), np.float32))
    command = ("run", *surgery, "--inputs", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    refused = caffeport(*command)
    assert refused.exit_code == 2 and "--reshape fc6=fc6-conv" in refused.stderr
    assert caffeport(*command, "--reshape", "fc6=fc6-conv").exit_code == 0
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(out["fc6-conv"].ravel(), FC[0].sum(1) + FC[1], rtol=1e-4, atol=1e-5)


def test_inspect_hints_at_a_reshape(caffeport: Cli, surgery: tuple[Path, Path]) -> None:
    assert "the counts agree: reshape={'fc6': 'fc6-conv'}" in caffeport("inspect", *surgery).stderr
    assert "warning" not in caffeport("inspect", *surgery, "--reshape", "fc6=fc6-conv").stderr


def test_crop(caffeport: Cli, tmp_path: Path) -> None:
    net = tmp_path / "hed.prototxt"
    net.write_text(HED, encoding="utf-8")
    assert "'crop#2' (top 'y') 8" in caffeport("inspect", net).stderr
    done = caffeport("convert", net, "-o", tmp_path / "hed", "--crop", "aligned")
    assert done.exit_code == 0 and "Crop" not in done.stderr
    assert (tmp_path / "hed/deploy.prototxt").read_text(encoding="utf-8").count("offset: 8") == 2


def test_stage(caffeport: Cli, tmp_path: Path) -> None:
    net = tmp_path / "all.prototxt"
    net.write_text(STAGED, encoding="utf-8")
    refused = caffeport("inspect", net)
    assert refused.exit_code == 2 and "stages: deploy, train" in refused.stderr
    shown = caffeport("inspect", net, "--stage", "deploy")
    assert shown.exit_code == 0 and "output prob: 2 x 5" in shown.stdout


def test_a_shape_for_a_blob_that_the_net_lacks_is_warned_of(caffeport, tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(STAGED)
    result = caffeport("inspect", path, "--stage", "deploy", "--input", "dta=2,3,4,4")
    assert result.exit_code == 0
    assert "input 'dta': a shape is given for it" in result.stderr
