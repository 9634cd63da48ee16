import pytest

from caffeport.formats import read
from caffeport.formats.fork_numbers import OWNED
from caffeport.formats.schema import LayerParameter, Message
from tests.conftest import SHARED, needs_shared
from tests.formats.wire_writer import legacy, message, number, packed, shape, text, unpacked, v1_layer, v2_layer


def layer_of(*parts: bytes) -> Message:
    """The first layer of the net in these bytes, which must give no warning."""
    file = read(b"".join(parts))
    assert file.warnings == []
    return file.net.layer[0]


def params(layer: Message) -> dict[str, Message]:
    return {field.name: value for field, value in layer.ListFields() if field.name.endswith("_param")}


@pytest.mark.parametrize(
    ("name", "type_", "field"),
    [(name, type_, field) for name, types, fields in OWNED for type_ in types for field in fields],
)
def test_each_number_is_its_types_parameter(name: str, type_: str, field: int) -> None:
    layer = layer_of(v2_layer("a", type_, message(field)))
    assert list(params(layer)) == [name]


@pytest.mark.parametrize("type_", ["ReLU", "Convolution", "Data", "Unheard"])
@pytest.mark.parametrize("field", [45, 137, 143, 147, 150, 202, 8266711, 20001, 20006])
def test_a_number_that_the_type_does_not_own_is_left_out(type_: str, field: int) -> None:
    file = read(v2_layer("a", type_, message(field, number(1, 3))))
    assert not params(file.net.layer[0])
    assert not file.warnings if type_ == "Data" else f"field {field} is not one of this type's" in file.warnings[0]


def test_nvidias_and_intels_settings_are_left_out_in_silence() -> None:
    settings = b"".join(number(field, 2) for field in range(145, 151))
    assert not params(layer_of(v2_layer("a", "ReLU", settings)))
    assert read(v2_layer("a", "ReLU", settings)).fork == "nvcaffe"
    assert read(v2_layer("a", "ReLU", text(149, "MKLDNN"))).fork == "intel"


CONV_BLOB = message(7, shape(1, 1, 3, 3), packed(5, range(9)))
PSPNET = v2_layer("bn", "BN", message(152))
SEGNET = v2_layer("bn", "BN", message(45))
YOLO9000 = v2_layer("r", "Reorg", message(303))
RCNN = v2_layer("roi", "ROIPooling", message(8266711))


@pytest.mark.parametrize(
    ("type_", "field", "inner", "others", "wanted"),
    [
        pytest.param("Convolution", 106, number(18, 2), b"", {"dilation": [2]}, id="BVLC dilation"),
        pytest.param("Convolution", 106, number(17, 1), b"", {"force_nd_im2col": True}, id="BVLC force_nd_im2col"),
        pytest.param("Convolution", 106, number(16, 2), b"", {"dilation": [2]}, id="yjxiong, by the filter's axes"),
        pytest.param("Convolution", 106, text(20, "-1,-1"), b"", {"conv_algos_override": "-1,-1"}, id="nvcaffe 20"),
        pytest.param("Convolution", 106, unpacked(20, [0.5]), b"", {"negative_slope": 0.5}, id="intel 20"),
        pytest.param("Pooling", 121, number(13, 1), b"", {"round_mode": 1}, id="BVLC round_mode"),
        pytest.param("Pooling", 121, number(13, 1), YOLO9000, {"ceil_mode": True}, id="yolo9000 ceil_mode"),
        pytest.param("BatchNorm", 139, message(5), b"", {"scale_filler": ...}, id="nvcaffe scale_filler"),
        pytest.param("BatchNorm", 139, number(5, 1), b"", {"use_weight_bias": True}, id="intel use_weight_bias"),
        pytest.param("BatchNorm", 139, number(7, 1), b"", {"scale_bias": True}, id="nvcaffe scale_bias"),
        pytest.param("BN", 152, message(1), PSPNET, {"slope_filler": ...}, id="pspnet slope_filler"),
        pytest.param("BN", 45, message(1), SEGNET, {"scale_filler": ...}, id="segnet scale_filler"),
        pytest.param("BN", 45, number(3, 1), SEGNET, {"bn_mode": 1}, id="segnet bn_mode"),
        pytest.param("BN", 152, unpacked(3, [0.5]), PSPNET, {"momentum": 0.5}, id="pspnet momentum"),
        pytest.param("Dropout", 108, number(2, 0), RCNN, {"scale_train": False}, id="faster-rcnn scale_train"),
        pytest.param("Dropout", 108, number(2, 1), SEGNET, {"sample_weights_test": True}, id="segnet sampling"),
        pytest.param("Proposal", 201, unpacked(1, [16]), b"", {"feat_stride": 16}, id="ascend's float"),
        pytest.param("Proposal", 201, number(2, 8), b"", {"base_size": 8}, id="openvino base_size"),
        pytest.param(
            "Proposal", 202, number(2, 8) + number(4, 3), b"", {"anchor_base_size": 8, "anchor_ratio": 3}, id="cpp"
        ),
    ],
)
def test_contested_fields(type_: str, field: int, inner: bytes, others: bytes, wanted: dict[str, object]) -> None:
    blobs = CONV_BLOB if type_ == "Convolution" else b""
    (param,) = params(layer_of(v2_layer("a", type_, blobs, message(field, inner)), others)).values()
    values = {field.name: value for field, value in param.ListFields()}
    assert values.keys() == wanted.keys()
    assert all(wanted[name] is ... or values[name] == wanted[name] for name in wanted)


