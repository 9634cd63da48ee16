from pathlib import Path

import h5py
import numpy as np
import pytest

from caffeport.errors import FormatError
from caffeport.formats import read
from tests.conftest import SHARED, needs_shared


def write(path: Path, layers: dict[str, dict[str, object]], **options: object) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, blobs in layers.items():
            group = data.create_group(name)
            for key, value in blobs.items():
                group.create_dataset(key, data=value, **options)
    return path


def test_datasets_become_blobs_in_order_of_their_numbers(tmp_path: Path) -> None:
    arrays = {str(index): np.arange(index + 1, dtype=np.float32) for index in range(11)}
    file = read(write(tmp_path / "w", {"relu": {}, "lstm": arrays}))
    assert file.form == "HDF5 weights" and file.net is None and file.weights is not None
    (layer,) = file.weights
    assert (layer.name, layer.type, layer.places) == ("lstm", "", None)
    assert [blob.shape for blob in layer.blobs] == [(index + 1,) for index in range(11)]
    assert not layer.blobs[0].array.flags.writeable and not layer.blobs[0].legacy


def test_a_missing_number_keeps_the_others_in_place(tmp_path: Path) -> None:
    file = read(write(tmp_path / "w", {"fc": {"1": np.ones(3, np.float32)}}))
    assert file.weights is not None
    assert file.weights.layers[0].places == (1,)


@pytest.mark.parametrize(
    ("stored", "given"), [("<f8", "<f8"), (">f4", "<f4"), ("<f2", "<f2"), ("<i4", "<f4"), ("|u1", "<f4")]
)
def test_float_types_stay_and_integers_become_float32(tmp_path: Path, stored: str, given: str) -> None:
    file = read(write(tmp_path / "w", {"fc": {"0": np.array([[1, 2], [3, 4]], stored)}}))
    assert file.weights is not None
    array = file.weights.layers[0].blobs[0].array
    assert array.dtype == np.dtype(given) and array.tolist() == [[1, 2], [3, 4]]


def test_bytes_and_scalars_and_compression_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "w", {"fc": {"0": np.zeros(5000, np.float32)}}, compression="gzip")
    file = read(path.read_bytes())
    assert file.weights is not None and file.weights.layers[0].blobs[0].shape == (5000,)
    file = read(write(tmp_path / "s", {"prelu": {"0": np.float32(0.25)}}))
    assert file.weights is not None and file.weights.layers[0].blobs[0].shape == ()


def soft_link(file: h5py.File) -> None:
    file["real"] = np.ones(2, np.float32)
    file["data/fc/0"] = h5py.SoftLink("/real")


def external_link(file: h5py.File) -> None:
    file["data/fc/0"] = h5py.ExternalLink("other.h5", "/x")


def linked_group(file: h5py.File) -> None:
    file["data/ip"] = h5py.ExternalLink("other.h5", "/data/ip")


def external_storage(file: h5py.File) -> None:
    file["data/fc"].create_dataset("0", (8,), "f4", external=[("/etc/hostname", 0, 32)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    file["data/fc"].create_virtual_dataset("0", layout)


def never_written(file: h5py.File) -> None:
    file["data/fc"].create_dataset("0", (1 << 40,), "f4")


def never_written_chunks(file: h5py.File) -> None:
    file["data/fc"].create_dataset("0", (1 << 40,), "f4", chunks=(1024,))


def one_dataset_many_names(file: h5py.File) -> None:
    file["data/fc/0"] = np.ones(1000, np.float32)
    for index in range(1, 20):
        file[f"data/fc/{index}"] = file["data/fc/0"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(soft_link, "/data/fc/0 is a link", id="soft link"),
        pytest.param(external_link, "/data/fc/0 is a link|not a dataset", id="external link"),
        pytest.param(linked_group, "/data/ip is a", id="external group"),
        pytest.param(external_storage, "values lie in other files", id="external storage"),
        pytest.param(virtual, "values lie in other files", id="virtual"),
        pytest.param(never_written, "4,398,046,511,104 bytes declared, 0 stored", id="never written"),
        pytest.param(never_written_chunks, "bytes declared, 0 stored", id="chunks never written"),
        pytest.param(one_dataset_many_names, "claim more bytes than the file has", id="hard links"),
        pytest.param(lambda file: file["data"].create_dataset("x", data=1), "/data/x is not a group", id="no group"),
        pytest.param(lambda file: file["data/fc"].create_group("0"), "not a dataset", id="no dataset"),
        pytest.param(lambda file: file["data/fc"].create_dataset("a", data=1.0), "called 0, 1, ...", id="name"),
        pytest.param(lambda file: file["data/fc"].create_dataset("01", data=1.0), "called 0, 1, ...", id="01"),
        pytest.param(lambda file: file["data/fc"].create_dataset("0", data="text"), "values of type", id="text"),
        pytest.param(
            lambda file: file["data/fc"].create_dataset("0", data=[1j]), "values of type complex", id="complex"
        ),
        pytest.param(lambda file: file["data/fc"].create_dataset("0", dtype="f4"), "values of type|stored", id="empty"),
        pytest.param(lambda file: file.move("data", "model_weights"), "without the group /data", id="Keras"),
    ],
)
def test_what_caffe_could_not_have_written_is_refused(tmp_path: Path, spoil: object, message: str) -> None:
    path = write(tmp_path / "w", {"fc": {}})
    with h5py.File(path, "a") as file:
        assert callable(spoil)
        spoil(file)
    with pytest.raises(FormatError, match=message):
        read(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "w", {"fc": {"0": np.ones((30, 30), np.float32)}}).read_bytes()
    for length in range(8, len(data), 97):
        with pytest.raises(FormatError, match="HDF5"):
            read(data[:length])


@needs_shared
def test_hdf5_files_of_real_caffe_equal_their_binary_twins() -> None:
    paths = sorted(SHARED.glob("parity/*/*/weights.caffemodel.h5"))
    assert len(paths) == 25
    for path in paths:
        weights, twin = read(path).weights, read(path.with_suffix("")).weights
        assert weights is not None and weights.count and twin is not None
        for layer in weights:
            theirs = twin.by_name()[layer.name].blobs
            for place, blob in zip(layer.places or range(len(layer.blobs)), layer.blobs, strict=True):
                assert theirs[place].fits(blob.shape)
                np.testing.assert_array_equal(blob.array, theirs[place].array.reshape(blob.shape))
