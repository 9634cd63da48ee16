"""What reading any Caffe file gives: the net in V2 form, the stored arrays, and what the file is."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np

from .schema import Message

Array = np.ndarray


@dataclass(frozen=True)
class StoredBlob:
    """One array of a weights file, as the file shapes it.

    array   read-only; float32, or float64 and float16 where the file stores those; a view of the file where it can be
    legacy  the file gave num, channels, height, width; Caffe aligns these four at the end of the wanted shape
    """

    array: Array
    legacy: bool = False

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether Caffe would load this array into a blob of `shape` (Blob::ShapeEquals)."""
        if self.legacy:
            axes = self.array.ndim  # 4; 5 in files of C3D v1.0
            return len(shape) <= axes and (1,) * (axes - len(shape)) + shape == self.array.shape
        # A scalar's blob has no dimensions in the file, or one of 1 where a fork wrote it.
        return self.array.shape == shape

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@dataclass(frozen=True)
class StoredLayer:
    """One layer of a weights file.

    type     in V2 words; "" in HDF5 files, which do not say it
    blobs    its arrays, in order
    span     the bytes that it takes up in the file
    places   which of the layer's blobs these are, where some are missing (HDF5 leaves out what an earlier layer
             shares); None: 0, 1, ...
    reshaped the caller asked for the values in their order, whatever shape the net wants
    """

    name: str
    type: str
    blobs: tuple[StoredBlob, ...]
    span: tuple[int, int] | None = None
    places: tuple[int, ...] | None = None
    reshaped: bool = False


@dataclass
class Weights:
    """All layers of a weights file that hold arrays, in file order; names may repeat (the last one counts)."""

    layers: list[StoredLayer]
    buffer: mmap.mmap | None = None

    def by_name(self) -> dict[str, StoredLayer]:
        return {layer.name: layer for layer in self.layers}

    def release(self, part: Array) -> None:
        """Give back the pages of `part`, a contiguous view of the map that has been copied."""
        if self.buffer is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = (
            part.__array_interface__["data"][0] - np.frombuffer(self.buffer, np.uint8).__array_interface__["data"][0]
        )
        if not 0 <= start <= len(self.buffer) - part.nbytes:
            return  # not a view of the map: an array put together from pieces
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (start + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            self.buffer.madvise(mmap.MADV_DONTNEED, first, length)

    def __iter__(self) -> Iterator[StoredLayer]:
        return iter(self.layers)

    @property
    def count(self) -> int:
        """Number of stored values."""
        return sum(prod(blob.shape) for layer in self.layers for blob in layer.blobs)


@dataclass
class ModelFile:
    """A Caffe file, read.

    path      the name to show in messages
    form      what it is, in words for people: "V1 text", "V2 binary", "HDF5 weights", ...
    net       NetParameter in V2 form, before phase rules; None where the file holds arrays only (HDF5)
    weights   the stored arrays; None where there are none
    warnings  sentences, each with its place in the file
    fork      the fork whose types or fields the file has, or None for plain BVLC
    """

    path: str
    form: str
    net: Message | None = None
    weights: Weights | None = None
    warnings: list[str] = field(default_factory=list)
    fork: str | None = None
