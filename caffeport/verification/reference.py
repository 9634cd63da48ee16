"""Arrays to compare with: `in::BLOB` what was fed, `LAYER::TOP` what a layer wrote, `BLOB` a blob at the end of the
run.

They come from an .npz file, a mapping, Caffe itself in another Python, OpenCV or onnxruntime. An .npz is
read array by array, so that a reference larger than memory can be used; shapes are compared with the net's before
anything is allocated.
"""

import os
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from ..errors import InputError, ReferenceMismatch
from ..graph import Graph, Value
from ..layers import Shape, text

Array = np.ndarray[Any, Any]
SHOWN = 8


class _Source(Protocol):
    """Arrays by name, their shapes known without reading them."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[Any]]
    checks: dict[str, tuple[int, int]]  # arrays with the same are the same; empty where that is not known

    def read(self, key: str) -> Array: ...


class _Mapping:
    """Arrays that are in memory already."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.arrays = {str(key): _array(key, array) for key, array in arrays.items()}
        self.dtypes = {key: array.dtype for key, array in self.arrays.items()}
        self.shapes = {key: array.shape for key, array in self.arrays.items()}
        self.checks: dict[str, tuple[int, int]] = {}

    def read(self, key: str) -> Array:
        return self.arrays[key]


class _Npz:
    """An .npz file, open: headers are read at once, arrays when asked for. Never unpickles."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except FileNotFoundError as error:
            raise ReferenceMismatch(f"{path}: no such file") from error
        except Exception as error:  # of zipfile, zlib, lzma and NumPy's parser: their errors have no class in common
            raise ReferenceMismatch(f"{path}: cannot be read as an .npz file: {error}") from error
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype[Any]] = {}
        self.checks: dict[str, tuple[int, int]] = {}  # size and CRC-32 of each member, header and all
        for info in self.archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            key = info.filename[: -len(".npy")]
            try:
                with self.archive.open(info) as member:
                    shape, _, dtype = self._header(member)
            except Exception as error:
                raise ReferenceMismatch(f"{path}: array {key!r} cannot be read: {error}") from error
            _check_dtype(str(path), key, dtype)
            if info.file_size < prod(shape) * dtype.itemsize:
                raise ReferenceMismatch(
                    f"{path}: array {key!r} ends early: {text(shape)} values declared, {info.file_size:,} bytes there"
                )
            self.shapes[key], self.dtypes[key] = shape, dtype
            self.checks[key] = info.file_size, info.CRC

    @staticmethod
    def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(member)

    def read(self, key: str) -> Array:
        try:
            with self.archive.open(f"{key}.npy") as member:
                return np.lib.format.read_array(member, allow_pickle=False)
        except Exception as error:
            raise ReferenceMismatch(f"{self.path}: array {key!r} cannot be read: {error}") from error


def _array(key: str, given: Any) -> Array:
    try:
        array = given.detach().cpu().numpy() if hasattr(given, "detach") else np.asarray(given)
    except (TypeError, ValueError) as error:
        raise ReferenceMismatch(f"the reference: {key!r} is no array of numbers: {error}") from error
    _check_dtype("the reference", key, array.dtype)
    return array


def _check_dtype(place: str, key: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "fiub":
        raise ReferenceMismatch(f"{place}: array {key!r} is of type {dtype}; numbers are wanted")


@dataclass
class Reference:
    """Where the arrays come from, and what is known of that place.

    origin  in words, for the report
    faults  layer key -> a known fault of this source there: a difference is put down to it and does not fail
    notes   sentences for the report
    close_too  what else ends when it is closed, such as a temporary folder
    """

    origin: str
    source: _Source
    faults: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    close_too: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def open(cls, reference: "Reference | str | os.PathLike[str] | Mapping[str, Any]") -> "Reference":
        if isinstance(reference, Reference):
            return reference
        if isinstance(reference, Mapping):
            return cls("arrays in memory", _Mapping(reference))
        if not isinstance(reference, str | os.PathLike):
            raise InputError(
                f"a reference is an .npz file, a mapping of arrays, or caffe:PYTHON, opencv or onnx:FILE; "
                f"got {type(reference).__name__}"
            )
        return cls(Path(reference).name, _Npz(Path(reference)))

    def __enter__(self) -> "Reference":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self.source, _Npz):
            self.source.archive.close()
        self.close_too.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.source.shapes

    @cached_property
    def short(self) -> dict[str, str]:
        """Arrays by name whose type does not hold the float32 numbers that Caffe computes, and that type."""
        long = (np.float32, np.float64, np.longdouble)
        return {key: str(dtype) for key, dtype in self.source.dtypes.items() if dtype.type not in long}

    def read(self, key: str) -> Array:
        """The array as float32, row-major, to be read only: it may be the caller's own."""
        array = self.source.read(key)
        if array.dtype == np.float32 and array.flags.carray:
            return array
        with np.errstate(over="ignore"):
            # torch takes writable arrays alone without a warning.
            return np.require(array, np.float32, ["C", "W"]).reshape(array.shape)

    def alike(self, a: str, b: str) -> bool:
        """Whether two arrays have the same numbers, as far as both reach; NaN equals itself."""
        checks = self.source.checks
        if a in checks and checks[a] == checks.get(b):
            return True
        x, y = self.read(a).reshape(-1), self.read(b).reshape(-1)
        n = min(x.size, y.size)
        x, y = x[:n], y[:n]
        return np.array_equal(x.view(np.int32), y.view(np.int32)) or np.array_equal(x, y, equal_nan=True)

    def inputs(self, graph: Graph) -> dict[str, Array]:
        """What was fed, by blob name: `in::BLOB`, or the blob itself where no layer changes it."""
        fed = {}
        for value in graph.inputs:
            keys = [f"in::{value.blob}", value.key]
            if graph.blobs[value.blob].value is value:
                keys.append(value.blob)
            key = next((key for key in keys if key in self.shapes), None)
            if key is not None:
                fed[value.blob] = self.read(key)
        return fed


