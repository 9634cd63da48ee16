"""Mean images: what Caffe subtracts from a picture before the net sees it.

`.binaryproto` is Caffe's own (a BlobProto); `.npy` is what pycaffe's users keep; `.mat` is matcaffe's.
"""

import io
import warnings
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from caffeport.errors import FormatError

from .blob import read_blob
from .model_file import Array
from .source import Readable, Source, is_mean, open_source, refuse_known

_NPY_MAGIC, _MAT_MAGIC = b"\x93NUMPY", b"MATLAB 5.0"
_CHANNELS = (1, 3, 4)
_OLD_DEMO = "image_mean"  # the variable in the first MATLAB demo's file, rows first; caffe.io.read_mean is width first


@dataclass(frozen=True)
class MeanImage:
    """A mean as the net counts its axes.

    array   float32, (C, H, W); (C,) for one value per channel; (C, L, H, W) for C3D's clips
    form    what the file is and what was done to it, in words for people
    """

    array: Array
    form: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __str__(self) -> str:
        return f"mean {' x '.join(map(str, self.shape))}: {self.form}"


def read_mean(source: Readable) -> MeanImage:
    """The mean in a .binaryproto, .npy or .mat file, told apart by content.

    Raises FormatError for anything else, and for shapes that are no mean.
    """
    opened = open_source(source)
    if opened.head.startswith(_NPY_MAGIC):
        return _from_npy(opened)
    if opened.head.startswith(_MAT_MAGIC):
        return _from_mat(opened)
    refuse_known(opened)
    return _from_binaryproto(opened)


def looks_like_mean(source: Readable) -> bool:
    """Whether the file is a mean rather than a net, by its first bytes."""
    opened = open_source(source)
    return opened.head.startswith((_NPY_MAGIC, _MAT_MAGIC)) or (not opened.is_text and is_mean(opened))


def _from_binaryproto(source: Source) -> MeanImage:
    if not is_mean(source):
        raise FormatError(f"{source.path}: expected a mean: a BlobProto (.binaryproto), .npy or .mat")
    try:
        blob = read_blob(source.buffer, 0, len(source.buffer))
    except FormatError as error:
        raise FormatError(f"{source.path}: {error}") from error
    array = _float32(blob.array)
    if array.ndim == 5:
        return MeanImage(_first(array, source), "binaryproto of C3D v1.0, channels x length x height x width")
    if array.ndim == 4:
        return MeanImage(_first(array, source), "binaryproto, channels x height x width")
    if array.ndim in (1, 3):
        return MeanImage(array, "binaryproto, one value per channel" if array.ndim == 1 else "binaryproto")
    raise FormatError(f"{source.path}: a mean of shape {_shown(array)}; expected (1, C, H, W), (C, H, W) or (C,)")


def _from_npy(source: Source) -> MeanImage:
    stream = io.BytesIO(source.buffer)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        left = len(source.buffer) - stream.tell()
        if dtype.kind not in "fiu":
            raise FormatError(f"{source.path}: values of type {dtype}; expected numbers")
        if prod(shape) * dtype.itemsize > left:  # before numpy allocates what the header claims
            raise FormatError(f"{source.path}: shape {shape} of {dtype} does not fit the {left:,} bytes that follow")
        stream.seek(0)
        with warnings.catch_warnings(action="ignore"):
            array = np.load(stream, allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, OverflowError) as error:
        raise FormatError(f"{source.path}: not a whole .npy file ({error})") from error
    return _arranged(array, source, f"numpy array {array.shape} of {array.dtype}")


def _from_mat(source: Source) -> MeanImage:
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings(action="ignore"):
            variables = loadmat(io.BytesIO(source.buffer))
    except Exception as error:  # scipy promises no set of errors for damaged files; zlib's and struct's come through
        raise FormatError(f"{source.path}: not a .mat file that can be read ({error})") from error
    arrays = {name: value for name, value in variables.items() if not name.startswith("__")}
    if len(arrays) != 1:
        raise FormatError(f"{source.path}: {len(arrays)} variables ({', '.join(sorted(arrays))}); expected one array")
    ((name, value),) = arrays.items()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise FormatError(f"{source.path}: variable {name!r} holds no numbers; expected one array of numbers")
    what = f"MATLAB variable {name!r} {value.shape}"
    rows_first = name == _OLD_DEMO or value.ndim != 3 or value.shape[0] in _CHANNELS
    if not rows_first and value.shape[2] in _CHANNELS:
        array = np.ascontiguousarray(_float32(value).transpose(2, 1, 0))
        return MeanImage(array, f"{what}, read as width x height x channels, as matcaffe keeps it, blue first")
    return _arranged(np.squeeze(value) if value.ndim == 2 else value, source, what)


def _arranged(array: Array, source: Source, what: str) -> MeanImage:
    """`array` as (C, H, W) or (C,), by which of its axes can be the channels."""
    array = _float32(array)
    if array.ndim in (4, 5) and array.shape[0] == 1:
        return MeanImage(array[0], f"{what}, its first axis of 1 dropped")
    if array.ndim == 1 and array.size in _CHANNELS:
        return MeanImage(array, f"{what}, one value per channel")
    if array.ndim == 3 and array.shape[0] in _CHANNELS:
        return MeanImage(array, f"{what}, channels x height x width")
    if array.ndim == 3 and array.shape[2] in _CHANNELS:
        moved = np.ascontiguousarray(array.transpose(2, 0, 1))
        return MeanImage(moved, f"{what}, read as height x width x channels")
    if array.ndim == 4 and array.shape[0] in _CHANNELS:
        return MeanImage(array, f"{what}, channels x length x height x width, as for C3D's clips")
    raise FormatError(f"{source.path}: {what} is no mean; expected (C, H, W), (1, C, H, W), (H, W, C) or (C,)")


def _float32(array: Array) -> Array:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        return array.astype(np.float32)


def _first(array: Array, source: Source) -> Any:
    if array.shape[0] != 1:
        raise FormatError(f"{source.path}: a mean of shape {_shown(array)}; expected one picture, so num 1")
    return array[0]


def _shown(array: Array) -> str:
    return " x ".join(map(str, array.shape))
