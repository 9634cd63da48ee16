"""Files as people hold them: in any form, from anywhere, and the wrong ones named."""

import io
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from caffeport.errors import FormatError
from caffeport.formats import read
from tests.conftest import ROOT
from tests.formats.wire_writer import message, number, packed, shape, text

NET = b'name: "n\xc3\xa9t"\nlayer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" }\n'
WEIGHTS = message(100, text(1, "fc"), text(2, "InnerProduct"), message(7, packed(5, [1, 2]), shape(1, 2)))
BOM = b"\xef\xbb\xbf"


# This process's own locale may have no name for such a file.
needs_unicode_paths = pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="paths are not UTF-8 here")


@needs_unicode_paths
@pytest.mark.parametrize("data", [NET, WEIGHTS], ids=["text", "binary"])
def test_paths_bytes_and_open_files(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a file with spaces, ü and (brackets)"
    path.write_bytes(data)
    with path.open("rb") as file:
        sources = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file]
        forms = [read(source).form for source in sources]
    assert len(set(forms)) == 1


def test_what_is_no_source_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"expected a path, bytes or an open binary file, not int"):
        read(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"open it in mode 'rb'"):
        read(io.StringIO("layer {}"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(BOM + NET, id="byte-order mark"),
        pytest.param(NET.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(NET.replace(b"\n", b"\r"), id="CR"),
        pytest.param(b"\n\n  \r\n\t" + NET, id="empty lines first"),
        pytest.param(BOM + b"\n\n" + NET, id="mark and empty lines"),
    ],
)
def test_editors_leave_their_traces(data: bytes) -> None:
    net = read(data).net
    assert net.name == "nét" and net.layer[0].name == "fc"


WRONG = [
    pytest.param(b'net: "train_val.prototxt"\nbase_lr: 0.01\n', "a solver.* 'train_val.prototxt': give", id="solver"),
    pytest.param(BOM + b"train_net: 'a.prototxt'\n", "a solver.* 'a.prototxt'", id="solver with a mark"),
    pytest.param(
        b'net: "C:\\\\m\\\\n.prototxt"\nlr_policy: "step"', r"'C:\\\\m\\\\n.prototxt'", id="solver of Windows"
    ),
    pytest.param(b"# mine\nbase_lr: 1\n", "a solver, not a net; give the net it trains", id="solver without a net"),
    pytest.param(
        number(1, 7) + text(2, "snap_7.caffemodel"), "solver's state .* 'snap_7.caffemodel'", id="solverstate"
    ),
    pytest.param(number(1, 1) + packed(5, [1, 2, 3]) + number(2, 3), "a mean file .*--mean", id="mean"),
    pytest.param(b"\n\n \r\n<!DOCTYPE html>\n<html></html>", "HTML page.* download the raw file", id="HTML"),
    pytest.param(b"\n<!-- saved from -->\n<HTML>", "HTML page", id="HTML after a comment"),
    pytest.param(BOM + b"<HTML>", "HTML page", id="HTML with a mark"),
    pytest.param(b"<svg></svg>\n", "markup", id="other markup"),
    pytest.param(b'{"message": "Not Found"}\n', "JSON", id="JSON"),
    pytest.param(NET.decode().encode("utf-16"), "UTF-16 text: save it as UTF-8", id="UTF-16"),
    pytest.param(NET.replace(b"\xc3\xa9", b"\xe9"), r":1:7: byte 0xe9 in name is not UTF-8", id="Latin-1"),
    pytest.param(b"PK\x03\x04zip", "zip archive", id="zip"),
    pytest.param(b"\x1f\x8b\x08gz", "gzip", id="gzip"),
    pytest.param(b"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer", id="LFS"),
    pytest.param(b"\x89PNG\r\n\x1a\n", "picture", id="PNG"),
    pytest.param(b"", "empty", id="empty"),
]


@pytest.mark.parametrize(("data", "words"), WRONG)
def test_a_wrong_file_is_named(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read(data)


def test_a_net_whose_name_makes_it_begin_like_markup() -> None:
    """A binary net begins with a line feed and the length of its name; 60 is "<"."""
    name = "a" * 60
    data = text(1, name) + WEIGHTS
    assert data.startswith(b"\n<a") and read(data).net.name == name


def test_an_hdf5_solver_state_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["iter"] = 5
        file["learned_net"] = np.bytes_("snap_5.caffemodel.h5")
    with pytest.raises(FormatError, match=r"s.h5: this is a solver's state .* 'snap_5.caffemodel.h5'"):
        read(tmp_path / "s.h5")


def test_a_path_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match=r"gone.prototxt: cannot be read: No such file"):
        read("gone.prototxt")
    with pytest.raises(FormatError, match=r"this is a directory"):
        read(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/net.prototxt").write_bytes(NET)
    if os.sep == "/":
        with pytest.raises(FormatError, match=r"did you mean 'models/net.prototxt'"):
            read("models\\net.prototxt")


@needs_unicode_paths
@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, id="C"),
        pytest.param({"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}, id="ASCII output"),
        pytest.param({"LC_ALL": "C.UTF-8"}, id="UTF-8"),
    ],
)
def test_no_locale_matters(environment: dict[str, str], tmp_path: Path) -> None:
    net = (
        'layer { name: "dätä" type: "Input" top: "dätä" input_param { shape { dim: 1 dim: 2 } } }\n'
        'layer { name: "слой" type: "ReLU" bottom: "dätä" top: "слой" }\n'
    )
    path = tmp_path / "nét.prototxt"
    path.write_text(net, encoding="utf-8")
    for arguments in (["inspect", path], ["convert", path, "-o", tmp_path / "out"]):
        run = subprocess.run(
            [sys.executable, "-m", "caffeport", *map(str, arguments)],
            env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
        )
        assert run.returncode == 0, run.stderr.decode(errors="replace")
    assert "слой" in (tmp_path / "out/deploy.prototxt").read_text(encoding="utf-8")
    assert "слой" in (tmp_path / "out/caffeport.json").read_text(encoding="utf-8")
