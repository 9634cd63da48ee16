"""Writes an ONNX model to disk: initializers straight from the arrays that hold them, and files whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

Array = np.ndarray[Any, Any]
Initializer = tuple[str, tuple[int, ...], Callable[[], Array]]  # name, dims, and its values when they are needed
LIMIT = 2**31 - 2**20  # bytes that one protobuf file may have, less some room for names
PAGE = 4096  # external data start at whole pages, so that a reader can map them
GRAPH = (7 << 3) | 2  # wire tags: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data
INITIALIZER = (5 << 3) | 2
RAW_DATA = (9 << 3) | 2


def write_model(
    path: Path, model: Any, initializers: list[Initializer], facts: Callable[[], dict[str, str]] = dict
) -> None:
    """Write the ModelProto `model` with these initializers, which it lacks; `facts` are asked for at the end.

    Beyond 2 GiB the large arrays go to a second file, `<name>.data`, beside it.
    """
    graph = model.graph.SerializeToString(deterministic=True)
    head = type(model)()
    head.CopyFrom(model)
    head.ClearField("graph")
    total = sum(_size(values) for _, _, values in initializers)
    external = len(graph) + total > LIMIT
    with path.open("wb") as file:
        data = path.with_name(path.name + ".data").open("wb") if external else None
        try:
            tensors = [_tensor(*initializer, data) for initializer in initializers]
            length = len(graph) + sum(1 + len(_varint(size)) + size for _, _, size in tensors)
            file.write(head.SerializeToString(deterministic=True) + bytes([GRAPH]) + _varint(length) + graph)
            for header, values, size in tensors:
                file.write(bytes([INITIALIZER]) + _varint(size) + header)
                if values is not None:
                    _write(file, values())
            tail = type(model)()
            for key, value in facts().items():
                tail.metadata_props.add(key=key, value=value)
            file.write(tail.SerializeToString(deterministic=True))
        finally:
            if data:
                data.close()


def _tensor(
    name: str, dims: tuple[int, ...], values: Callable[[], Array], data: IO[bytes] | None
) -> tuple[bytes, Callable[[], Array] | None, int]:
    """A TensorProto: the bytes before its values, the values unless they went to `data`, and its size in bytes."""
    import onnx

    array = values()
    proto = onnx.TensorProto(name=name, dims=dims, data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
    if data is not None and array.nbytes >= PAGE:
        data.write(bytes(-data.tell() % PAGE))
        entries = {"location": Path(data.name).name, "offset": data.tell(), "length": array.nbytes}
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            proto.external_data.add(key=key, value=str(value))
        _write(data, array)
        header = proto.SerializeToString(deterministic=True)
        return header, None, len(header)
    header = proto.SerializeToString(deterministic=True) + bytes([RAW_DATA]) + _varint(array.nbytes)
    return header, values, len(header) + array.nbytes


def _size(values: Callable[[], Array]) -> int:
    return values().nbytes


def _write(file: IO[bytes], array: Array) -> None:
    """The array's bytes, little-endian, without a copy where it lies in memory so."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    file.write(little.reshape(-1).view(np.uint8).data)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
