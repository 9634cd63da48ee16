"""V0 and V1 nets in V2 form: the expected nets follow Caffe's upgrade_proto, field by field."""

import pytest

from caffeport.errors import FormatError
from caffeport.formats.schema import LayerParameter, NetParameter, V1LayerParameter
from caffeport.formats.text import parse_text
from caffeport.formats.upgrade import V0_TYPES, V1_TYPES, upgrade
from tests.conftest import SHARED, needs_shared


def net(text):
    message = NetParameter()
    assert parse_text(text, message, "net.prototxt") == []
    return message


def upgraded(text, warnings=()):
    """The upgraded net, after checking the warnings."""
    message, _, warned = upgrade(net(text), "net.prototxt")
    assert warned == list(warnings)
    return message


def form(text):
    return upgrade(net(text), "net.prototxt")[1]


def test_forms():
    assert form("layers { layer { name: 'a' type: 'relu' } }") == "V0"
    assert form("layers { type: RELU }") == "V1"
    assert form("layer { type: 'ReLU' }") == form("") == form("input: 'a'") == "V2"


# V0


def test_v0_convolution():
    old = """
        name: 'n' force_backward: true
        layers {
          layer {
            name: 'c' type: 'conv' num_output: 4 biasterm: false kernelsize: 3 pad: 1 stride: 2 group: 2
            weight_filler { type: 'xavier' } bias_filler { value: 1 }
            blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0 blobs { num: 1 data: 5 }
          }
          bottom: 'x' top: 'y'
        }"""
    new = """
        name: 'n' force_backward: true
        layer {
          name: 'c' type: 'Convolution' bottom: 'x' top: 'y'
          convolution_param {
            num_output: 4 bias_term: false kernel_size: 3 pad: 1 stride: 2 group: 2
            weight_filler { type: 'xavier' } bias_filler { value: 1 }
          }
          param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 } blobs { num: 1 data: 5 }
        }"""
    assert upgraded(old) == net(new)


V0_LAYERS = [
    ("pool", "pool: AVE kernelsize: 3 stride: 2 pad: 1", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }"),
    ("innerproduct", "num_output: 5 biasterm: true", "inner_product_param { num_output: 5 bias_term: true }"),
    ("lrn", "local_size: 3 alpha: 2 beta: 1 k: 4", "lrn_param { local_size: 3 alpha: 2 beta: 1 k: 4 }"),
    ("dropout", "dropout_ratio: 0.25", "dropout_param { dropout_ratio: 0.25 }"),
    ("concat", "concat_dim: 0", "concat_param { concat_dim: 0 }"),
    ("infogain_loss", "source: 'a'", "infogain_loss_param { source: 'a' }"),
    ("hdf5_data", "source: 'a' batchsize: 3", "hdf5_data_param { source: 'a' batch_size: 3 }"),
    ("hdf5_output", "hdf5_output_param { file_name: 'a' }", "hdf5_output_param { file_name: 'a' }"),
    (
        "data",
        "source: 'a' batchsize: 3 rand_skip: 1 scale: 0.5 meanfile: 'm' cropsize: 7 mirror: true",
        """data_param { source: 'a' batch_size: 3 rand_skip: 1 }
        transform_param { scale: 0.5 mean_file: 'm' crop_size: 7 mirror: true }""",
    ),
    (
        "images",
        "source: 'a' batchsize: 3 rand_skip: 1 shuffle_images: true new_height: 8 new_width: 9 scale: 2",
        """image_data_param { source: 'a' batch_size: 3 rand_skip: 1 shuffle: true new_height: 8 new_width: 9 }
        transform_param { scale: 2 }""",
    ),
    (
        "window_data",
        """source: 'a' batchsize: 3 det_fg_threshold: 1 det_bg_threshold: 0 det_fg_fraction: 0.5 det_context_pad: 16
        det_crop_mode: 'square'""",
        """window_data_param { source: 'a' batch_size: 3 fg_threshold: 1 bg_threshold: 0 fg_fraction: 0.5
        context_pad: 16 crop_mode: 'square' }""",
    ),
]


