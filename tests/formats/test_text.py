"""Text files. The oracle is protobuf's text_format where it accepts a file; real Caffe was asked for the tables."""

import math
from contextlib import suppress
from functools import cache

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caffeport.errors import FormatError
from caffeport.formats.schema import BlobProto, LayerParameter, NetParameter, V1LayerParameter, message_class
from caffeport.formats.text import MAX_WARNINGS, parse_text
from tests.conftest import SHARED, needs_shared


def parse(text, cls=NetParameter):
    """The message, after checking that nothing was warned of."""
    message = cls()
    assert parse_text(text, message, "net.prototxt") == []
    return message


def shift(text):
    """What `text` gives as a float."""
    return parse(f"power_param {{ shift: {text} }}", LayerParameter).power_param.shift


def error(text, cls=NetParameter):
    with pytest.raises(FormatError) as caught:
        parse_text(text, cls(), "net.prototxt")
    assert str(caught.value).startswith("net.prototxt:")
    return str(caught.value)


# What real Caffe accepts


@pytest.mark.parametrize(
    "text, value",
    [
        *[("1", 1), (".5", 0.5), ("5.", 5), ("1e0", 1), ("1E+2", 100), ("1.f", 1), ("1F", 1), ("0f", 0), ("1e5f", 1e5)],
        *[("-.5", -0.5), ("- 1", -1), ("-#c\n1", -1), ("1e39", math.inf), ("1e400", math.inf), ("0e5", 0)],
        *[("inf", math.inf), ("-inf", -math.inf), ("INF", math.inf), ("Infinity", math.inf), ("- inf", -math.inf)],
    ],
)
def test_floats(text, value):
    assert shift(text) == value


@pytest.mark.parametrize("text", ["nan", "-nan", "NaN"])
def test_nan(text):
    assert math.isnan(shift(text))


@pytest.mark.parametrize(
    "text", ["010", "0x10", "00", "08", "01.5", "00.5", "infinityf", "nanf", "-", "+1", "1.5.2", "1e", "1_0", "--1"]
)
def test_refused_floats(text):
    assert "expected a" in error(f"power_param {{ shift: {text} }}", LayerParameter)


@pytest.mark.parametrize("text, value", [("2", 2), ("0x2", 2), ("0X1f", 31), ("010", 8), ("00002", 2)])
def test_whole_numbers(text, value):
    assert parse(f"pooling_param {{ kernel_size: {text} }}", LayerParameter).pooling_param.kernel_size == value


@pytest.mark.parametrize(
    "text", ["2.0", "2f", "2e0", "-2", "- 2", "+2", "4294967296", "'2'", "2x", "0x", "08", "two", "9" * 5000]
)
def test_refused_whole_numbers(text):
    message = error(f"pooling_param {{ kernel_size: {text} }}", LayerParameter)
    assert message.startswith("net.prototxt:1:30: ") and "expected" in message and len(message) < 200


@pytest.mark.parametrize("text", ["true", "True", "t", "1", "0x1", "01"])
def test_true(text):
    assert parse(f"force_backward: {text}").force_backward is True


@pytest.mark.parametrize("text", ["false", "False", "f", "0", "00"])
def test_false(text):
    net = parse(f"force_backward: {text}")
    assert net.HasField("force_backward") and net.force_backward is False


@pytest.mark.parametrize("text", ["TRUE", "FALSE", "yes", "2", "'true'", "-1"])
def test_refused_bools(text):
    assert "expected true or false for force_backward" in error(f"force_backward: {text}")


@pytest.mark.parametrize("text, value", [("MAX", 0), ("AVE", 1), ("2", 2), ("0x1", 1), ("01", 1)])
def test_enums(text, value):
    assert parse(f"pooling_param {{ pool: {text} }}", LayerParameter).pooling_param.pool == value


@pytest.mark.parametrize("text", ["3", "max", "'MAX'", "-1", "1.0", "{"])
def test_refused_enums(text):
    error(f"pooling_param {{ pool: {text} }}", LayerParameter)


def test_an_unknown_enum_value_names_a_near_one():
    assert "unknown value AVG of pool in PoolingParameter; did you mean AVE?" in error(
        "pooling_param { pool: AVG }", LayerParameter
    )


def test_an_unknown_engine_changes_nothing_and_is_a_warning():
    layer = LayerParameter()
    warnings = parse_text("pooling_param {\n  engine: MKL2017\n}", layer, "net.prototxt")
    assert warnings == ["net.prototxt:2:11: unknown value MKL2017 of engine in PoolingParameter, ignored"]
    assert not layer.pooling_param.HasField("engine")


