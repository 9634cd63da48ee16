from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffeport.errors import FormatError
from caffeport.formats.wire import EndsEarly, encode_field, encode_varint, fields, read_field, read_varint, run_of_fixed
from tests.formats.wire_writer import message, number, packed, unpacked, varint


def walk(data: bytes) -> list[tuple[int, int]]:
    return [(field.number, field.wire) for field in fields(memoryview(data), 0, len(data))]


@given(st.integers(0, 2**64 - 1))
def test_a_varint_reads_back(value: int) -> None:
    data = encode_varint(value)
    assert data == varint(value)
    assert read_varint(memoryview(data), 0, len(data)) == (value, len(data))


@pytest.mark.parametrize(
    ("data", "error", "message_"),
    [
        pytest.param(b"\x80" * 10 + b"\x01", FormatError, "longer than 10 bytes", id="eleven bytes"),
        pytest.param(b"\xff" * 9 + b"\x02", FormatError, "more than 64 bits", id="65 bits"),
        pytest.param(b"\x80\x80", EndsEarly, "byte 0: the data end inside a number", id="cut"),
        pytest.param(b"", EndsEarly, "byte 0", id="nothing"),
    ],
)
def test_a_bad_varint_is_refused(data: bytes, error: type[FormatError], message_: str) -> None:
    with pytest.raises(error, match=message_):
        read_varint(memoryview(data), 0, len(data))


def test_every_wire_type_is_walked() -> None:
    group = varint(3 << 3 | 3) + number(1, 7) + varint(3 << 3 | 4)
    data = number(1, 300) + unpacked(2, [1.0], "d") + group + message(4, b"abc") + unpacked(5, [1.0])
    assert walk(data) == [(1, 0), (2, 1), (3, 3), (4, 2), (5, 5)]
    assert read_field(memoryview(data), 0, len(data)).value == 300


@pytest.mark.parametrize(
    ("data", "message_"),
    [
        pytest.param(varint(1 << 3 | 6), "byte 0: no protobuf field starts here", id="wire type 6"),
        pytest.param(varint(1 << 3 | 7), "byte 0: no protobuf field starts here", id="wire type 7"),
        pytest.param(b"\x00\x00", "number 0", id="field number 0"),
        pytest.param(varint(1 << 32 | 5), "number 536870912", id="field number 2^29"),
        pytest.param(varint(1 << 3 | 4), "never opened", id="end of no group"),
        pytest.param(varint(1 << 3 | 3) + varint(2 << 3 | 4), "byte 1: end of group 2", id="end of another group"),
        pytest.param(varint(1 << 3 | 3) + number(1, 1), "byte 3: the data end", id="group without end"),
        pytest.param(
            varint(1 << 3 | 2) + varint(2**63), "takes 9,223,372,036,854,775,808 bytes, but only 0", id="length"
        ),
        pytest.param(number(1, 1) + varint(1 << 3 | 1) + b"1234567", "byte 2: field 1 takes 8 bytes", id="cut double"),
    ],
)
def test_a_bad_field_is_refused_with_its_byte(data: bytes, message_: str) -> None:
    with pytest.raises(FormatError, match=message_):
        walk(data)


def test_groups_nested_100000_deep_are_walked() -> None:
    depth = 100_000
    data = varint(9 << 3 | 3) * depth + varint(9 << 3 | 4) * depth + number(1, 1)
    assert walk(data) == [(9, 3), (1, 0)]
    with pytest.raises(EndsEarly):
        walk(data[:depth])


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 1000])
@pytest.mark.parametrize("after", [b"", number(5, 1), unpacked(6, [1.0, 2.0]), packed(5, [3.0])])
def test_a_run_of_unpacked_floats_is_counted(count: int, after: bytes) -> None:
    data = number(1, 1) + unpacked(5, np.arange(count)) + after
    first = read_field(memoryview(data), 2, len(data))
    assert run_of_fixed(memoryview(data), first, len(data)) == count


@given(st.integers(1, 2**29 - 1), st.binary(max_size=300))
def test_an_encoded_field_reads_back(field_number: int, payload: bytes) -> None:
    data = encode_field(field_number, 2, payload)
    field = read_field(memoryview(data), 0, len(data))
    assert (field.number, data[field.start : field.end], field.end) == (field_number, payload, len(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    with suppress(FormatError):
        assert all(1 <= number < 2**29 for number, _ in walk(data))
