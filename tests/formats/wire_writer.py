"""Writes protobuf's wire format by hand, right or wrong, for tests of the readers."""

import struct
from collections.abc import Iterable


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(content)) + content


def text(field: int, value: str) -> bytes:
    return message(field, value.encode())


def packed(field: int, values: Iterable[float], kind: str = "f") -> bytes:
    return message(field, b"".join(struct.pack(f"<{kind}", value) for value in values))


def unpacked(field: int, values: Iterable[float], kind: str = "f") -> bytes:
    tag = varint(field << 3 | (1 if kind == "d" else 5))
    return b"".join(tag + struct.pack(f"<{kind}", value) for value in values)


def shape(*dims: int) -> bytes:
    return message(7, message(1, *(varint(dim) for dim in dims)))


def legacy(*dims: int) -> bytes:
    return b"".join(number(field, dim) for field, dim in enumerate(dims, 1))


def v2_layer(name: str, type_: str, *fields: bytes) -> bytes:
    return message(100, text(1, name), text(2, type_), *fields)


def v1_layer(name: str, type_: int, *fields: bytes) -> bytes:
    return message(2, text(4, name), number(5, type_), *fields)
