import io
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from caffeport.errors import FormatError
from caffeport.formats import read, read_mean
from caffeport.formats.mean import looks_like_mean
from tests.conftest import SHARED, needs_shared
from tests.formats.wire_writer import legacy, number, packed, shape, unpacked

VALUES = np.arange(24, dtype=np.float32)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def mat(**variables: object) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables, do_compression=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        pytest.param(legacy(1, 3, 2, 4) + packed(5, VALUES), (3, 2, 4), id="legacy"),
        pytest.param(legacy(1, 3, 2, 4) + unpacked(5, VALUES), (3, 2, 4), id="unpacked"),
        pytest.param(legacy(1, 3, 2, 4) + packed(8, VALUES, "d"), (3, 2, 4), id="double"),
        pytest.param(number(2, 3) + number(3, 2) + number(4, 4) + packed(5, VALUES), (3, 2, 4), id="no num"),
        pytest.param(shape(1, 3, 2, 4) + packed(5, VALUES), (3, 2, 4), id="shape"),
        pytest.param(packed(5, VALUES) + shape(3, 2, 4), (3, 2, 4), id="shape of three"),
        pytest.param(shape(24) + packed(5, VALUES), (24,), id="per channel"),
        pytest.param(legacy(1, 3, 2, 2, 2) + packed(6, VALUES), (3, 2, 2, 2), id="C3D"),
        pytest.param(npy(VALUES.reshape(3, 2, 4).astype(np.float16)), (3, 2, 4), id="npy, float16"),
        pytest.param(npy(VALUES.reshape(1, 3, 2, 4).astype(np.float64)), (3, 2, 4), id="npy, four axes"),
        pytest.param(npy(VALUES.reshape(3, 2, 4).astype(np.uint8)), (3, 2, 4), id="npy, uint8"),
        pytest.param(npy(np.asfortranarray(VALUES.reshape(3, 2, 4))), (3, 2, 4), id="npy, Fortran order"),
        pytest.param(npy(VALUES[:3]), (3,), id="npy, per channel"),
        pytest.param(mat(m=VALUES.reshape(3, 2, 4)), (3, 2, 4), id="mat, channels first"),
        pytest.param(mat(m=VALUES[:3]), (3,), id="mat, per channel"),
    ],
)
def test_a_mean_in_every_form(data: bytes, wanted: tuple[int, ...]) -> None:
    mean = read_mean(data)
    assert mean.shape == wanted and mean.array.dtype == np.float32
    assert mean.array.ravel().tolist() == list(range(mean.array.size))
    assert " x ".join(map(str, wanted)) in str(mean)
    assert looks_like_mean(data)


@pytest.mark.parametrize("make", [npy, lambda array: mat(image_mean=array)], ids=["npy", "mat of the first demo"])
def test_channels_last_are_moved_and_it_is_said(make: object) -> None:
    assert callable(make)
    picture = VALUES.reshape(2, 4, 3)
    mean = read_mean(make(picture))
    np.testing.assert_array_equal(mean.array, picture.transpose(2, 0, 1))
    assert "height x width x channels" in mean.form


def test_matcaffe_keeps_width_first() -> None:
    picture = VALUES.reshape(2, 4, 3)
    mean = read_mean(mat(mean_data=picture))
    np.testing.assert_array_equal(mean.array, picture.transpose(2, 1, 0))
    assert mean.shape == (3, 4, 2) and "(2, 4, 3), read as width x height x channels" in str(mean)


def test_a_clip_may_be_an_npy_too() -> None:
    mean = read_mean(npy(np.zeros((3, 4, 5, 6))))
    assert mean.shape == (3, 4, 5, 6) and "length" in mean.form


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(
            legacy(2, 3, 2, 2) + packed(5, VALUES), "mean of shape 2 x 3 x 2 x 2.*one picture", id="two pictures"
        ),
        pytest.param(legacy(1, 3, 2, 5) + packed(5, VALUES), "asks for 30 values, but 24", id="count"),
        pytest.param(shape(4, 6) + packed(5, VALUES), "mean of shape 4 x 6", id="two axes"),
        pytest.param(npy(VALUES), r"\(24,\) of float32 is no mean", id="24 channels"),
        pytest.param(npy(np.array(["a"])), "values of type", id="text"),
        pytest.param(npy(VALUES)[:-4], "does not fit the 92 bytes", id="cut npy"),
        pytest.param(npy(VALUES)[:20], "not a whole .npy", id="cut header"),
        pytest.param(npy(VALUES).replace(b"(24,)", b"(-1,)"), "no mean|not a whole", id="negative"),
        pytest.param(npy(np.array([{}], object)), "values of type object", id="pickle inside"),
        pytest.param(mat(a=VALUES, b=VALUES), r"2 variables \(a, b\)", id="two variables"),
        pytest.param(mat(a="text"), "holds no numbers", id="text variable"),
        pytest.param(mat(a=VALUES)[:150], "not a .mat file|0 variables", id="cut mat"),
        pytest.param(b'name: "net"', "expected a mean", id="a net"),
        pytest.param(b"<html>", "HTML page", id="HTML"),
    ],
)
def test_what_is_no_mean_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_mean(data)


def test_a_huge_npy_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(FormatError, match="does not fit"):
        read_mean(npy(VALUES).replace(b"(24,), }      ", b"(1152921504,),}"))


def test_a_mean_given_as_a_net_is_named() -> None:
    with pytest.raises(FormatError, match="this is a mean file"):
        read(legacy(1, 3, 2, 4) + packed(5, VALUES))


@needs_shared
def test_the_same_mean_in_three_formats() -> None:
    folder: Path = SHARED / "nets/memnet"
    first, *others = [read_mean(folder / f"mean.{ending}") for ending in ("binaryproto", "npy", "mat")]
    assert first.shape == (3, 256, 256)
    assert np.allclose(first.array.mean(axis=(1, 2)), [104, 116.625, 122.75])
    for other in others:
        np.testing.assert_array_equal(other.array, first.array)


@needs_shared
@pytest.mark.parametrize(("case", "wanted"), [("mean_of_c3d", (3, 4, 6, 8)), ("mean_blob_without_num", (3, 8, 9))])
def test_reported_means(case: str, wanted: tuple[int, ...]) -> None:
    assert read_mean(SHARED / "reports/cases" / case / "mean.binaryproto").shape == wanted
