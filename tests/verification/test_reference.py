"""Reading a reference, and refusing one that is not this net's."""

import io
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import caffeport
from caffeport import ReferenceMismatch
from caffeport.verification import Reference
from tests.verification.nets import chain, digits, pictures, recorded


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


def test_an_npz_is_read_array_by_array(tmp_path: Path) -> None:
    path = write(tmp_path / "r.npz", {"a": np.arange(6.0).reshape(2, 3), "b::c": np.zeros((), np.float16)})
    with Reference.open(path) as reference:
        assert reference.shapes == {"a": (2, 3), "b::c": ()}
        assert reference.read("a").dtype == np.float32
        assert np.array_equal(reference.read("a"), np.arange(6).reshape(2, 3))
        assert reference.read("b::c").shape == ()


def test_never_unpickles(tmp_path: Path) -> None:
    path = write(tmp_path / "r.npz", {"a": np.array([{}], dtype=object)})
    with pytest.raises(ReferenceMismatch, match="'a' is of type object; numbers are wanted"):
        Reference.open(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x93NUMPY"])
def test_what_is_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.npz").write_bytes(content)
    with pytest.raises(ReferenceMismatch, match=r"cannot be read as an \.npz"):
        Reference.open(tmp_path / "r.npz")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ReferenceMismatch, match="no such file"):
        Reference.open(tmp_path / "r.npz")