@pytest.mark.parametrize(
    "text, value",
    [
        ("'a'", "a"),
        ("'a' \"b\"#c\n'c'", "abc"),
        ("'x\"y'", 'x"y'),
        (r"'\a\b\f\n\r\t\v\\\'\"\?'", "\a\b\f\n\r\t\v\\'\"?"),
        (r"'Re\x4cU\114\7'", "ReLUL\7"),
        (r"'\303\244\xc3\xa4'", "ää"),
        (r"'\u00e4\U0001f600\ud83d\ude00'", "ä😀😀"),
        ("'卷积 ä'", "卷积 ä"),
        ("'\t'", "\t"),
        ("''", ""),
    ],
)
def test_strings(text, value):
    assert parse(f"name: {text}").name == value
    assert parse(f"name: {text}".encode()).name == value


@pytest.mark.parametrize("text", ["'a", "'a\n'", "'a\\\n'", "'a\"", "a", "['a']", "1", "'\\", "'\\'"])
def test_refused_strings(text):
    assert "string" in error(f"name: {text}")


def test_a_windows_path_names_the_escape_and_the_way_out():
    message = error('name: "n"\nlayer {\n  data_param { source: "C:\\Users\\lab\\train_lmdb" }\n}')
    assert message == (
        "net.prototxt:3:27: \\U is not an escape of text format; write a backslash as \\\\, or a path with /"
    )


@pytest.mark.parametrize("text", [r"'\q'", r"'\x'", r"'\u12'", r"'\uD800'", r"'\U00110000'", "'\\\u2028'"])
def test_refused_escapes(text):
    assert "is not an escape" in error(f"name: {text}")


def test_bytes_that_are_not_utf8_are_refused_in_strings_and_allowed_in_comments():
    assert parse(b"# \xb0\xa1\nname: 'a'  # \xff").name == "a"
    assert error(b"layer {\n name: '\xb0\xa1' }") == (
        "net.prototxt:2:8: byte 0xb0 in name is not UTF-8; save the file as UTF-8"
    )
    assert "not UTF-8" in error(rb"name: '\377'")
    assert "1:1: byte 0xb0 is not UTF-8" in error(b"\xb0\xa1: 1")
    assert "U+D800" in error("name: 'a\ud800'")


def test_bytes_fields_take_any_byte():
    assert parse(rb"raw_data: '\000\377\x41'", BlobProto).raw_data == b"\x00\xffA"


# Structure


NETS = [
    "layer { name: 'a' top: 'b' }",
    "layer: { name: 'a' top: 'b' }",
    "layer < name: 'a' top: 'b' >",
    "layer: [ { name: 'a' top: ['b'] } ]",
    "layer[<name:'a'top:'b'>]",
    "layer { name: 'a'; top: 'b', };",
    "layer {\r\n  name: 'a'\r\n  top: 'b'\r\n}\r\n",
    "# a\nlayer{#b\nname#c\n:#d\n'a'#e\ntop:'b'}# f",
    "\ufefflayer\v{ name:\f'a' top : 'b' }",
    "layer { name: 'a' top: [] top: ['b'] }",
]


@pytest.mark.parametrize("text", NETS)
@pytest.mark.parametrize("encode", [str, str.encode])
def test_ways_to_write_the_same_net(text, encode):
    assert parse(encode(text)) == NetParameter(layer=[LayerParameter(name="a", top=["b"])])


@pytest.mark.parametrize("text", ["", " \n", "# nothing", "\ufeff"])
def test_empty_text_is_an_empty_message(text):
    assert parse(text) == NetParameter()


@pytest.mark.parametrize(
    "text, place, what",
    [
        ("name: 'a'\nname: 'b'", "2:1", "name is given twice in NetParameter"),
        ("layer { lrn_param {} lrn_param {} }", "1:22", "lrn_param is given twice in LayerParameter"),
        ("layer { name: 'a'", "1:18", "the file ends, expected '}' for the '{' of net.prototxt:1:7"),
        ("layer < name: 'a' }", "1:19", "expected a field name or '>'"),
        ("layer { name: 'a' ] }", "1:19", "expected a field name or '}', got ]"),
        ("}", "1:1", "expected a field name, got }"),
        ("layer 'a'", "1:7", "expected '{' after layer, got 'a'"),
        ("name 'a'", "1:6", "expected ':' after name, got 'a'"),
        ("name: 'a';;", "1:11", "expected a field name, got ;"),
        (
            "input_dim: 1input_dim: 2",
            "1:12",
            "expected a number with a space or a separator after it, got '1input_dim'",
        ),
        ("input_dim: [1 2]", "1:15", "expected ',' or ']' for the '[' of net.prototxt:1:12, got 2"),
        ("input_dim: [1, 2,]", "1:18", "expected a whole number for input_dim, got ]"),
        ("input_dim: [1, 2", "1:17", "expected ',' or ']'"),
        ("state: [{}]", "1:8", "expected '{' after state, got ["),
        ("// a", "1:1", "character '/'"),
        ("name: 'a' \0", "1:11", r"character '\x00'"),
        ("ä: 1", "1:1", "character 'ä'"),
        ("[a.b]: 1", "1:1", "expected a field name, got ["),
        ("layer {\n num_output: ${N}\n}", "2:14", "this is a template: fill in its $ placeholders first"),
        (b"\xff\xfen\x00", "1:1", "UTF-16"),
    ],
)
def test_errors_say_where_and_what_was_expected(text, place, what):
    message = error(text)
    assert message.startswith(f"net.prototxt:{place}: ") and what in message


