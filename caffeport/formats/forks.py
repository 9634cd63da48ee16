"""Which fork of Caffe a binary layer is from, and its fields in our numbering.

Forks gave the same field numbers to different parameters, so a number means something only together with
the layer's type, and inside some messages only together with the fork. Here each field of a layer goes
to its number in proto/caffe.proto, before protobuf parses it; what does not belong to the type is left out.
The numbers are in fork_numbers.py. Text files go by names and need none of this.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from caffeport.errors import FormatError

from .fork_numbers import (
    BASED_ON_SSD,
    C3D_TYPES,
    CONTESTED,
    FORKS_BY_NUMBER,
    FORKS_BY_TYPE,
    V1_OWNED,
    V1_SHARED,
    V1_TYPES,
    V2_OWNED,
    V2_SHARED,
)
from .model_file import StoredBlob
from .schema import LayerParameter, Message, V1LayerParameter
from .wire import FIXED32, FIXED64, GROUP, LENGTH, VARINT, Field, encode_field, encode_varint
from .wire import fields as walk

FIRST_PRIVATE = 20001
V0_BLOBS = 50


@dataclass
class RawLayer:
    """A layer as it stands in a binary file.

    type       V2's string, or V1's number
    fields     all but the blobs
    blob_fork  the fork whose form its blobs have, None for BVLC's
    """

    name: str
    type: str | int
    span: tuple[int, int]
    fields: list[Field] = field(default_factory=list)
    blobs: list[StoredBlob] = field(default_factory=list)
    blob_fork: str | None = None

    def __str__(self) -> str:
        type_ = V1LayerParameter.LayerType.Name(self.type) if self.type in V1_TYPES else self.type
        return f"layer {self.name!r} ({type_})"


def fork_of(net: Message) -> str | None:
    """The fork whose layer types or parameters a net in V2 form has; None for plain BVLC Caffe.

    A guess for people: many forks took over layers of others. The rarest sign wins, SSD's comes last.
    """
    votes: Counter[str] = Counter()
    for layer in net.layer:
        if layer.type == "BN":
            named = {field_.name for field_, _ in layer.bn_param.ListFields()}
            if named & {"slope_filler", "bias_filler", "momentum", "eps", "frozen"}:
                votes["pspnet"] += 1
            elif named & {"scale_filler", "shift_filler", "bn_mode"}:
                votes["segnet"] += 1
        elif layer.type == "Upsample":
            votes["segnet" if len(layer.bottom) == 2 else "mobilenet-yolo"] += 1
        elif layer.type in FORKS_BY_TYPE:
            votes[FORKS_BY_TYPE[layer.type]] += 1
        elif layer.convolution_param.HasField("hole"):
            votes["deeplab1"] += 1
    if "deconvnet" in votes:  # its BN is SegNet's
        return "deconvnet"
    return _winner(votes)


def fork_of_layers(buffer: memoryview, layers: Iterable[RawLayer]) -> str | None:
    """The fork that wrote these layers, by field numbers; None where nothing but BVLC Caffe's is seen."""
    layers = list(layers)
    for layer in layers:
        if layer.blob_fork is not None:
            return layer.blob_fork
    has_input = any(layer.type == "Input" for layer in layers)  # yjxiong's fork is older than this type
    votes: Counter[str] = Counter()
    for layer in layers:
        if isinstance(layer.type, int):
            continue
        if layer.type == "BN" and all(field_.number < 12 for field_ in layer.fields):  # no bn_param to go by
            votes.update({2: ["segnet"], 4: ["pspnet"]}.get(len(layer.blobs), []))
        for field_ in layer.fields:
            if 145 <= field_.number <= 150 and field_.wire == VARINT:
                votes["nvcaffe"] += 1  # forward_type to cudnn_math_override: numbers, where others have messages
            elif field_.number == 149 and layer.type not in ("Reorg", "PSROIPooling", "CropCenter"):
                votes["intel"] += _is_text(buffer, field_)
            elif (layer.type, field_.number) in FORKS_BY_NUMBER:
                votes[FORKS_BY_NUMBER[layer.type, field_.number]] += 1
            elif field_.number == 106 and not has_input and _dilates_by_16(buffer, field_, layer):
                votes["yjxiong"] += 1
    return _winner(votes) or _v1_fork(buffer, [layer for layer in layers if isinstance(layer.type, int)])


