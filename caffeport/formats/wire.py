"""A bounded walk over protobuf's wire format, without copying: where each field of a message lies.

A message is a sequence of fields. A field is a tag (a varint: number << 3 | wire type) and a payload:
a varint, 4 or 8 bytes, a length and that many bytes, or a group (fields up to an end tag).
Positions are byte offsets in the whole buffer, so that errors can name them.
Source: the protobuf documentation, "Encoding".
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from caffeport.errors import FormatError

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)
MAX_FIELD_NUMBER = 2**29 - 1


class EndsEarly(FormatError):
    """The bytes stop inside a field."""


class Field(NamedTuple):
    """One field: its bytes are buffer[tag:end], its payload buffer[start:end]."""

    number: int
    wire: int
    value: int  # of a varint; 0 otherwise
    tag: int
    start: int
    end: int


def read_varint(buffer: memoryview, pos: int, end: int) -> tuple[int, int]:
    """The varint at byte `pos` and the position after it.

    Raises EndsEarly if it runs past `end`, FormatError if it is longer than 10 bytes or exceeds 64 bits.
    """
    value = 0
    for i in range(10):
        if pos + i >= end:
            raise EndsEarly(f"byte {pos}: the data end inside a number")
        byte = buffer[pos + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if value >= 1 << 64:
                raise FormatError(f"byte {pos}: a number of more than 64 bits; is this a .caffemodel?")
            return value, pos + i + 1
    raise FormatError(f"byte {pos}: a number longer than 10 bytes; is this a .caffemodel?")


def read_tag(buffer: memoryview, pos: int, end: int) -> tuple[int, int, int]:
    """Field number, wire type and the position after the tag at byte `pos`."""
    tag, start = read_varint(buffer, pos, end)
    number, wire = tag >> 3, tag & 7
    if not 1 <= number <= MAX_FIELD_NUMBER or wire > FIXED32:
        raise FormatError(f"byte {pos}: no protobuf field starts here (number {number}, wire type {wire})")
    return number, wire, start


def read_field(buffer: memoryview, pos: int, end: int) -> Field:
    """The field whose tag is at byte `pos`; it must lie before `end`."""
    number, wire, start = read_tag(buffer, pos, end)
    if wire == VARINT:
        value, stop = read_varint(buffer, start, end)
        return Field(number, wire, value, pos, start, stop)
    if wire == LENGTH:
        length, start = read_varint(buffer, start, end)
        stop = start + length
    elif wire == GROUP:
        stop = _end_of_group(buffer, pos, end)
    elif wire == END_GROUP:
        raise FormatError(f"byte {pos}: end of a group that was never opened; is this a .caffemodel?")
    else:
        stop = start + (8 if wire == FIXED64 else 4)
    if stop > end:
        raise EndsEarly(f"byte {pos}: field {number} takes {stop - start:,} bytes, but only {end - start:,} are left")
    return Field(number, wire, 0, pos, start, stop)


def fields(buffer: memoryview, pos: int, end: int) -> Iterator[Field]:
    """The fields of the message that lies in buffer[pos:end]."""
    while pos < end:
        field = read_field(buffer, pos, end)
        yield field
        pos = field.end


def run_of_fixed(buffer: memoryview, field: Field, end: int) -> int:
    """How many records with the very tag and size of `field` stand one after the other from it on.

    A repeated float that is not packed is one record (tag, 4 bytes) for each value, millions in an old file.
    """
    tag, size = bytes(buffer[field.tag : field.start]), field.end - field.tag
    if bytes(buffer[field.end : field.end + len(tag)]) != tag:
        return 1
    count, longest = 1, (end - field.tag) // size
    step = 16
    while count < longest:  # doubles its stride, so that a short run in a large file stays cheap
        step = min(step * 2, longest - count)
        first = field.tag + count * size
        records = np.frombuffer(buffer, np.uint8, step * size, first).reshape(step, size)
        same = (records[:, : len(tag)] == np.frombuffer(tag, np.uint8)).all(axis=1)
        if not same.all():
            return count + int(same.argmin())
        count += step
    return count


def encode_varint(value: int) -> bytes:
    """`value`, 0 to 2^64 - 1, as a varint."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_field(number: int, wire: int, payload: bytes | memoryview) -> bytes:
    """A field; `payload` is the varint, the fixed bytes, or the content that a length announces."""
    length = encode_varint(len(payload)) if wire == LENGTH else b""
    return encode_varint(number << 3 | wire) + length + bytes(payload)


def _end_of_group(buffer: memoryview, pos: int, end: int) -> int:
    """The position after the group whose start tag is at byte `pos`; by a list, so that no nesting is too deep."""
    open_groups: list[int] = []
    while True:
        number, wire, start = read_tag(buffer, pos, end)
        if wire == GROUP:
            open_groups.append(number)
            pos = start
        elif wire == END_GROUP:
            if number != open_groups.pop():
                raise FormatError(f"byte {pos}: end of group {number}, which is not the one that is open")
            if not open_groups:
                return start
            pos = start
        else:
            pos = read_field(buffer, pos, end).end
