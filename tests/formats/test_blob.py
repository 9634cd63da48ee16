import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffeport.errors import FormatError
from caffeport.formats.blob import blob_fork, read_blob
from caffeport.formats.model_file import StoredBlob
from tests.formats.wire_writer import legacy, message, number, packed, shape, unpacked, varint


def read(*parts: bytes) -> StoredBlob:
    data = b"".join(parts)
    return read_blob(memoryview(data), 0, len(data))


def test_one_packed_piece_is_a_view_of_the_file() -> None:
    data = bytearray(shape(2, 3) + packed(5, range(6)))
    blob = read_blob(memoryview(data).toreadonly(), 0, len(data))
    data[-4:] = np.float32(77).tobytes()
    assert blob.shape == (2, 3) and not blob.legacy and blob.array[1, 2] == 77
    assert not blob.array.flags.writeable


# One list of values cut into pieces, each packed or not: a reader must not care.
PIECES = st.lists(st.tuples(st.booleans(), st.lists(st.floats(width=32, allow_nan=False), min_size=0, max_size=40)))


@given(PIECES)
def test_packed_and_unpacked_pieces_mix(pieces: list[tuple[bool, list[float]]]) -> None:
    values = [value for _, piece in pieces for value in piece]
    data = [packed(5, piece) if is_packed else unpacked(5, piece) for is_packed, piece in pieces]
    if not values:
        with pytest.raises(FormatError, match="asks for 1 values, but 0 are stored"):
            read(*data)
        return
    blob = read(shape(len(values)), *data)
    assert blob.array.dtype == np.float32 and blob.array.tolist() == values
    assert not blob.array.flags.writeable


@pytest.mark.parametrize(
    ("parts", "dtype"),
    [
        pytest.param([packed(8, [1, 2], "d"), packed(5, [8, 9])], np.float64, id="double_data before data"),
        pytest.param([unpacked(8, [1, 2], "d")], np.float64, id="double_data unpacked"),
        pytest.param([packed(5, [1, 2]), number(10, 0), message(12, bytes(16))], np.float32, id="data before raw_data"),
        pytest.param([number(10, 0), packed(12, [1, 2], "d")], np.float64, id="raw DOUBLE"),
        pytest.param([number(10, 1), packed(12, [1, 2])], np.float32, id="raw FLOAT"),
        pytest.param([number(10, 2), packed(12, [1, 2], "e")], np.float16, id="raw FLOAT16"),
        pytest.param([packed(5, [1, 2]), packed(6, [7, 7, 7]), unpacked(6, [7])], np.float32, id="diff ignored"),
    ],
)
def test_where_the_values_come_from(parts: list[bytes], dtype: type) -> None:
    blob = read(shape(2), *parts)
    assert blob.array.dtype == dtype and blob.array.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("parts", "wanted", "is_legacy"),
    [
        pytest.param([shape(2, 3)], (2, 3), False, id="shape"),
        pytest.param([message(7, number(1, 2), number(1, 3))], (2, 3), False, id="shape, dim unpacked"),
        pytest.param([message(7, number(1, 2)), shape(3)], (2, 3), False, id="shape in two parts"),
        pytest.param([legacy(1, 1, 2, 3)], (1, 1, 2, 3), True, id="legacy"),
        pytest.param([legacy(1, 1, 2, 3), shape(6)], (1, 1, 2, 3), True, id="legacy wins"),
        pytest.param([shape(6), number(4, 6)], (1, 1, 1, 6), True, id="an absent legacy number is 1"),
    ],
)
def test_which_shape_counts(parts: list[bytes], wanted: tuple[int, ...], is_legacy: bool) -> None:
    blob = read(*parts, packed(5, range(6)))
    assert (blob.shape, blob.legacy) == (wanted, is_legacy)


def test_a_scalar_has_no_shape() -> None:
    assert read(packed(5, [4])).shape == ()
    assert read(message(7), packed(5, [4])).shape == ()


def test_c3d_counts_five_dimensions_and_data_as_field_6() -> None:
    data = legacy(1, 3, 2, 1, 2) + packed(6, range(12)) + packed(7, range(12))
    blob = read(data)
    assert blob.shape == (1, 3, 2, 1, 2) and blob.legacy and blob.array.ravel().tolist() == list(range(12))
    assert blob_fork(memoryview(data), 0, len(data)) == "c3d"
    assert read(legacy(1, 1, 1, 1, 4), packed(6, range(4))).fits((4,))


@pytest.mark.parametrize(
    ("parts", "message_"),
    [
        pytest.param([shape(2, 3), packed(5, range(5))], r"2 x 3 asks for 6 values, but 5 are stored", id="too few"),
        pytest.param([shape(2, 3), packed(5, range(7))], r"asks for 6 values, but 7", id="too many"),
        pytest.param([shape(2)], "asks for 2 values, but 0", id="none"),
        pytest.param([packed(5, range(2))], r"shape \(\) asks for 1 values, but 2", id="no shape"),
        pytest.param([shape(0), packed(5, [])], "each dimension must be 1 to", id="0"),
        pytest.param([shape(-1), packed(5, [1])], "shape -1: each dimension", id="-1"),
        pytest.param([legacy(1, 1, 1, 0), packed(5, [1])], "each dimension", id="legacy 0"),
        pytest.param([shape(2**31), packed(5, [1])], "each dimension", id="2^31"),
        pytest.param([shape(2**62), packed(5, [1])], "each dimension", id="2^62"),
        pytest.param([shape(2**31 - 1, 2**31 - 1, 4), packed(5, [1])], "18,446,744,056,529,682,436 values", id="2^64"),
        pytest.param([shape(*[1] * 33), packed(5, [1])], "more than 32 axes", id="33 axes"),
        pytest.param([message(7, *[number(1, 1)] * 33)], "more than 32 axes", id="33 axes unpacked"),
        pytest.param([shape(1), message(5, b"12345")], "5 bytes are not a whole number of values", id="5 bytes"),
        pytest.param([shape(1), number(10, 3), message(12, b"1234")], "raw_data of type 3", id="raw INT"),
        pytest.param([shape(1), number(10, 2), message(12, b"123")], "whole number of 2-byte values", id="raw bytes"),
        pytest.param([message(7, message(1, b"\x80"))], "inside a number", id="cut dimension"),
        pytest.param([varint(5 << 3 | 2), varint(2**40)], "takes 1,099,511,627,776 bytes", id="length past the end"),
    ],
)
def test_a_bad_blob_is_refused_before_memory_is_taken(parts: list[bytes], message_: str) -> None:
    with pytest.raises(FormatError, match=message_):
        read(*parts)