def our_fields(buffer: memoryview, layer: RawLayer, fork: str | None) -> Iterator[tuple[Field, bytes, list[str]]]:
    """The fields of `layer`: each as it stands in the file, its bytes in our numbering, what was left out in words.

    A field that the type does not own gives no bytes.
    """
    v1 = isinstance(layer.type, int)
    descriptor = (V1LayerParameter if v1 else LayerParameter).DESCRIPTOR
    owned: dict[tuple[Any, int], str] = V1_OWNED if v1 else V2_OWNED
    shared = V1_SHARED if v1 else V2_SHARED
    for field_ in layer.fields:
        name = owned.get((layer.type, field_.number))
        target = descriptor.fields_by_name[name] if name else descriptor.fields_by_number.get(field_.number)
        if field_.wire == GROUP:
            yield field_, b"", []  # Caffe has no groups; protobuf would give up on a deep one
        elif v1 and field_.number == 1 and field_.wire == LENGTH:
            yield field_, _v0_layer(buffer, field_), []
        elif v1 and field_.number == 5 and field_.wire == VARINT:
            yield field_, _v1_type(field_, fork), []
        elif target is None or not (name or field_.number in shared):
            matters = _matters(buffer, layer, field_)
            yield field_, b"", [f"field {field_.number} is not one of this type's"] if matters else []
        elif target.message_type is None or field_.wire != LENGTH:
            yield field_, bytes(buffer[field_.tag : field_.end]), []
        else:
            try:
                # C3D v1.1 gave v1.0's numbering to messages of their own and left the others as BVLC's.
                numbering = "c3d" if target.name in ("convolution3d_param", "pooling3d_param") else fork
                content, left_out = _rewrite(buffer, field_, target.message_type, numbering)
            except FormatError as error:
                yield field_, b"", [f"{target.name} is damaged ({error})"]
            else:
                yield field_, encode_field(target.number, LENGTH, content), left_out


def _rewrite(buffer: memoryview, outer: Field, message: Any, fork: str | None) -> tuple[bytes, list[str]]:
    """The sub-message in field `outer`, of our type `message`, with its contested fields in our numbering."""
    contested = CONTESTED.get(message.name)
    if contested is None:
        return bytes(buffer[outer.start : outer.end]), []
    inner = list(walk(buffer, outer.start, outer.end))
    proposal = message.name == "ProposalParameter"
    if proposal and any(f.number in (4, 5) and f.wire == VARINT for f in inner):
        fork = "proposal-cpp"
    parts: list[bytes] = []
    left_out: list[str] = []
    for field_ in inner:
        if field_.number in contested:
            names = [name for owner, name in contested[field_.number] if _is_of(owner, fork)]
        elif field_.number < FIRST_PRIVATE and field_.number in message.fields_by_number:
            names = [message.fields_by_number[field_.number].name, None]
        else:
            continue
        for name in names:
            ours = b"" if name is None else _encoded(buffer, field_, message.fields_by_name[name], proposal)
            if ours is not None:
                parts.append(ours)
                break
        else:
            left_out.append(f"field {field_.number} of {message.name} means different things in different forks")
    return b"".join(parts), left_out


def _is_of(owner: str | None, fork: str | None) -> bool:
    return owner in (None, fork) or (owner == "ssd" and fork in BASED_ON_SSD)


def _encoded(buffer: memoryview, field_: Field, target: Any, floats: bool) -> bytes | None:
    """`field_` as our field `target`; None where it comes in a wire type that `target` does not have.

    With `floats`, a whole number may come as a float.
    """
    if field_.wire in _wires(target):
        return encode_field(target.number, field_.wire, buffer[field_.start : field_.end])
    if floats and field_.wire == FIXED32 and VARINT in _wires(target):
        return encode_field(target.number, VARINT, _whole(buffer, field_))
    return None


def _whole(buffer: memoryview, float_field: Field) -> bytes:
    """The varint of a whole number that some forks store as a float."""
    (value,) = struct.unpack("<f", buffer[float_field.start : float_field.end])
    return encode_varint(int(value) if 0 <= value < 2**31 else 0)


