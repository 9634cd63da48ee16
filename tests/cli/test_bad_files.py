"""Bad files on the command line: status 2, a message, no traceback, and nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.test_graph import DATA, FIT_NO_BLOB, layer
from tests.test_loading import GIANTS, NO_MODELS, SMALL, small

GOOD = small().SerializeToString()
NETS = NO_MODELS | {name: text.encode() for name, text in GIANTS.items()}
NETS |= {f"no blob: {name}": (DATA + text).encode() for name, text in FIT_NO_BLOB.items()}
NETS |= {
    "unknown type": (DATA + layer("a\x1b[31m", "FooBar", "data", "y")).encode(),
    "missing bottom": layer("r", "ReLU", "nope", "y").encode(),
    "cut text": SMALL.encode()[:-30],
    "deep text": b"layer {" * 5000,
    "unknown filler": SMALL.replace("kernel_size: 1", "kernel_size: 1 weight_filler { type: 'x' }").encode(),
}
WEIGHTS = NO_MODELS | {
    "cut": GOOD[:-40],
    "a net": SMALL.encode(),
}


def parameters(files: dict[str, bytes]) -> list[object]:
    return [pytest.param(data, id=name) for name, data in files.items()]


def refused(result: Result, tmp_path: Path) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr and "Traceback" not in result.output and "\x1b" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", parameters(NETS))
def test_nets(caffeport: Callable[..., Result], tmp_path: Path, data: bytes) -> None:
    net = tmp_path / "net.prototxt"
    net.write_bytes(data)
    refused(caffeport("convert", net, "-o", tmp_path / "out"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["net.prototxt"]


@pytest.mark.parametrize("data", parameters(WEIGHTS))
def test_weights(caffeport: Callable[..., Result], tmp_path: Path, data: bytes) -> None:
    (tmp_path / "net.prototxt").write_text(SMALL)
    (tmp_path / "w.caffemodel").write_bytes(data)
    for command in (("convert", "-o", tmp_path / "out"), ("inspect",)):
        refused(caffeport(command[0], tmp_path / "net.prototxt", tmp_path / "w.caffemodel", *command[1:]), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.prototxt", "w.caffemodel"]


def test_weights_of_other_shapes(caffeport: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(SMALL)
    (tmp_path / "w.caffemodel").write_bytes(GOOD.replace(b"\x0a\x02\x02\x08", b"\x0a\x02\x08\x02"))
    result = caffeport("convert", tmp_path / "net.prototxt", tmp_path / "w.caffemodel", "-o", tmp_path / "out")
    refused(result, tmp_path)
    assert "2 x 8" in result.stderr and "8 x 2" in result.stderr


def test_swapped_arguments(caffeport: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(SMALL)
    (tmp_path / "w.caffemodel").write_bytes(GOOD)
    result = caffeport("convert", tmp_path / "w.caffemodel", tmp_path / "net.prototxt", "-o", tmp_path / "out")
    refused(result, tmp_path)
    assert "swapped" in result.stderr


def test_a_file_alone_says_its_last_layer(caffeport: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "w.caffemodel").write_bytes(GOOD)
    result = caffeport("inspect", tmp_path / "w.caffemodel")
    assert result.exit_code == 0
    assert "its last layer is 'prob' (Softmax)" in " ".join(result.output.split())