def test_a_contested_field_of_an_unknown_fork_is_left_out_with_a_warning() -> None:
    file = read(v2_layer("drop", "Dropout", message(108, number(2, 0))))
    assert not file.net.layer[0].dropout_param.ListFields()
    assert "layer 'drop' (Dropout): field 2 of DropoutParameter means different things" in file.warnings[0]


@pytest.mark.parametrize(("blobs", "fork"), [(2, "segnet"), (4, "pspnet"), (3, None)])
def test_a_bn_layer_without_parameters_is_told_by_its_blobs(blobs: int, fork: str | None) -> None:
    assert read(v2_layer("bn", "BN", *[message(7, legacy(1, 1, 1, 1), packed(5, [1]))] * blobs)).fork == fork


def test_deeplab1s_holes_and_deconvnets_types_in_v1() -> None:
    hole = v1_layer("conv", 4, message(10, number(1, 1), number(4, 3), number(17, 2)))
    assert layer_of(hole).convolution_param.hole == 2
    assert read(hole).fork == "deeplab1"
    unpool = v1_layer("up", 42, message(44, number(2, 2)))
    assert (layer_of(unpool).type, layer_of(unpool).unpooling_param.kernel_size) == ("Unpooling", 2)
    assert read(unpool).fork == "deconvnet"
    interp = v1_layer("up", 41, message(43, number(1, 33)))
    assert (layer_of(interp).type, layer_of(interp).interp_param.height) == ("Interp", 33)


def test_c3d_types_and_numbers_need_a_sign_of_c3d() -> None:
    c3d_blob = message(6, legacy(1, 1, 1, 1, 2), packed(6, [1, 2]))
    conv = v1_layer("conv", 30, c3d_blob, message(10, number(1, 2), number(6, 3), number(7, 2), number(12, 1)))
    layer = layer_of(conv)
    assert (layer.type, read(conv).fork) == ("CONVOLUTION3D", "c3d")
    found = layer.convolution_param
    assert (found.kernel_depth, list(found.stride), found.temporal_pad) == (3, [2], 1)
    assert layer_of(v1_layer("max", 30, message(23, number(2, 5)))).type == "ArgMax"


@needs_shared
def test_binaries_of_forks_give_the_parameters_of_their_prototxts() -> None:
    paths = sorted(SHARED.glob("parity_forks/*/*/weights.caffemodel"))
    assert len(paths) == 90
    layers = 0
    for path in paths:
        binary, net = read(path), read(path.with_name("net.prototxt")).net
        assert binary.warnings == [], path
        wanted = {layer.name: layer for layer in net.layer}
        for layer in binary.net.layer:
            if layer.name in wanted:  # the file has Caffe's automatic Split layers too
                assert layer.type == wanted[layer.name].type
                assert params(layer) == params(wanted[layer.name]), f"{path}: {layer.name}"
                layers += 1
    assert layers > 300


def test_no_private_number_is_read_from_a_file() -> None:
    private = [field.number for field in LayerParameter.DESCRIPTOR.fields if field.number > 20000]
    file = read(v2_layer("a", "BN", *(message(field) for field in private)))
    assert not params(file.net.layer[0])