@pytest.mark.parametrize("type_, flat, nested", V0_LAYERS, ids=[row[0] for row in V0_LAYERS])
def test_v0_fields_move_to_the_message_of_their_type(type_, flat, nested):
    new = upgraded(f"layers {{ layer {{ name: 'a' type: '{type_}' {flat} }} }}")
    assert new == net(f"layer {{ name: 'a' type: '{V1_TYPES[V0_TYPES[type_]]}' {nested} }}")


def test_a_v0_field_of_another_type_is_named():
    new = upgraded(
        "layers { layer { name: 'p' type: 'pool' group: 2 kernelsize: 3 } }",
        ["net.prototxt: layer 'p': group ignored, since V0 type 'pool' has none"],
    )
    assert new.layer[0].pooling_param.kernel_size == 3


def test_an_unknown_v0_type_is_kept():
    assert upgraded("layers { layer { name: 'p' type: 'spm_pool' } }").layer[0].type == "spm_pool"


def test_v0_drops_what_the_net_did_not_have_then():
    new = upgraded(
        "state { level: 1 } input_shape { dim: 1 } layers { layer { name: 'r' type: 'relu' } }",
        ["net.prototxt: state, input_shape ignored, since the layers are in V0 form"],
    )
    assert not new.HasField("state")


def v0(name, type_, bottom, top, more=""):
    return f"layers {{ layer {{ name: '{name}' type: '{type_}' {more} }} bottom: '{bottom}' top: '{top}' }}"


def test_v0_padding_is_folded_into_all_its_readers():
    old = v0("pad", "padding", "x", "p", "pad: 2")
    old += v0("c", "conv", "p", "c", "pad: 1") + v0("m", "pool", "p", "m") + v0("r", "relu", "c", "c")
    new = upgraded(old)
    assert [layer.name for layer in new.layer] == ["c", "m", "r"]
    assert [layer.bottom[0] for layer in new.layer] == ["x", "x", "c"]
    assert new.layer[0].convolution_param.pad == [2]  # overwritten, not added
    assert new.layer[1].pooling_param.pad == 2


@pytest.mark.parametrize("type_", ["relu", "innerproduct", "padding"])
def test_v0_padding_before_a_layer_that_cannot_pad(type_):
    with pytest.raises(
        FormatError, match=rf"layer 'a' \({type_}\) reads the padding layer 'pad'; expected conv or pool"
    ):
        upgraded(v0("pad", "padding", "x", "p", "pad: 2") + v0("a", type_, "p", "a"))


def test_v0_padding_must_have_one_bottom():
    with pytest.raises(FormatError, match="padding layer 'pad' has 0 bottoms and 1 tops"):
        upgraded("layers { layer { name: 'pad' type: 'padding' } top: 'p' }" + v0("a", "conv", "p", "a"))


def test_v0_and_v1_layers_do_not_mix():
    with pytest.raises(FormatError, match="layer 'b' is in V1 form"):
        upgraded(v0("a", "relu", "x", "y") + "layers { name: 'b' type: RELU }")


# V1


def test_every_v1_field_has_a_place_in_v2():
    moved = {"layer", "type", "type_name", "blobs_lr", "weight_decay", "blob_share_mode"}
    v2 = LayerParameter.DESCRIPTOR.fields_by_name
    for field in V1LayerParameter.DESCRIPTOR.fields:
        if field.name not in moved | {"param"}:
            assert v2[field.name].message_type == field.message_type, field.name


def test_every_v1_type_has_a_name():
    assert set(V1LayerParameter.LayerType.keys()) <= V1_TYPES.keys()


def test_v1_fields():
    old = """
        layers {
          name: 'c' type: CONVOLUTION bottom: 'x' top: 'y' loss_weight: 2
          include { phase: TRAIN } exclude { stage: 's' }
          convolution_param { num_output: 4 }
          param: 'w' param: 'b' blob_share_mode: PERMISSIVE
          blobs_lr: 1 blobs_lr: 2 blobs_lr: 3 weight_decay: 0.5
          blobs { data: 1 }
        }
        state { level: 3 }"""
    new = """
        layer {
          name: 'c' type: 'Convolution' bottom: 'x' top: 'y' loss_weight: 2
          include { phase: TRAIN } exclude { stage: 's' }
          convolution_param { num_output: 4 }
          param { name: 'w' share_mode: PERMISSIVE lr_mult: 1 decay_mult: 0.5 }
          param { name: 'b' lr_mult: 2 } param { lr_mult: 3 }
          blobs { data: 1 }
        }
        state { level: 3 }"""
    assert upgraded(old) == net(new)