def test_a_declared_size_is_checked_before_it_is_allocated(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "r.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    with pytest.raises(ReferenceMismatch, match="'a' ends early"):
        Reference.open(tmp_path / "r.npz")


@pytest.mark.parametrize("cut", range(0, 3000, 211))
def test_a_damaged_file_is_refused_or_judged(tmp_path: Path, cut: int) -> None:
    network = chain()
    write(tmp_path / "r.npz", recorded(network, pictures(network)))
    content = bytearray((tmp_path / "r.npz").read_bytes())
    content[cut : cut + 40] = b"\xff" * 40
    (tmp_path / "r.npz").write_bytes(content)
    with suppress(caffeport.CaffeportError):  # any other exception fails the test
        caffeport.verify(network, tmp_path / "r.npz")


class TestOfAnotherNet:
    def test_no_name_is_known(self) -> None:
        _, reference = digits()
        renamed = {f"other/{key}": array for key, array in reference.items()}
        network, _ = digits()
        with pytest.raises(
            ReferenceMismatch, match=r"does not hold the net's input 'data'; a reference keeps it as in::BLOB"
        ):
            caffeport.verify(network, renamed)
        with pytest.raises(
            ReferenceMismatch, match=r"holds no array of this net; it holds 'other/.*wanted are layer::top"
        ):
            caffeport.verify(network, renamed, inputs={"data": reference["in::data"]})

    def test_shapes_differ_and_all_are_listed(self) -> None:
        network, reference = digits()
        wrong = {key: array[:, ..., :-1] if "conv" in key else array for key, array in reference.items()}
        with pytest.raises(ReferenceMismatch) as caught:
            caffeport.verify(network, wrong)
        assert "'conv1::conv1' is" in str(caught.value)
        assert "'conv2::conv2' is" in str(caught.value)
        assert "another net, another input size or another batch?" in str(caught.value)

    def test_a_larger_batch(self) -> None:
        network, reference = digits()
        wrong = {
            key: array if key.startswith("in::") else np.concatenate([array, array]) for key, array in reference.items()
        }
        with pytest.raises(ReferenceMismatch, match="another batch"):
            caffeport.verify(network, wrong)

    def test_another_input_shape_names_the_layer(self) -> None:
        network, reference = digits()
        wrong = np.zeros((8, 1, 12, 12), np.float32)
        message = r"{}: the net cannot run on 'data' of 8 x 1 x 12 x 12: layer 'ip1'"
        with pytest.raises(caffeport.ShapeError, match=message.format("arrays in memory")):
            caffeport.verify(network, {**reference, "in::data": wrong})
        with pytest.raises(caffeport.ShapeError, match=message.format("the given inputs")):
            caffeport.verify(network, reference, inputs={"data": wrong})


def test_nan_in_a_reference_is_named() -> None:
    network, reference = digits()
    broken = {key: array.copy() for key, array in reference.items()}
    broken["conv2::conv2"][0, 1, 2, 3] = np.nan
    report = caffeport.verify(network, broken)
    assert report.first_failure == "conv2"
    assert "the reference holds NaN or Inf at 1 of" in report.causes[0].what
    assert "first at (0, 1, 2, 3)" in report.causes[0].what


def test_fewer_items_than_the_input_are_compared_and_said() -> None:
    network, reference = digits()
    part = {key: array[:3] if key.startswith("conv1::") else array for key, array in reference.items()}
    report = caffeport.verify(network, part)
    assert report.passed
    assert [row.items for row in report.layers if row.layer == "conv1"] == [3]
    assert any("only the first 3 of the batch" in note for note in report.notes)


def test_strangers_are_said() -> None:
    network, reference = digits()
    report = caffeport.verify(network, {**reference, "loss": np.zeros(())})
    assert report.passed
    assert any("'loss'" in note for note in report.notes)


@pytest.mark.parametrize("reference", [None, 5, [1], b"abc"])
def test_what_is_no_reference(reference: object) -> None:
    with pytest.raises(caffeport.InputError, match=r"a reference is an \.npz file, a mapping of arrays"):
        caffeport.verify(digits()[0], reference)  # type: ignore[arg-type]


def test_a_path_that_no_system_takes() -> None:
    with pytest.raises(ReferenceMismatch, match=r"cannot be read as an \.npz"):
        caffeport.verify(digits()[0], "a\0b.npz")


def test_bits_that_flipped(tmp_path: Path) -> None:
    """Errors of zipfile, of its decompressors and of NumPy's header parser all come as ours."""
    path = tmp_path / "r.npz"
    np.savez_compressed(path, **{"in::data": np.zeros((1, 1, 8, 8), np.float32), "prob": np.ones((1, 10), np.float32)})
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    network, _ = digits()
    for _ in range(150):
        torn = bytearray(whole)
        for place in random.integers(len(whole), size=2):
            torn[place] = random.integers(256)
        path.write_bytes(torn)
        with suppress(caffeport.CaffeportError):
            caffeport.verify(network, path)


@pytest.mark.parametrize("header", [b"{'descr': '<f4', 'shape': (1,", b"{'descr': ('<f4', 'fortran_order': False, ("])
def test_a_header_that_does_not_parse(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "r.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ReferenceMismatch, match="array 'a' cannot be read"):
        Reference.open(path)


def test_tensors_are_arrays_too() -> None:
    network, reference = digits()
    tensors = {key: torch.from_numpy(array).requires_grad_() for key, array in reference.items()}
    assert caffeport.verify(network, tensors).passed


def test_a_value_that_is_no_array() -> None:
    network, reference = digits()
    with pytest.raises(ReferenceMismatch, match="'conv1' is no array of numbers"):
        caffeport.verify(network, {**reference, "conv1": [[1, 2], [3]]})


def test_keys_that_are_no_names() -> None:
    network, reference = digits()
    report = caffeport.verify(network, {**reference, 1: reference["prob"], "zzz": reference["prob"]})  # type: ignore[dict-item]
    assert "2 arrays of the reference are no blob of this net: '1', 'zzz'" in report.notes


def test_no_items_are_no_agreement() -> None:
    network, reference = digits()
    with pytest.raises(ReferenceMismatch, match="'conv2::conv2' is 0 x 32 x 8 x 8"):
        caffeport.verify(network, {**reference, "conv2::conv2": reference["conv2::conv2"][:0]})
    with pytest.raises(ReferenceMismatch, match="input 'data' has no values to compare with"):
        caffeport.verify(network, {key: array[:0] for key, array in reference.items()})


def test_shorter_types_are_named() -> None:
    network, reference = digits()
    half = {key: array if key.startswith("in::") else array.astype(np.float16) for key, array in reference.items()}
    assert any("arrays of the reference are of type float16" in note for note in caffeport.verify(network, half).notes)
    double = {key: array.astype(np.float64) for key, array in reference.items()}
    assert caffeport.verify(network, double).notes == ()
