import gzip
import io
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffeport.errors import CaffeportError, FormatError
from caffeport.formats import ModelFile, read, read_mean
from tests.conftest import SHARED, needs_shared
from tests.formats.test_binary import V2_NET
from tests.formats.wire_writer import legacy, message, number, packed, shape, text, v1_layer, v2_layer, varint

TEXT = 'name: "net"\nlayer { name: "a" type: "Bias" bottom: "x" top: "x" blobs { shape { dim: 2 } data: 1 data: 2 } }\n'


def values(file: ModelFile) -> dict[str, list[list[float]]]:
    return {layer.name: [blob.array.ravel().tolist() for blob in layer.blobs] for layer in file.weights or []}


# ---- where bytes come from ----


@pytest.mark.parametrize("data", [V2_NET, TEXT.encode()], ids=["binary", "text"])
def test_paths_bytes_and_open_files_give_the_same(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "misleading.png"
    path.write_bytes(data)
    wanted = read(data)
    with open(path, "rb") as file:
        sources = [path, str(path), bytearray(data), memoryview(data), io.BytesIO(data), file]
        for source in sources:
            got = read(source)
            assert got.net == wanted.net and got.form == wanted.form
            assert values(got) == values(wanted)
            assert not any(blob.array.flags.writeable for layer in got.weights or [] for blob in layer.blobs)


def test_a_mapped_file_can_be_released(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(v2_layer("big", "Bias", message(7, shape(20000), packed(5, np.arange(20000)))))
    weights = read(path).weights
    assert weights is not None and weights.buffer is not None
    weights.release(weights.layers[0].blobs[0].array)
    assert weights.layers[0].blobs[0].array[-1] == 19999


@pytest.mark.parametrize("source", [3, None, io.StringIO("layer {}"), ["a"]])
def test_other_objects_are_a_type_error(source: object) -> None:
    with pytest.raises(TypeError, match=r"expected a path|must give bytes"):
        read(source)  # type: ignore[arg-type]


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, message_ in [
        (tmp_path, "this is a directory"),
        (tmp_path / "missing", "cannot be read: No such file"),
        (tmp_path / "empty", "the file is empty"),
        (tmp_path / "pipe", "not a regular file"),
        ("nul\0byte", "cannot be read"),
        ("x" * 5000, "cannot be read"),
    ]:
        with pytest.raises(FormatError, match=message_):
            read(path)


def test_a_file_beyond_2_gib_is_mapped_and_not_read(tmp_path: Path) -> None:
    count = 3 << 28  # floats: 3 GiB, of which only both ends take room on the disk
    blob = shape(count) + varint(5 << 3 | 2) + varint(4 * count)
    layer = text(1, "big") + text(2, "Bias") + varint(7 << 3 | 2) + varint(len(blob) + 4 * count) + blob
    path = tmp_path / "big.caffemodel"
    with open(path, "wb") as file:
        file.write(varint(100 << 3 | 2) + varint(len(layer) + 4 * count) + layer)
        file.seek(4 * (count - 1), os.SEEK_CUR)
        file.write(np.float32(7).tobytes())
    started = time.perf_counter()
    weights = read(path).weights
    assert time.perf_counter() - started < 1
    assert weights is not None and weights.count == count
    assert weights.layers[0].blobs[0].array[-1] == 7


def test_reading_nets_needs_numpy_and_protobuf_only() -> None:
    loaded = "import sys, caffeport.formats; print(*{'torch', 'scipy', 'h5py', 'PIL', 'onnx'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


# ---- text ----


def test_arrays_in_a_text_net_become_weights() -> None:
    file = read(TEXT.encode())
    assert (file.form, values(file)) == ("V2 text", {"a": [[1, 2]]})
    assert not file.net.layer[0].blobs
    with pytest.raises(FormatError, match=r"layer 'a' \(Bias\): blob 0: shape 3 asks for 3 values"):
        read(TEXT.replace("dim: 2", "dim: 3").encode())


def test_arrays_in_a_v1_text_net_keep_their_legacy_shape() -> None:
    blob = "blobs { num: 1 channels: 1 height: 1 width: 2 data: 3 data: 4 }"
    file = read(f'layers {{ name: "a" type: INNER_PRODUCT bottom: "x" top: "y" {blob} }}'.encode())
    assert file.weights is not None and file.form == "V1 text"
    assert file.weights.layers[0].blobs[0].legacy and file.weights.layers[0].type == "InnerProduct"


def test_text_nested_5000_deep_is_refused() -> None:
    with pytest.raises(FormatError):
        read(b"layer { " * 5000 + b"}" * 5000)


# ---- what people give by mistake ----


def zip_archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return stream.getvalue()


HTML = b"<!DOCTYPE html>\n<html><head><title>net at master</title></head></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ONNX = number(1, 8) + text(2, "pytorch") + text(3, "2.1") + message(7, message(1, text(4, "Conv"))) + message(8)
STATE = number(1, 100) + text(2, "snap/net_iter_100.caffemodel") + message(3, legacy(1, 1, 1, 1), packed(5, [1]))


@pytest.mark.parametrize(
    ("data", "message_"),
    [
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(LFS, "git-LFS pointer.*git lfs pull", id="LFS"),
        pytest.param(HTML, "HTML page.*raw file", id="HTML"),
        pytest.param(b"\n\n \n\n\n\n\n" + HTML, "HTML page", id="HTML after blank lines"),
        pytest.param(b"\xef\xbb\xbf\r\n" + HTML.lower(), "HTML page", id="HTML with a mark"),
        pytest.param(zip_archive(), "zip archive.*pth", id="zip"),
        pytest.param(gzip.compress(V2_NET), "gzip", id="gzip"),
        pytest.param(pickle.dumps({"a": 1}), "pickle", id="pickle"),
        pytest.param(ONNX, "ONNX model", id="ONNX"),
        pytest.param(number(1, 8) + message(7, b"") + message(8, b""), "ONNX model", id="ONNX without producer"),
        pytest.param(STATE, r"solver's state.*the weights are in 'snap/net_iter_100.caffemodel'", id="solverstate"),
        pytest.param(b'# s\nnet: "models/a.prototxt"\nbase_lr: 0.1\n', "solver.*'models/a.prototxt'", id="solver"),
        pytest.param(b'train_net: "a"\ntest_net: "b"\n', "solver.*'a'", id="solver with two nets"),
        pytest.param(b'net_param { layer { name: "a" } }\nbase_lr: 0.1', "solver", id="consolidated solver"),
        pytest.param(b'item {\n  name: "cat"\n  label: 1\n}\n', "label map", id="label map"),
        pytest.param(legacy(1, 1, 1, 2) + packed(5, [1, 2]), "mean file", id="mean"),
        pytest.param('layer { name: "a" }'.encode("utf-16"), "UTF-16", id="UTF-16"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "a picture", id="PNG"),
        pytest.param(text(1, "only a name") + number(5, 1), "no layers and no inputs", id="a name only"),
        pytest.param(b'name: "only a name"', "no layers and no inputs", id="a name only, text"),
        pytest.param(b"# nothing but words\n", "no layers and no inputs", id="a comment only"),
    ],
)
def test_a_file_of_another_kind_is_named(data: bytes, message_: str) -> None:
    with pytest.raises(FormatError, match=message_):
        read(data)


@needs_shared
def test_solvers_and_label_maps_of_others_are_named() -> None:
    for path in sorted((SHARED / "zoo/prototxts/not_nets").iterdir()):
        with pytest.raises(FormatError, match="label map" if "labelmap" in path.name else "solver"):
            read(path)


@needs_shared
def test_a_binary_net_without_weights_equals_its_text() -> None:
    folder = SHARED / "zoo/waifu2x_upconv7"
    binary, plain = read(folder / "net.protobin"), read(folder / "deploy.prototxt")
    assert (binary.form, binary.weights) == ("V2 binary", None)
    assert [layer.name for layer in binary.net.layer] == [layer.name for layer in plain.net.layer]


# ---- damaged and hostile files ----

V1_NET = text(1, "v1") + v1_layer(
    "ip", 14, message(6, legacy(1, 1, 2, 2), packed(5, range(4))), message(17, number(1, 2))
)
C3D_NET = v1_layer("conv", 30, message(6, legacy(1, 1, 1, 1, 2), packed(6, [1, 2])), message(10, number(6, 3)))
FORK_NET = v2_layer("p", "Proposal", message(8266713, number(1, 16), packed(4, [0.5, 1]))) + v2_layer(
    "bn", "BN", message(152)
)
NETS = {"V2": V2_NET, "V1": V1_NET, "C3D": C3D_NET, "fork": FORK_NET, "text": TEXT.encode()}


def read_or_refuse(data: bytes) -> None:
    """Anything but a CaffeportError fails the test."""
    for read_it in (read, read_mean, lambda source: read(source, salvage=True)):
        try:
            read_it(data)
        except CaffeportError as error:
            assert str(error)  # noqa: PT017


@pytest.mark.parametrize("net", NETS)
def test_every_cut_and_every_flipped_bit_is_read_or_refused(net: str) -> None:
    data = NETS[net]
    started = time.perf_counter()
    for length in range(len(data)):
        read_or_refuse(data[:length])
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        read_or_refuse(bytes(flipped))
    assert time.perf_counter() - started < 60


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    read_or_refuse(data)


@given(st.binary(max_size=100), st.sampled_from([2, 100]), st.sampled_from(["", "ReLU", "Convolution", "Proposal"]))
def test_a_layer_of_any_bytes_is_read_or_refused(data: bytes, field: int, type_: str) -> None:
    read_or_refuse(message(field, text(2, type_), data))


GROUPS = varint(9 << 3 | 3) * 100_000 + varint(9 << 3 | 4) * 100_000


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x80" * 10 + b"\x01", id="varint of 11 bytes"),
        pytest.param(varint(100 << 3 | 2) + varint(2**62) + b"abc", id="length past the end"),
        pytest.param(v2_layer("a", "Bias", varint(7 << 3 | 2) + varint(2**40)), id="blob past its layer"),
        pytest.param(GROUPS[:100_000], id="groups without end"),
        pytest.param(message(2, message(1, text(1, "a"), varint(50 << 3 | 2) + varint(9))), id="cut V0 layer"),
    ],
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        read(data)


def test_unknown_groups_nested_100000_deep_are_skipped() -> None:
    for data in (GROUPS + V2_NET, v2_layer("a", "ReLU", GROUPS), v2_layer("a", "ReLU", message(123, GROUPS))):
        assert read(data).net.layer[-1].type in ("ReLU", "InnerProduct")


def test_a_name_may_be_anything_that_is_utf8() -> None:
    for name in ("a.b", "class", "../x", '"', "\0", "x" * 65536, "層"):
        assert read(v2_layer(name, "ReLU")).net.layer[0].name == name
