"""Where a file's bytes come from, and what they are when they are not a Caffe model."""

import mmap
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from caffeport.errors import FormatError

from .wire import FIXED32, LENGTH, VARINT, Field, fields

Readable = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

# What people give by mistake: first bytes, and what the file then is.
_MAGIC = [
    (b"PK\x03\x04", "a zip archive (PyTorch's .pth and .pt are such): expected the Caffe file itself, so unpack it"),
    (b"\x1f\x8b", "gzip data: unpack it first"),
    (b"BZh", "bzip2 data: unpack it first"),
    (b"\xfd7zXZ", "xz data: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"Rar!", "a rar archive: unpack it first"),
    (b"version https://git-lfs", "a git-LFS pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"\x93NUMPY", "a numpy array; expected a Caffe model (a mean may be .npy)"),
    (b"MATLAB 5.0", "a MATLAB file; expected a Caffe model (a mean may be .mat)"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"%PDF", "a PDF document"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
]
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|!--|html|head|\?xml)", re.IGNORECASE)
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<")  # a binary net whose name has 60 letters begins so too, a text never
_JSON = re.compile(rb"(?:\xef\xbb\xbf)?\s*[{\[]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_SOLVER = re.compile(
    rb"^(?:\xef\xbb\xbf)?\s*(?:train_net|test_net|net|base_lr|lr_policy|max_iter|solver_mode|snapshot_prefix|test_iter)\s*:",
    re.MULTILINE,
)
_SOLVER_NET = re.compile(rb"""^(?:\xef\xbb\xbf)?\s*(?:train_)?net\s*:\s*["']([^"'\n]*)["']""", re.MULTILINE)
_LABEL_MAP = re.compile(rb"^\s*item\s*:?\s*\{", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A whole file in memory or memory-mapped, read-only.

    path    the name to show in messages
    mapped  the map behind `buffer`, where the file is mapped
    """

    buffer: memoryview
    path: str
    mapped: mmap.mmap | None = None

    @property
    def head(self) -> bytes:
        """The first 64 KiB."""
        return bytes(self.buffer[:65536])

    @property
    def is_text(self) -> bool:
        """Text has no control characters; every binary net has some, since field numbers and lengths are such."""
        return _CONTROL.search(self.buffer) is None


def open_source(source: Readable) -> Source:
    """The bytes of a path (mapped), of bytes, or of an open binary file (read to its end).

    Raises FormatError for what cannot be read or is empty, TypeError for any other kind of object.
    """
    mapped = None
    if isinstance(source, (bytes, bytearray, memoryview)):
        buffer = memoryview(source).toreadonly().cast("B")
        path = f"<{len(buffer):,} bytes>"
    elif isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        mapped = _map(Path(path))
        buffer = memoryview(mapped)
    elif hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise TypeError(f"an open file must give bytes, not {type(data).__name__}: open it in mode 'rb'")
        path, buffer = str(getattr(source, "name", "<open file>")), memoryview(data)
    else:
        raise TypeError(f"expected a path, bytes or an open binary file, not {type(source).__name__}")
    if not buffer:
        raise FormatError(f"{path}: the file is empty")
    return Source(buffer, path, mapped)


def refuse_known(source: Source) -> None:
    """Raise FormatError, with what the file is, for a file that is surely neither a net, nor weights, nor a mean."""
    head = source.head
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise FormatError(f"{source.path}: this is {what}")
    if _PICKLE.match(head):
        raise FormatError(f"{source.path}: this is a Python pickle (old .pth files are such); expected a Caffe file")
    if _HTML.match(head):
        raise FormatError(f"{source.path}: this is an HTML page, not the file itself: download the raw file")


def refuse_text(source: Source) -> None:
    """Raise FormatError for text files of Caffe's that are not nets."""
    head = source.head
    if _SOLVER.search(head):
        named = _SOLVER_NET.search(head)
        net = "give the net it trains"
        if named:
            path = named[1].decode(errors="replace").replace("\\\\", "\\")
            net = f"its net is {path!r}: give that file"
        raise FormatError(f"{source.path}: this is a solver, not a net; {net}")
    if _MARKUP.match(head):
        raise FormatError(f"{source.path}: this is a page of markup, not a Caffe file: download the raw file")
    if _JSON.match(head):
        raise FormatError(f"{source.path}: this is JSON, not a Caffe file; failed downloads are often such")
    if _LABEL_MAP.search(head) and b"layer" not in head:
        raise FormatError(f"{source.path}: this is a label map, not a net")


def refuse_binary(source: Source) -> None:
    """Raise FormatError for protobuf files that are not nets, told by the wire types of their first fields."""
    if is_mean(source):
        raise FormatError(f"{source.path}: this is a mean file (BlobProto), not a net: give it as the mean (--mean)")
    seen = _first_wires(source)
    if seen.get(1) == VARINT and seen.keys() & {7, 8, 14}:
        raise FormatError(f"{source.path}: this is an ONNX model; expected a Caffe file")
    if seen.get(1) == VARINT:
        names = [
            bytes(source.buffer[f.start : f.end]) for f in _first_fields(source) if f.number == 2 and f.wire == LENGTH
        ]
        weights = f"; the weights are in {names[0].decode(errors='replace')!r}" if names else ""
        raise FormatError(f"{source.path}: this is a solver's state (.solverstate), not weights{weights}")


def is_mean(source: Source) -> bool:
    """Whether the bytes are a BlobProto, by the wire types of its fields.

    A NetParameter has texts and messages where a BlobProto has num, channels and height, and a bool in place
    of `data`; a SolverState and an ONNX model have a text in field 2.
    """
    seen = _first_wires(source)
    if LENGTH in (seen.get(1), seen.get(2), seen.get(3)):
        return False
    has_data = seen.get(5) in (LENGTH, FIXED32)
    is_c3d = 6 in seen and all(seen.get(number) == VARINT for number in range(1, 6))
    has_shape = VARINT in (seen.get(2), seen.get(3)) or (seen.get(7) == LENGTH and 1 not in seen)
    return has_data or is_c3d or (has_shape and bool(seen.keys() & {8, 12}))


def _first_fields(source: Source, limit: int = 64) -> list[Field]:
    """The first fields, as far as they parse."""
    found: list[Field] = []
    with suppress(FormatError):
        found.extend(islice(fields(source.buffer, 0, len(source.buffer)), limit))
    return found


def _first_wires(source: Source) -> dict[int, int]:
    """The wire types of the first fields, by field number."""
    return {field.number: field.wire for field in reversed(_first_fields(source))}


def _map(path: Path) -> mmap.mmap:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise FormatError(f"{path}: this is a directory; expected a file")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise FormatError(f"{path}: not a regular file; read it first and pass the bytes")
        if not status.st_size:
            raise FormatError(f"{path}: the file is empty")
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        slashes = Path(str(path).replace("\\", "/"))
        hint = f"; did you mean {str(slashes)!r}?" if slashes != path and slashes.is_file() else ""
        raise FormatError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}{hint}") from error