@pytest.mark.parametrize(
    "type_, param", [("DATA", "data"), ("IMAGE_DATA", "image_data"), ("WINDOW_DATA", "window_data")]
)
def test_v1_transformation_fields_move(type_, param):
    old = f"{param}_param {{ source: 's' scale: 0.5 mean_file: 'm' crop_size: 7 mirror: true }}"
    new = f"{param}_param {{ source: 's' }} transform_param {{ scale: 0.5 mean_file: 'm' crop_size: 7 mirror: true }}"
    assert upgraded(f"layers {{ type: {type_} {old} }}") == net(f"layer {{ type: '{V1_TYPES[type_]}' {new} }}")


def test_v2_transformation_fields_stay_as_in_caffe():
    text = "layer { type: 'Data' data_param { scale: 0.5 } }"
    assert upgraded(text) == net(text)


def test_v1_layer_without_a_type():
    assert upgraded("layers { name: 'a' }").layer[0].type == ""


def test_mixed_forms_are_refused():
    with pytest.raises(FormatError, match=r"both `layers` \(V1; 1\) and `layer` \(V2; 2\)"):
        upgraded("layers { type: RELU } layer { type: 'ReLU' } layer { type: 'TanH' }")


FORK_TYPES = [
    ("type: INTERP interp_param { zoom_factor: 2 }", "Interp"),
    ("type: UNPOOLING", "Unpooling"),
    ("type: BN", "BN"),
    ("type: RELU6", "ReLU6"),
    ("type: REVERSE", "Reverse"),
    ("type: CROP bottom: 'a' bottom: 'b'", "Crop"),
    ("type: CROP bottom: 'a'", "CROP"),
    ("type: COLINEAR_CONVOLUTION", "COLINEAR_CONVOLUTION"),
    ("type: 41 interp_param { zoom_factor: 2 }", "Interp"),
    ("type: 42 unpooling_param { unpool: MAX }", "Unpooling"),
    ("type: 43 bn_param { bn_mode: INFERENCE }", "BN"),
    ("type: 42 padding_param { pad_beg: 1 }", "Padding"),
    ("type: 40 reverse_param { axis: 1 }", "Reverse"),
    ("type: 61", "ReLU6"),
    ("type: 77", "77"),
    ("type: 39", "ImageSegData"),
    ("type: 39 bottom: 'a' convolution_param { num_output: 2 }", "Deconvolution"),
    ("type: DECONVOLUTION blobs { data: 1 }", "Deconvolution"),
]


@pytest.mark.parametrize("text, type_", FORK_TYPES)
def test_types_of_forks(text, type_):
    new = upgraded(f"layers {{ {text} }}").layer[0]
    assert new.type == type_
    params = [field.name for field, _ in net(f"layers {{ {text} }}").layers[0].ListFields() if "_param" in field.name]
    assert all(new.HasField(name) for name in params)


@pytest.mark.parametrize(
    "sign, number, type_",
    [
        ("type: CONVOLUTION convolution_param { hole: 2 }", 43, "MAT_WRITE"),
        ("type: INTERP interp_param { zoom_factor: 2 }", 42, "Padding"),
        ("type: UNPOOLING unpooling_param { unpool: MAX }", 43, "BN"),
        ("type: RELU", 43, "43"),
    ],
)
def test_numbers_follow_the_fork_of_the_net(sign, number, type_):
    assert upgraded(f"layers {{ {sign} }} layers {{ type: {number} }}").layer[1].type == type_


# Inputs


def test_input_dim_in_any_order():
    new = net("""
        layer {
          name: 'input' type: 'Input' top: 'a' top: 'b'
          input_param { shape { dim: 1 dim: 2 dim: 3 dim: 4 } shape { dim: 5 dim: 6 dim: 7 dim: 8 } }
        }
        layer { name: 'r' }""")
    assert upgraded("input: 'a' input: 'b' input_dim: [1, 2, 3, 4, 5, 6, 7, 8] layer { name: 'r' }") == new
    assert upgraded("input: 'a' input_dim: [1, 2, 3, 4] input: 'b' input_dim: [5, 6, 7, 8] layer { name: 'r' }") == new
    assert upgraded("input_dim: [1, 2, 3, 4, 5, 6, 7, 8] layer { name: 'r' } input: ['a', 'b']") == new


