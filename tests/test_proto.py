"""proto/caffe.proto and the compiled schema in the package are one, and hold BVLC Caffe's fields."""

import json
import struct
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from caffeport.formats.schema import message_class
from tests.conftest import ROOT, SHARED, needs_shared

SCALARS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32")
}


def test_the_compiled_schema_is_that_of_the_text(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc", reason="comes with the dev extra")
    compiled = tmp_path / "caffe.binpb"
    source = ROOT / "proto"
    assert protoc.main(["protoc", f"-I{source}", f"--descriptor_set_out={compiled}", str(source / "caffe.proto")]) == 0
    shipped = ROOT / "caffeport/formats/caffe.binpb"
    assert compiled.read_bytes() == shipped.read_bytes(), "run `make proto`"


@needs_shared
def test_every_field_of_bvlc_caffe_is_in_the_schema():
    facts = json.loads((SHARED / "schema/caffe.json").read_text())
    # Fields and whole messages marked wheel_only belong to one packaged build of Caffe, not to BVLC's.
    messages = {name: message for name, message in facts["messages"].items() if not message.get("wheel_only")}
    wanted = {
        (name, field["n"]): _fact(field)
        for name, message in messages.items()
        for field in message["fields"]
        if not field.get("wheel_only")
    }
    assert len(wanted) > 400
    ours = {
        (name, number): _described(field)
        for name in messages
        for number, field in message_class(name).DESCRIPTOR.fields_by_number.items()
    }
    assert {key: ours.get(key) for key in wanted} == wanted


@needs_shared
def test_every_enum_value_of_bvlc_caffe_is_in_the_schema():
    enums = json.loads((SHARED / "schema/caffe.json").read_text())["enums"]
    file = message_class("NetParameter").DESCRIPTOR.file
    for name, values in enums.items():
        *message, enum = name.split(".")
        scope = message_class(message[0]).DESCRIPTOR if message else file
        ours = {value.name: value.number for value in scope.enum_types_by_name[enum].values}
        assert values.items() <= ours.items(), name


def _fact(field: dict[str, Any]) -> dict[str, Any]:
    default = field.get("default")
    if field["type"] == "float" and default is not None:
        (default,) = struct.unpack("f", struct.pack("f", default))  # as a float32 holds it
    return {
        "name": field["name"],
        "type": field["type"],
        "repeated": field["label"] == "repeated",
        "packed": field.get("packed", False),
        "default": default,
    }


def _described(field: FieldDescriptor) -> dict[str, Any]:
    default = field.default_value if field.has_default_value else None
    if field.message_type:
        type_ = f"message:{field.message_type.full_name.removeprefix('caffe.')}"
    elif field.enum_type:
        type_ = f"enum:{field.enum_type.full_name.removeprefix('caffe.')}"
        default = None if default is None else field.enum_type.values_by_number[default].name
    else:
        type_ = SCALARS[field.type]
    return {
        "name": field.name,
        "type": type_,
        "repeated": field.is_repeated,
        "packed": field.is_repeated and field.is_packed,
        "default": default,
    }
