"""Caffe's files: `read` gives the net and the arrays of any of them, `read_mean` a mean image."""

from caffeport.errors import FormatError

from .binary import read_binary
from .blob import read_blob
from .forks import fork_of
from .hdf5 import read_hdf5
from .mean import MeanImage, looks_like_mean, read_mean
from .model_file import ModelFile, StoredBlob, StoredLayer, Weights
from .schema import Message, NetParameter
from .source import HDF5_MAGIC, Readable, Source, open_source, refuse_binary, refuse_known, refuse_text
from .text import parse_text
from .upgrade import upgrade

__all__ = [
    "MeanImage",
    "ModelFile",
    "Readable",
    "StoredBlob",
    "StoredLayer",
    "Weights",
    "looks_like_mean",
    "read",
    "read_mean",
]


def read(source: Readable, *, salvage: bool = False) -> ModelFile:
    """Read a Caffe net or weights file: text, binary or HDF5, told apart by content, never by name.

    source   a path, bytes, or an open binary file
    salvage  take the whole layers of a binary file that ends early, with a warning, instead of FormatError
    Raises FormatError, which says what the file is where it is not one of these.
    """
    opened = open_source(source)
    if opened.head.startswith(HDF5_MAGIC):
        return read_hdf5(opened)
    refuse_known(opened)
    if opened.is_text:
        refuse_text(opened)
        return _read_text(opened)
    refuse_binary(opened)
    return read_binary(opened.buffer, opened.path, salvage=salvage, mapped=opened.mapped)


def _read_text(source: Source) -> ModelFile:
    net = NetParameter()
    warnings = parse_text(bytes(source.buffer), net, source.path)
    if not (net.layer or net.layers or net.input):
        raise FormatError(f"{source.path}: no layers and no inputs in this text; expected a net (prototxt)")
    net, form, upgrade_warnings = upgrade(net, source.path)
    return ModelFile(
        source.path, f"{form} text", net, _take_blobs(net, source.path), warnings + upgrade_warnings, fork_of(net)
    )


def _take_blobs(net: Message, path: str) -> Weights | None:
    """Move the arrays that a text net holds out of its message."""
    stored = []
    for layer in net.layer:
        blobs = []
        for index, blob in enumerate(layer.blobs):
            data = blob.SerializeToString()
            try:
                blobs.append(read_blob(memoryview(data), 0, len(data)))
            except FormatError as error:
                raise FormatError(f"{path}: layer {layer.name!r} ({layer.type}): blob {index}: {error}") from error
        if blobs:
            stored.append(StoredLayer(layer.name, layer.type, tuple(blobs)))
            layer.ClearField("blobs")
    return Weights(stored) if stored else None