def test_input_shape_goes_before_input_dim():
    new = upgraded("input: 'a' input_shape { dim: 1 dim: 2 } input_dim: [9, 9, 9, 9]")
    assert new == net("layer { name: 'input' type: 'Input' top: 'a' input_param { shape { dim: 1 dim: 2 } } }")


def test_inputs_without_sizes_are_open():
    new = upgraded("input: 'a' input: 'b' layer { name: 'r' }")
    assert new == net("layer { name: 'input' type: 'Input' top: 'a' top: 'b' } layer { name: 'r' }")


def test_sizes_without_inputs_are_dropped_as_in_caffe():
    assert upgraded("input_dim: 1 input_shape { dim: 1 } name: 'n'") == net("name: 'n'")


def test_inputs_of_v1_nets():
    new = upgraded("input: 'a' input_dim: [1, 2, 3, 4] layers { type: RELU bottom: 'a' top: 'a' }")
    assert [layer.type for layer in new.layer] == ["Input", "ReLU"]


def test_c3d_inputs_have_five_numbers():
    new = upgraded("input: 'a' input_dim: [1, 3, 16, 8, 9] layers { type: CONVOLUTION3D bottom: 'a' top: 'b' }")
    assert new.layer[0].input_param.shape[0].dim == [1, 3, 16, 8, 9]


@pytest.mark.parametrize(
    "text, message",
    [
        ("input: 'a' input_dim: [1, 2, 3]", "input_dim is given 3 times, expected 4 for input 'a'"),
        ("input: ['a', 'b'] input_dim: [1, 2, 3, 4]", "input_dim is given 4 times, expected 8 for 2 inputs"),
        ("input: ['a', 'b'] input_shape { dim: 1 }", "input_shape is given 1 times, expected 2 for 2 inputs"),
    ],
)
def test_too_few_sizes(text, message):
    with pytest.raises(FormatError, match=f"net.prototxt: {message}"):
        upgraded(text)


def test_too_many_sizes_are_named():
    new = upgraded(
        "input: 'a' input_dim: [1, 2, 3, 4, 5]", ["net.prototxt: input_dim is given 5 times, 4 used for input 'a'"]
    )
    assert new.layer[0].input_param.shape[0].dim == [1, 2, 3, 4]


# BatchNorm


def test_batch_norm_params_are_not_learned():
    new = upgraded("layer { type: 'BatchNorm' param { lr_mult: 1 } param { decay_mult: 2 } param { name: 'c' } }")
    assert [(param.lr_mult, param.decay_mult) for param in new.layer[0].param] == [(0, 0)] * 3
    text = "layer { type: 'BatchNorm' param { lr_mult: 1 } } layer { type: 'Scale' param {} param {} param {} }"
    assert upgraded(text) == net(text)


# Files in ../shared


@needs_shared
def test_the_memnet_twins_agree():
    """deploy.prototxt is V1, its twin is the same net in V2 form."""
    folder = SHARED / "nets" / "memnet"
    old, new = (folder / name for name in ("deploy.prototxt", "deploy_v2.prototxt"))
    first, form_, _ = upgrade(net(old.read_bytes()), old.name)
    second = upgrade(net(new.read_bytes()), new.name)[0]
    assert form_ == "V1"
    assert [layer.type for layer in first.layer] == [layer.type for layer in second.layer]
    assert [layer.convolution_param for layer in first.layer] == [layer.convolution_param for layer in second.layer]


@needs_shared
def test_all_public_prototxts_upgrade():
    forms = {}
    index = (SHARED / "zoo" / "prototxts" / "index.tsv").read_text().splitlines()
    for line in index[1:]:
        name, _, _, _, stated = line.split("\t")[:5]
        message = NetParameter()
        try:
            parse_text((SHARED / "zoo" / "prototxts" / name).read_bytes(), message, name)
        except FormatError:
            continue  # test_text.py says which and why
        forms[name] = (stated, upgrade(message, name)[1])
    assert len(forms) >= 116
    assert {name: pair for name, pair in forms.items() if pair[0] != pair[1]} == {}