def test_quotes_around_a_v1_type_and_none_around_a_v2_type():
    assert 'got "Softmax"; `layers` (V1) want type: CONVOLUTION' in error('layers { type: "Softmax" }')
    assert 'got ReLU; in `layer` write type: "ReLU"' in error("layer { type: ReLU }")


@pytest.mark.parametrize("type_", ["UNPOOLING", "convolution", "41", "0x29"])
def test_a_v1_type_that_the_schema_lacks_is_kept_by_name(type_):
    layer = parse(f"type: {type_} name: 'a'", V1LayerParameter)
    assert (layer.type_name, layer.name, layer.HasField("type")) == (type_, "a", False)
    assert "type is given twice" in error(f"type: {type_} type: BNLL", V1LayerParameter)
    assert "type is given twice" in error(f"type: BNLL type: {type_}", V1LayerParameter)


# What the schema lacks


def warned(text, cls=NetParameter):
    message = cls()
    return parse_text(text, message, "net.prototxt"), message


def test_an_unknown_field_is_skipped_and_named_with_its_place():
    warnings, layer = warned("convolution_param {\n  kernel_sise: 3\n  pad: 1\n}", LayerParameter)
    assert warnings == [
        "net.prototxt:2:3: unknown field 'kernel_sise' in ConvolutionParameter, ignored; did you mean 'kernel_size'?"
    ]
    assert layer.convolution_param.pad == [1] and not layer.convolution_param.kernel_size


def test_a_field_in_the_wrong_case_is_unknown():
    warnings, net = warned("Name: 'a'")
    assert warnings == ["net.prototxt:1:1: unknown field 'Name' in NetParameter, ignored; did you mean 'name'?"]
    assert net == NetParameter()


UNKNOWN = ["1", "-1", "-inf", "1f", "0x1", "MAX", "'a' \"b\"", "[1, 2]", "[]", "['a' 'b', 'c']", "{}", "<>", "{ a: 1 }"]
UNKNOWN += ["{ a { b < c: [{ d: 'x' }, <>] > } e: -1; f: 2, }", "[{ a: 1 }]"]


@pytest.mark.parametrize("value", UNKNOWN)
def test_unknown_values_of_every_kind(value):
    warnings, net = warned(f"name: 'n'\nfoo_param: {value}\ninput: 'x'")
    assert [warning.split(" ")[0] for warning in warnings] == ["net.prototxt:2:1:"]
    assert net == NetParameter(name="n", input=["x"])


@pytest.mark.parametrize("text", ["foo 1", "foo 'a'", "foo: ", "foo: }", "foo { 1 }", "foo { a: 1 >", "foo: [1 2]"])
def test_unknown_fields_must_still_be_text_format(text):
    error(text)


def test_warnings_are_bounded():
    warnings, _ = warned("foo: 1\n" * (MAX_WARNINGS + 5))
    assert len(warnings) == MAX_WARNINGS + 1
    assert warnings[-1] == "net.prototxt: 5 more warnings are not listed"


# Hostile texts


@pytest.mark.parametrize("opening", ["layer {", "foo {", "foo <", "foo: [{ a ", "layer { include { foo: [ {"])
def test_deep_nesting_is_an_error(opening):
    assert "nested" in error(opening * 5000) or "expected" in error(opening * 5000)


def test_nesting_to_the_limit_is_read():
    warnings, _ = warned("foo {" * 100 + "}" * 100)
    assert len(warnings) == 1
    assert "nested more than 100 deep" in error("foo {" * 101 + "}" * 101)


GOOD = "name: 'n' layer { blobs { data: 1.5 data: [2, 3] shape { dim: 3 } } foo { b: 'c' } } force_backward: 1"


