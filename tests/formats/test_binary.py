from pathlib import Path

import numpy as np
import pytest

from caffeport.errors import FormatError
from caffeport.formats import ModelFile, read
from caffeport.formats.schema import NetParameter
from tests.conftest import SHARED, needs_shared
from tests.formats.wire_writer import legacy, message, number, packed, shape, text, unpacked, v1_layer, v2_layer

CONV = message(106, number(1, 2), number(4, 3))  # num_output, kernel_size
IP = message(117, number(1, 2))  # num_output
V2_NET = (
    text(1, "net")
    + v2_layer("data", "Input", text(4, "data"), message(143, message(1, message(1, bytes([1, 3, 5, 5])))))
    + v2_layer("conv", "Convolution", text(3, "data"), text(4, "conv"), message(7, shape(2), packed(5, [1, 2])), CONV)
    + v2_layer("relu", "ReLU", text(3, "conv"), text(4, "conv"))
    + v2_layer("fc", "InnerProduct", text(3, "conv"), text(4, "fc"), message(7, shape(2, 2), unpacked(5, range(4))), IP)
)


def shapes(file: ModelFile) -> dict[str, list[tuple[int, ...]]]:
    return {layer.name: [blob.shape for blob in layer.blobs] for layer in file.weights or []}


def test_a_v2_net_is_parsed_without_its_blobs() -> None:
    file = read(V2_NET)
    assert (file.form, file.fork, file.warnings) == ("V2 binary", None, [])
    assert [layer.name for layer in file.net.layer] == ["data", "conv", "relu", "fc"]
    assert file.net.layer[1].convolution_param.kernel_size == [3]
    assert file.net.layer[0].input_param.shape[0].dim == [1, 3, 5, 5]
    assert not any(layer.blobs for layer in file.net.layer)
    assert shapes(file) == {"conv": [(2,)], "fc": [(2, 2)]}


def test_a_layer_knows_its_type_and_its_bytes() -> None:
    file = read(V2_NET)
    assert file.weights is not None
    layer = file.weights.by_name()["fc"]
    assert layer.type == "InnerProduct" and layer.span is not None
    start, end = layer.span
    assert V2_NET[start:end].endswith(IP) and V2_NET[start:].startswith(bytes([0xA2, 0x06]))


def test_v1_blobs_are_in_field_6() -> None:
    blob = message(6, legacy(1, 1, 2, 3), packed(5, range(6)))
    net = v1_layer("ip", 14, text(2, "data"), text(3, "ip"), blob, message(17, number(1, 2)), packed(7, [1, 2]))
    file = read(text(1, "old") + net)
    assert file.form == "V1 binary"
    (layer,) = file.net.layer
    assert (layer.type, list(layer.bottom), layer.inner_product_param.num_output) == ("InnerProduct", ["data"], 2)
    assert [param.lr_mult for param in layer.param] == [1, 2]
    assert shapes(file) == {"ip": [(1, 1, 2, 3)]}
    assert file.weights is not None and file.weights.layers[0].type == "InnerProduct"


def test_v0_blobs_are_in_field_50_of_the_inner_layer() -> None:
    inner = [text(1, "ip"), text(2, "innerproduct"), number(3, 2), message(50, legacy(1, 1, 1, 2), packed(5, [3, 4]))]
    file = read(message(2, message(1, *inner), text(2, "data"), text(3, "ip")))
    assert file.form == "V0 binary"
    (layer,) = file.net.layer
    assert (layer.name, layer.type, layer.inner_product_param.num_output) == ("ip", "InnerProduct", 2)
    assert shapes(file) == {"ip": [(1, 1, 1, 2)]}


def test_a_net_without_arrays_has_no_weights() -> None:
    assert read(v2_layer("relu", "ReLU", text(3, "a"), text(4, "a"))).weights is None


def test_names_may_repeat_and_the_last_counts() -> None:
    layers = [v2_layer("a", "Bias", message(7, shape(1), packed(5, [value]))) for value in (1, 2)]
    file = read(b"".join(layers))
    assert file.weights is not None and len(file.weights.layers) == 2
    assert file.weights.by_name()["a"].blobs[0].array.tolist() == [2]


def test_unknown_fields_of_net_and_layer_are_skipped() -> None:
    extra = message(77, b"\xff\xff") + number(78, 3)
    file = read(extra + v2_layer("a", "ReLU", extra) + extra)
    assert [layer.name for layer in file.net.layer] == ["a"]
    assert not file.net.layer[0].ByteSize() - len(text(1, "a") + text(2, "ReLU"))


def test_a_parameter_message_that_does_not_parse_is_left_out_with_a_warning() -> None:
    file = read(v2_layer("a", "Pooling", message(123, b"\x0a"), message(121, number(2, 3))))
    assert file.net.layer[0].pooling_param.kernel_size == 3
    assert len(file.warnings) == 1 and "layer 'a' (Pooling)" in file.warnings[0] and "left out" in file.warnings[0]


