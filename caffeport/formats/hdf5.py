"""Caffe's HDF5 weights (.caffemodel.h5): group /data/<layer>, datasets "0", "1", ... with exact shapes.

A layer that shares a blob with an earlier one does not store it again, so its numbers can have gaps.
Source: BVLC Caffe 1.0, Net::ToHDF5 in src/caffe/net.cpp, src/caffe/util/hdf5.cpp.
"""

import io
from typing import Any

import numpy as np

from caffeport.errors import FormatError

from .model_file import Array, ModelFile, StoredBlob, StoredLayer, Weights
from .source import Source

MAX_DEFLATE = 1032  # deflate packs no better; more would be a file made to fill the memory


def read_hdf5(source: Source) -> ModelFile:
    """The arrays of an HDF5 weights file; there is no net in it.

    Raises FormatError for links and storage outside the file, for other than float and integer datasets,
    and for datasets that claim more bytes than the file can hold.
    """
    import h5py

    try:
        with h5py.File(source.path if source.mapped else io.BytesIO(source.buffer), "r") as file:
            layers = _read_layers(file, len(source.buffer))
    except FormatError as error:
        raise FormatError(f"{source.path}: {error}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        # h5py hands on the library's complaints as any of these.
        raise FormatError(f"{source.path}: a damaged or cut HDF5 file ({error})") from error
    return ModelFile(source.path, "HDF5 weights", None, Weights(layers))


def _read_layers(file: Any, size: int) -> list[StoredLayer]:
    import h5py

    learned = _member(file, "learned_net")
    if isinstance(learned, h5py.Dataset):
        known = learned.dtype.kind == "S" and learned.shape == () and learned.dtype.itemsize < 4096
        where = repr(learned[()].decode(errors="replace")) if known else "the .caffemodel.h5 that was written with it"
        raise FormatError(f"this is a solver's state (.solverstate.h5), not weights; the weights are in {where}")
    if not isinstance(_member(file, "data"), h5py.Group):
        raise FormatError("an HDF5 file without the group /data; expected Caffe's weights (Keras has others)")
    layers: list[StoredLayer] = []
    left = size
    for name in file["data"]:
        group = _member(file["data"], name)
        if not isinstance(group, h5py.Group):
            raise FormatError(f"/data/{name} is not a group; expected one group for each layer")
        places: list[int] = []
        blobs: list[StoredBlob] = []
        for place in sorted(_place(name, key) for key in group):
            dataset = _member(group, str(place))
            left -= _stored_bytes(dataset)
            if left < 0:
                raise FormatError(f"{dataset.name}: the datasets claim more bytes than the file has ({size:,})")
            places.append(place)
            blobs.append(StoredBlob(_array(dataset)))
        if blobs:
            gaps = places != list(range(len(places)))
            layers.append(StoredLayer(name, "", tuple(blobs), places=tuple(places) if gaps else None))
    return layers


def _member(group: Any, name: str) -> Any:
    """The object called `name` in `group`, None if there is none; it must lie in the file, not behind a link."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise FormatError(f"{group.name.rstrip('/')}/{name} is a link; only data in the file itself are read")
    return group[name]


def _place(layer: str, key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 4 and str(int(key)) == key):
        raise FormatError(f"/data/{layer}/{key}: expected datasets called 0, 1, ...")
    return int(key)


def _stored_bytes(dataset: Any) -> int:
    """The bytes that the dataset takes up in the file. FormatError if it is none that Caffe could have written."""
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise FormatError(f"{dataset.name} is not a dataset")
    if dataset.is_virtual or dataset.external:
        raise FormatError(f"{dataset.name}: its values lie in other files; only data in the file itself are read")
    if dataset.dtype.kind not in "fiu" or dataset.shape is None:
        raise FormatError(f"{dataset.name}: values of type {dataset.dtype}; expected floats or integers")
    stored = int(dataset.id.get_storage_size())
    if dataset.nbytes > stored * (MAX_DEFLATE if dataset.chunks else 1):
        raise FormatError(f"{dataset.name}: {dataset.nbytes:,} bytes declared, {stored:,} stored")
    return stored


def _array(dataset: Any) -> Array:
    """The values, read-only; float64 and float16 stay, all else becomes float32 as in Caffe."""
    dtype = dataset.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite; loading refuses that
        array = np.asarray(dataset[()], dtype if dtype in (np.float64, np.float16) else np.float32)
    array.setflags(write=False)
    return array