@pytest.mark.parametrize("cut", range(len(GOOD)))
def test_a_cut_text_is_refused_or_read(cut):
    with suppress(FormatError):
        parse_text(GOOD[:cut], NetParameter(), "net.prototxt")


@given(st.text(alphabet="layer{}<>[]:;,'\"\\ab01.-#\n \ud800\ufeff$/"))
def test_only_format_errors_leave(text):
    with suppress(FormatError):
        parse_text(text, NetParameter(), "net.prototxt")


@given(st.binary())
def test_only_format_errors_leave_for_bytes(data):
    with suppress(FormatError):
        parse_text(data, NetParameter(), "net.prototxt")


# Against text_format


SCALARS = {
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32, allow_nan=False),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: st.text(),
    FieldDescriptor.TYPE_BYTES: st.binary(),
}


@cache
def values_of(field, depth):
    """Values that one entry of `field` can have, messages at most `depth` deep."""
    if field.message_type is not None:
        return messages(message_class(field.message_type.name), depth - 1)
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return SCALARS[field.type]


@st.composite
def messages(draw, cls, depth=3):
    message = cls()
    fields = [field for field in cls.DESCRIPTOR.fields if field.message_type is None or depth]
    for field in draw(st.lists(st.sampled_from(fields), max_size=3, unique_by=lambda field: field.name)):
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(values_of(field, depth), max_size=3)))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(values_of(field, depth)))
        else:
            setattr(message, field.name, draw(values_of(field, depth)))
    return message


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(messages(NetParameter), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_what_text_format_prints_is_read_back(message, as_utf8, as_one_line, pointy_brackets, short_lists):
    text = text_format.MessageToString(
        message,
        as_utf8=as_utf8,
        as_one_line=as_one_line,
        pointy_brackets=pointy_brackets,
        use_short_repeated_primitives=short_lists,
    )
    assert parse(text) == message
    assert parse(text.encode()) == message


@pytest.mark.parametrize("separator", [" ", "\n", "; ", ", ", " # c\n"])
@pytest.mark.parametrize("count", [1, 2, 3, 10_000, 10_001, 20_003])
def test_long_runs_of_floats(count, separator):
    numbers = [index / 8 - 3 for index in range(count)]
    text = separator.join(f"data: {number}" for number in numbers)
    assert parse(text, BlobProto).data == numbers
    assert parse(f"data: [{', '.join(map(str, numbers))}]{separator}num: 1", BlobProto).data == numbers


@pytest.mark.parametrize("last", ["1f", "-inf", "- 2", ".5e-1", "nan"])
def test_a_run_of_floats_that_ends_in_an_unusual_one(last):
    for text in (f"data: 1 data: 2 data: 3 data: {last}", f"data: [1, 2, 3, {last}]"):
        data = parse(text, BlobProto).data
        assert data[:3] == [1, 2, 3] and len(data) == 4


@pytest.mark.parametrize("bad", ["010", "1x", "1.2.3", "x", "1data: 2", ""])
def test_a_run_of_floats_with_a_bad_one(bad):
    assert ":1:" in error(f"data: 1 data: 2 data: {bad}", BlobProto)
    assert ":1:" in error(f"data: [1, 2, {bad}]", BlobProto)


# Files in ../shared

REFUSED = {  # zoo file: why; real Caffe refuses them too
    "lim0606__caffe-googlenet-bn__deploy.prototxt": "`layers` (V1) want type: CONVOLUTION",
    "TheLegendAli__DeepLab-Context__voc12_config_vgg128_noup_test.prototxt": "this is a template",
    "xmojiao__deeplab_v2__nyu_config_deeplab_largeFOV_test.prototxt": "this is a template",
    "xmojiao__deeplab_v2__nyu_config_deeplab_largeFOV_train.prototxt": "this is a template",
}


@needs_shared
def test_public_prototxts_parse():
    refused = {}
    for path in sorted((SHARED / "zoo" / "prototxts").glob("*.prototxt")):
        try:
            parse_text(path.read_bytes(), NetParameter(), path.name)
        except FormatError as caught:
            refused[path.name] = str(caught)
    assert refused.keys() == REFUSED.keys()
    for name, why in REFUSED.items():
        assert why in refused[name]


@needs_shared
def test_files_that_text_format_reads_give_equal_messages():
    compared = 0
    for pattern in ("parity/*/*/net.prototxt", "parity_forks/*/*/net.prototxt", "zoo/*/*.prototxt"):
        for path in SHARED.glob(pattern):
            data = path.read_bytes()
            try:
                expected = text_format.Parse(data, NetParameter())
            except text_format.ParseError:
                continue
            assert parse(data) == expected, path
            compared += 1
    assert compared > 800