def test_a_parameter_text_that_is_not_utf8_is_left_out_with_a_warning() -> None:
    file = read(v2_layer("a", "ImageData", message(115, message(1, b"\xc4\xe3")), text(4, "data")))
    assert not file.net.layer[0].HasField("image_data_param")
    assert "image_data_param.source is not UTF-8" in file.warnings[0]


@pytest.mark.parametrize("field", [1, 2, 3, 4])
def test_a_name_that_is_not_utf8_is_refused(field: int) -> None:
    with pytest.raises(FormatError, match="not UTF-8"):
        read(message(100, text(1, "a"), message(field, b"\xff\xfe")))


def test_a_bad_blob_names_file_layer_blob_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(V2_NET + v2_layer("bad", "Bias", message(7, shape(3), packed(5, [1]))))
    place = (
        rf"net.caffemodel: layer 'bad' \(Bias\): blob 0 \(byte {len(V2_NET) + 14}\): shape 3 asks for 3 values, but 1"
    )
    with pytest.raises(FormatError, match=place):
        read(path)


# ---- files that end early ----


def boundaries() -> list[int]:
    """The lengths at which V2_NET is a whole, shorter net."""
    file = read(V2_NET)
    ends = [layer.span[1] for layer in file.weights or [] if layer.span]
    return [ends[0], len(V2_NET)]


def test_a_file_cut_at_any_byte_is_refused_or_a_shorter_net() -> None:
    whole = read(V2_NET)
    for length in range(len(V2_NET)):
        try:
            file = read(V2_NET[:length])
        except FormatError:
            continue
        assert [layer.name for layer in file.net.layer] == [layer.name for layer in whole.net.layer][
            : len(file.net.layer)
        ]
        for mine, theirs in zip(file.weights or [], whole.weights or [], strict=False):
            assert mine.name == theirs.name
            np.testing.assert_array_equal(mine.blobs[0].array, theirs.blobs[0].array)


def test_a_cut_file_says_how_much_is_whole() -> None:
    with pytest.raises(FormatError, match=r"ends early, inside layer 'fc'.*3 layers with 1 blobs.*--salvage"):
        read(V2_NET[:-4])
    with pytest.raises(FormatError, match="no layer before it is whole"):
        read(V2_NET[:20])


def test_salvage_gives_the_whole_layers_and_names_the_lost() -> None:
    file = read(V2_NET[:-4], salvage=True)
    assert [layer.name for layer in file.net.layer] == ["data", "conv", "relu"]
    assert shapes(file) == {"conv": [(2,)]}
    assert "inside layer 'fc'" in file.warnings[0] and "3 layers read, up to layer 'relu'" in file.warnings[0]
    assert read(V2_NET, salvage=True).warnings == []
    with pytest.raises(FormatError, match="no layer before it is whole"):
        read(V2_NET[:20], salvage=True)


# ---- real files ----


@needs_shared
@pytest.mark.parametrize("name", ["lenet_v1_2014", "cifar10_quick_v1", "mtcnn_fast_det2_fp16", "open_nsfw"])
def test_blobs_equal_those_that_protobuf_parses(name: str) -> None:
    path = SHARED / "zoo" / name / "weights.caffemodel"
    net = NetParameter.FromString(path.read_bytes())
    file = read(path)
    assert file.weights is not None
    stored = iter(file.weights)
    for layer in [*net.layers, *net.layer]:
        if not layer.blobs:
            continue
        mine = next(stored)
        assert mine.name == layer.name
        for blob, theirs in zip(mine.blobs, layer.blobs, strict=True):
            raw = np.frombuffer(theirs.raw_data, {0: "<f8", 1: "<f4", 2: "<f2"}[theirs.raw_data_type])
            np.testing.assert_array_equal(blob.array.ravel(), raw if len(raw) else np.float32(theirs.data))
    assert next(stored, None) is None


@needs_shared
def test_c3d_v1_is_read_in_its_own_numbering() -> None:
    case = SHARED / "reports/cases/c3d_v1_network"
    file, net = read(case / "weights.caffemodel"), read(case / "net.prototxt").net
    assert file.fork == "c3d"
    assert shapes(file)["conv1a"] == [(4, 3, 3, 3, 3), (1, 1, 1, 1, 4)]
    params = {layer.name: layer.convolution_param for layer in net.layer}
    for layer in file.net.layer[:2]:
        wanted = params[layer.name]
        assert layer.type == "CONVOLUTION3D"
        for name in ("num_output", "kernel_size", "kernel_depth", "pad", "temporal_pad", "stride"):
            assert getattr(layer.convolution_param, name) == getattr(wanted, name), name
