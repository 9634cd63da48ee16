"""Binary .caffemodel files: the structure goes through protobuf, the arrays are found by walking the wire format.

A NetParameter holds its layers in field 100 (V2) or 2 (V1; each may wrap a V0 layer in its field 1). Blobs are
field 7 of a V2 layer, 6 of a V1 layer, 50 of a V0 layer. They never pass through protobuf, so nothing is copied
and no message limit (2 GiB, or 64 MB in some builds) applies.
Source: caffe.proto of BVLC Caffe 1.0.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from caffeport.errors import FormatError

from .blob import blob_fork, read_blob
from .forks import V0_BLOBS, RawLayer, fork_of, fork_of_layers, our_fields
from .model_file import ModelFile, StoredLayer, Weights
from .schema import Message, NetParameter
from .upgrade import upgrade
from .wire import GROUP, LENGTH, VARINT, EndsEarly, Field, fields, read_field, read_tag, read_varint

V2_LAYER, V1_LAYER = 100, 2
_NET_FIELDS = frozenset([1, 3, 4, 5, 6, 7, 8])  # all of NetParameter but the layers
_V2_NUMBERS = {"name": 1, "type": 2, "blobs": 7}
_V1_NUMBERS = {"name": 4, "type": 5, "blobs": 6}
_V0_NUMBERS = {"name": 1, "blobs": V0_BLOBS}
_V2_PARAMETERS = range(100, 1 << 29)  # sub-messages that a layer can do without
_V1_PARAMETERS = frozenset([*range(9, 32), 34, *range(36, 1000)])


@dataclass
class _Walked:
    """A NetParameter taken apart."""

    header: bytes = b""
    layers: list[tuple[int, RawLayer]] = field(default_factory=list)  # with the field number: 2 or 100
    lost: str | None = None  # where the file ends early


def read_binary(buffer: memoryview, path: str, *, salvage: bool = False, mapped: mmap.mmap | None = None) -> ModelFile:
    """The net and the arrays in `buffer`; the arrays are views of it.

    `mapped` is the memory map that `buffer` shows, if any. With `salvage`, a file that ends early gives the
    layers before its end and a warning; without, FormatError.
    """
    with _at(path):
        walked = _walk(buffer)
        if walked.lost is not None and not (salvage and walked.layers):
            raise FormatError(f"{walked.lost}; {_whole(walked.layers)}")
        net, fork, warnings = _parse(buffer, walked)
        if not (net.layer or net.layers or net.input):
            raise FormatError("no layers and no inputs in it; expected a NetParameter (.caffemodel)")
    if walked.lost is not None:
        last = walked.layers[-1][1]
        warnings.insert(
            0, f"{walked.lost}; lost: that and all after it; {len(walked.layers)} layers read, up to {last}"
        )
    net, form, upgrade_warnings = upgrade(net, path)
    types = {layer.name: layer.type for layer in net.layer}
    stored = [
        StoredLayer(layer.name, types.get(layer.name, ""), tuple(layer.blobs), layer.span)
        for _, layer in walked.layers
        if layer.blobs
    ]
    return ModelFile(
        path,
        f"{form} binary",
        net,
        Weights(stored, mapped) if stored else None,
        [f"{path}: {warning}" for warning in warnings] + upgrade_warnings,
        fork or fork_of(net),
    )


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Put `place` before the text of a FormatError that leaves the block."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{place}: {error}") from error


def _walk(buffer: memoryview) -> _Walked:
    """Take a NetParameter apart; a file that ends early gives what is whole and says where it ends."""
    walked, header = _Walked(), []
    pos, end = 0, len(buffer)
    while pos < end:
        try:
            found = read_field(buffer, pos, end)
        except EndsEarly:
            walked.lost = _what_is_lost(buffer, pos)
            break
        pos = found.end
        if found.number in (V1_LAYER, V2_LAYER) and found.wire == LENGTH:
            walked.layers.append((found.number, _split_layer(buffer, found)))
        elif found.number in _NET_FIELDS and found.wire != GROUP:
            header.append(buffer[found.tag : found.end])
    walked.header = b"".join(header)
    return walked


def _split_layer(buffer: memoryview, layer: Field) -> RawLayer:
    """The layer's name, type and blobs; the other fields are left as they are."""
    v2 = layer.number == V2_LAYER
    numbers = _V2_NUMBERS if v2 else _V1_NUMBERS
    raw = RawLayer("", "" if v2 else 0, (layer.tag, layer.end))
    blobs: list[Field] = []
    with _at(f"layer at byte {layer.tag}"):
        for found in fields(buffer, layer.start, layer.end):
            if found.number == numbers["blobs"] and found.wire == LENGTH:
                blobs.append(found)
                continue
            raw.fields.append(found)
            if found.number == numbers["name"] and found.wire == LENGTH:
                raw.name = _text(buffer, found)
            elif found.number == numbers["type"] and found.wire == (LENGTH if v2 else VARINT):
                raw.type = _text(buffer, found) if v2 else found.value
            elif found.number == 1 and found.wire == LENGTH:  # V0, since V2 has its name there
                for inner in fields(buffer, found.start, found.end):
                    if inner.number == _V0_NUMBERS["blobs"] and inner.wire == LENGTH:
                        blobs.append(inner)
                    elif inner.number == _V0_NUMBERS["name"] and inner.wire == LENGTH:
                        raw.name = _text(buffer, inner)
    for index, blob in enumerate(blobs):
        with _at(f"{raw}: blob {index} (byte {blob.tag})"):
            raw.blobs.append(read_blob(buffer, blob.start, blob.end))
            raw.blob_fork = raw.blob_fork or blob_fork(buffer, blob.start, blob.end)
    return raw