def _wires(target: Any) -> tuple[int, ...]:
    """The wire types in which a field of our schema may come."""
    if target.cpp_type in (target.CPPTYPE_STRING, target.CPPTYPE_MESSAGE):
        return (LENGTH,)
    wire = {target.CPPTYPE_FLOAT: FIXED32, target.CPPTYPE_DOUBLE: FIXED64}.get(target.cpp_type, VARINT)
    return (wire, LENGTH) if target.is_repeated else (wire,)


def _v1_fork(buffer: memoryview, layers: list[RawLayer]) -> str | None:
    """The fork whose V1 types these are."""
    for layer in layers:
        numbers = {field_.number for field_ in layer.fields}
        if layer.type in (30, 31) and numbers & {10, 19}:  # BVLC's ARGMAX and THRESHOLD do not convolve or pool
            return "c3d"
        if (layer.type == 41 and 43 in numbers) or (layer.type == 39 and 10 not in numbers and not layer.blobs):
            return "deeplab1"
        if any(_has_holes(buffer, field_) for field_ in layer.fields if field_.number == 10):
            return "deeplab1"
        if (layer.type == 42 and 44 in numbers) or (layer.type == 43 and 45 in numbers and len(layer.blobs) == 2):
            return "deconvnet"
        if layer.type == 40 and 43 in numbers:
            return "kendryte"
    return None


def _v0_layer(buffer: memoryview, v0: Field) -> bytes:
    """The V0 layer inside a V1 layer, without its blobs. Its fields are the same everywhere."""
    kept = [f for f in walk(buffer, v0.start, v0.end) if f.wire != GROUP and (f.number, f.wire) != (V0_BLOBS, LENGTH)]
    return encode_field(v0.number, LENGTH, b"".join(buffer[f.tag : f.end] for f in kept))


def _v1_type(field_: Field, fork: str | None) -> bytes:
    """V1's type; by name, or else in digits, where BVLC's enum lacks it (upgrade.py finds out what it means)."""
    name = C3D_TYPES.get(field_.value) if fork == "c3d" else None
    if name is None and field_.value in V1_TYPES:
        return encode_field(5, VARINT, encode_varint(field_.value))
    number = V1LayerParameter.DESCRIPTOR.fields_by_name["type_name"].number
    return encode_field(number, LENGTH, (name or str(field_.value)).encode())


def _has_holes(buffer: memoryview, convolution: Field) -> bool:
    """Whether a V1 convolution has DeepLab's `hole`: BVLC has a bool in field 17 and nothing in 19."""
    numbers = _integers(buffer, convolution)
    return 19 in numbers or numbers.get(17, 0) > 1


def _dilates_by_16(buffer: memoryview, convolution: Field, layer: RawLayer) -> bool:
    """Whether field 16 is yjxiong's dilation: as BVLC's axis, above 1, it would contradict a filter of four axes."""
    has_four_axes = bool(layer.blobs) and len(layer.blobs[0].shape) == 4
    return has_four_axes and 1 < _integers(buffer, convolution).get(16, 0) < 2**31


def _integers(buffer: memoryview, outer: Field) -> dict[int, int]:
    """The varints in a sub-message, by field number; none of a damaged one."""
    if outer.wire != LENGTH:
        return {}
    try:
        return {f.number: f.value for f in walk(buffer, outer.start, outer.end) if f.wire == VARINT}
    except FormatError:
        return {}


def _matters(buffer: memoryview, layer: RawLayer, field_: Field) -> bool:
    """Whether a field that we do not know may change what the layer computes.

    A number or a string is a setting of NVIDIA's or Intel's (fp16, engine); parameters are a message.
    """
    is_message = field_.wire == LENGTH and field_.end > field_.start and not _is_text(buffer, field_)
    return is_message and not str(layer.type).endswith(("Data", "Loss"))


def _is_text(buffer: memoryview, field_: Field) -> bool:
    payload = bytes(buffer[field_.start : min(field_.end, field_.start + 64)])
    return field_.wire == LENGTH and bool(payload) and payload.isascii() and payload.decode().isprintable()


def _winner(votes: Counter[str]) -> str | None:
    ssd = votes.pop("ssd", 0)
    if votes:
        return votes.most_common(1)[0][0]
    return "ssd" if ssd else None