@dataclass(frozen=True)
class Stored:
    """Where the reference keeps one value. `items`: how many of the batch, where it is not all."""

    key: str
    items: int | None = None


def match(reference: Reference, graph: Graph, shapes: Mapping[Value, Shape]) -> dict[Value, Stored]:
    """Which values of the net the reference holds. `shapes`: of all values, for the inputs that were fed.

    Raises ReferenceMismatch, with all arrays that do not fit, where names or shapes are another net's or another
    input's.
    """
    found: dict[Value, Stored] = {}
    problems = []
    for value, keys in _names(graph).items():
        key = next((key for key in keys if key in reference.shapes), None)
        if key is None or value not in shapes:
            continue
        got, wanted = reference.shapes[key], shapes[value]
        if fits(got, wanted):
            found[value] = Stored(key)
        elif got and wanted and len(got) == len(wanted) and fits(got[1:], wanted[1:]) and 0 < got[0] < (wanted[0] or 0):
            found[value] = Stored(key, got[0])
        else:
            problems.append(f"{key!r} is {text(got)}, the net gives {text(wanted)}")
    if not found and not problems and len(unknown(reference, graph)) == len(reference.shapes):
        held = ", ".join(map(repr, list(reference.shapes)[:SHOWN])) or "nothing"
        wanted_names = ", ".join(repr(top.key) for step in graph.steps[:3] for top in step.tops)
        raise ReferenceMismatch(
            f"{reference.origin}: holds no array of this net; it holds {held}; wanted are layer::top or "
            f"blob names such as {wanted_names}"
        )
    if problems:
        listed = "\n  ".join(problems[:SHOWN]) + (
            f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        )
        fed = ", ".join(f"{value.blob} {text(shapes[value])}" for value in graph.inputs if value in shapes)
        raise ReferenceMismatch(
            f"{reference.origin}: {len(problems)} of {len(problems) + len(found)} arrays have another "
            f"shape than this net gives for "
            f"the input {fed}:\n  {listed}\nIs it of another net, another input size or another batch?"
        )
    return found


def fits(got: tuple[int, ...], wanted: Shape) -> bool:
    return len(got) == len(wanted) and all(w is None or g == w for g, w in zip(got, wanted, strict=True))


def _names(graph: Graph) -> dict[Value, list[str]]:
    """For each value that a layer wrote, the keys under which a reference may hold it."""
    names = {top: [top.key] for step in graph.steps for top in step.tops}
    for blob, operand in graph.blobs.items():
        if operand.like is None and operand.value in names:
            names[operand.value].append(blob)
    return names


def unknown(reference: Reference, graph: Graph) -> list[str]:
    """Keys of the reference that mean nothing in this net."""
    known = {key for keys in _names(graph).values() for key in keys} | set(graph.blobs)
    known |= {name for value in graph.inputs for name in (value.key, f"in::{value.blob}")}
    return sorted(set(reference.shapes) - known)
