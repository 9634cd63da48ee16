"""One BlobProto of a binary file as an array; its values are not copied where they lie in one piece.

    num 1, channels 2, height 3, width 4   the shape in old files; wins over `shape` where any is present
    data 5, double_data 8                  values, packed or not, in any number of pieces
    shape 7                                BlobShape: dim 1
    raw_data_type 10, raw_data 12          NVIDIA Caffe's
    diff 6, double_diff 9, raw_diff 11, 13 gradients, ignored

C3D v1.0 counted otherwise: num, channels, length, height, width 1 to 5, data 6, diff 7. Its field 5 is then
a varint, which no other Caffe writes. Source: caffe.proto of BVLC Caffe 1.0, of NVIDIA Caffe 0.17 and of C3D v1.0.
"""

from dataclasses import dataclass, field
from math import prod

import numpy as np

from caffeport.errors import FormatError

from .model_file import Array, StoredBlob
from .wire import FIXED32, FIXED64, LENGTH, VARINT, Field, read_field, read_varint, run_of_fixed
from .wire import fields as walk

MAX_AXES = 32  # Caffe's kMaxBlobAxes
MAX_DIM = 2**31 - 1
_RAW_TYPES = {0: "<f8", 1: "<f4", 2: "<f2"}  # DOUBLE, FLOAT, FLOAT16


@dataclass(frozen=True)
class _Piece:
    """`count` values in the file: packed (stride = the value's size), or with a tag before each."""

    start: int
    count: int
    stride: int


@dataclass
class _Contents:
    """What the fields of one BlobProto say, before they are judged together."""

    integers: dict[int, int] = field(default_factory=dict)
    pieces: dict[int, list[_Piece]] = field(default_factory=lambda: {5: [], 6: [], 8: []})
    shapes: list[Field] = field(default_factory=list)
    raw: Field | None = None


def read_blob(buffer: memoryview, start: int, end: int) -> StoredBlob:
    """The blob whose bytes are buffer[start:end].

    Raises FormatError where shape and number of values disagree; before anything is allocated.
    """
    contents = _read_fields(buffer, start, end)
    shape, legacy = _shape(buffer, contents)
    if any(not 1 <= dim <= MAX_DIM for dim in shape):
        raise FormatError(f"shape {_shown(shape)}: each dimension must be 1 to {MAX_DIM:,}")
    pieces, dtype = _values(contents)
    count = sum(piece.count for piece in pieces)
    if count != prod(shape):
        raise FormatError(f"shape {_shown(shape)} asks for {prod(shape):,} values, but {count:,} are stored")
    return StoredBlob(_array(buffer, pieces, count, np.dtype(dtype)).reshape(shape), legacy)


def blob_fork(buffer: memoryview, start: int, end: int) -> str | None:
    """The fork that must have written the BlobProto in buffer[start:end]: "c3d", "nvcaffe", or None for any other."""
    contents = _read_fields(buffer, start, end)
    if 5 in contents.integers:
        return "c3d"
    return "nvcaffe" if contents.raw is not None else None


def _read_fields(buffer: memoryview, start: int, end: int) -> _Contents:
    contents = _Contents()
    pos = start
    while pos < end:
        field = read_field(buffer, pos, end)
        pos = field.end
        size = 8 if field.number == 8 else 4
        if field.wire == VARINT:
            contents.integers[field.number] = _signed(field.value)
        elif field.wire == LENGTH and field.number == 7:
            contents.shapes.append(field)
        elif field.wire == LENGTH and field.number == 12:
            contents.raw = field
        elif field.wire == LENGTH and field.number in contents.pieces:
            count, rest = divmod(field.end - field.start, size)
            if rest:
                raise FormatError(
                    f"byte {field.tag}: {field.end - field.start:,} bytes are not a whole number of values"
                )
            contents.pieces[field.number].append(_Piece(field.start, count, size))
        elif field.wire in (FIXED32, FIXED64):
            count, stride = run_of_fixed(buffer, field, end), field.end - field.tag
            pos = field.tag + count * stride
            if field.wire == (FIXED64 if size == 8 else FIXED32) and field.number in contents.pieces:
                contents.pieces[field.number].append(_Piece(field.start, count, stride))
    return contents


def _shape(buffer: memoryview, contents: _Contents) -> tuple[tuple[int, ...], bool]:
    """The declared shape, and whether it is given by numbers of their own (num, channels, ...)."""
    axes = range(1, 6) if 5 in contents.integers else range(1, 5)
    if any(axis in contents.integers for axis in axes):
        # Real Caffe takes an absent one as 0 and aborts; mean files made by a common snippet lack `num`.
        return tuple(contents.integers.get(axis, 1) for axis in axes), True
    dims: list[int] = []
    for message in contents.shapes:
        for dim in walk(buffer, message.start, message.end):
            if dim.number == 1 and dim.wire == VARINT:
                dims.append(_signed(dim.value))
            elif dim.number == 1 and dim.wire == LENGTH:
                pos = dim.start
                while pos < dim.end and len(dims) <= MAX_AXES:
                    value, pos = read_varint(buffer, pos, dim.end)
                    dims.append(_signed(value))
            if len(dims) > MAX_AXES:
                raise FormatError(f"byte {dim.tag}: a shape of more than {MAX_AXES} axes")
    return tuple(dims), False


def _values(contents: _Contents) -> tuple[list[_Piece], str]:
    """Where the values are, and their type. Caffe takes double_data before data; NVIDIA's raw_data comes last."""
    data = contents.pieces[6 if 5 in contents.integers else 5]
    if any(piece.count for piece in contents.pieces[8]):
        return contents.pieces[8], "<f8"
    if contents.raw is None or any(piece.count for piece in data):
        return data, "<f4"
    kind = contents.integers.get(10, 0)
    if kind not in _RAW_TYPES:
        raise FormatError(f"raw_data of type {kind}; only DOUBLE (0), FLOAT (1) and FLOAT16 (2) can be weights")
    size = np.dtype(_RAW_TYPES[kind]).itemsize
    count, rest = divmod(contents.raw.end - contents.raw.start, size)
    if rest:
        raise FormatError(f"byte {contents.raw.tag}: raw_data is not a whole number of {size}-byte values")
    return [_Piece(contents.raw.start, count, size)], _RAW_TYPES[kind]


def _array(buffer: memoryview, pieces: list[_Piece], count: int, dtype: np.dtype) -> Array:
    """The values of all pieces, flat and read-only; a view of the file where they are one packed piece."""
    size = dtype.itemsize
    pieces = [piece for piece in pieces if piece.count]
    if len(pieces) == 1 and pieces[0].stride == size:
        return np.frombuffer(buffer, dtype, count, pieces[0].start)
    joined = np.empty((count, size), np.uint8)
    filled = 0
    for piece in pieces:
        tag = piece.stride - size
        records = np.frombuffer(buffer, np.uint8, piece.count * piece.stride, piece.start - tag)
        joined[filled : filled + piece.count] = records.reshape(piece.count, piece.stride)[:, tag:]
        filled += piece.count
    array = joined.view(dtype).reshape(count)
    array.setflags(write=False)
    return array


def _signed(value: int) -> int:
    """A varint's 64 bits as the two's complement number that Caffe means."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"