def _parse(buffer: memoryview, walked: _Walked) -> tuple[Message, str | None, list[str]]:
    """The net without blobs, in the form that the file has; the fork that wrote it; what was left out, in words."""
    net = NetParameter()
    _merge(net, walked.header, "the net's own fields")
    fork = fork_of_layers(buffer, [layer for _, layer in walked.layers])
    warnings: list[str] = []
    for number, layer in walked.layers:
        message = net.layer.add() if number == V2_LAYER else net.layers.add()
        with _at(str(layer)):
            for left_out in _parse_layer(buffer, layer, message, fork):
                warnings.append(f"{layer}: {left_out}; left out")
    return net, fork, list(dict.fromkeys(warnings))


def _parse_layer(buffer: memoryview, layer: RawLayer, message: Message, fork: str | None) -> Iterator[str]:
    """Fill `message` with the layer's fields, in our numbering; yields what had to be left out."""
    parameters = _V1_PARAMETERS if isinstance(layer.type, int) else _V2_PARAMETERS
    parts: list[tuple[Field, bytes]] = []
    for found, ours, left_out in our_fields(buffer, layer, fork):
        parts.append((found, ours))
        yield from left_out
    try:
        _merge(message, b"".join(ours for _, ours in parts), "its fields")
    except FormatError:  # one by one, to find the field
        message.Clear()
        for found, ours in parts:
            try:
                _merge(message, ours, f"field {found.number}")
            except FormatError as error:
                if found.number not in parameters:
                    raise
                yield str(error)


def _merge(message: Message, data: bytes, what: str) -> None:
    """Parse `data` into `message`; FormatError, and nothing kept, if it does not parse or a text is not UTF-8."""
    parsed = type(message)()
    try:
        parsed.MergeFromString(data)
    except DecodeError as error:
        raise FormatError(f"{what}: not what Caffe's schema says ({error})") from error
    bad = _field_not_utf8(parsed)
    if bad is not None:
        raise FormatError(f"{what}: {bad} is not UTF-8 text")
    message.MergeFrom(parsed)


def _field_not_utf8(message: Message) -> str | None:
    """The name of a string field whose bytes are not UTF-8; protobuf hands them on as bytes."""
    for descriptor, value in message.ListFields():
        values = value if descriptor.is_repeated else [value]
        for item in values:
            if descriptor.type == descriptor.TYPE_STRING and isinstance(item, bytes):
                return str(descriptor.name)
            if descriptor.message_type is not None and (name := _field_not_utf8(item)):
                return f"{descriptor.name}.{name}"
    return None


def _text(buffer: memoryview, found: Field) -> str:
    try:
        return bytes(buffer[found.start : found.end]).decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"byte {found.start + error.start}: a name or type that is not UTF-8 text") from error


def _what_is_lost(buffer: memoryview, pos: int) -> str:
    """Names what is cut at the end of the file, as far as its bytes tell; it begins at byte `pos`."""
    place = f"byte {len(buffer)}: the file ends early"
    try:
        number, wire, start = read_tag(buffer, pos, len(buffer))
        numbers = {V1_LAYER: _V1_NUMBERS, V2_LAYER: _V2_NUMBERS}.get(number)
        if numbers is None or wire != LENGTH:
            return f"{place}, inside field {number} that begins at byte {pos}"
        _, start = read_varint(buffer, start, len(buffer))
    except EndsEarly:
        return f"{place}, inside what begins at byte {pos}"
    layer, blobs = "a layer", 0
    with suppress(FormatError):  # as far as it goes
        for found in fields(buffer, start, len(buffer)):
            if found.number == numbers["name"] and found.wire == LENGTH:
                layer = f"layer {_text(buffer, found)!r}"
            blobs += found.number == numbers["blobs"]
    return f"{place}, inside {layer} that begins at byte {pos} (of which {blobs} blobs are whole)"


def _whole(layers: list[tuple[int, RawLayer]]) -> str:
    """How much can be saved of a file that ends early."""
    blobs = sum(len(layer.blobs) for _, layer in layers)
    if not layers:
        return "no layer before it is whole; download or copy the file again"
    return f"{len(layers)} layers with {blobs} blobs before it are whole: --salvage (salvage=True) loads these"
