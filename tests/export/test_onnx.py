"""ONNX export: names, shapes, sizes left open, what is refused, and files whole or not at all."""

import errno
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import caffeport
from caffeport.export import onnx_file
from caffeport.export.proof import in_child, run
from caffeport.preprocess import Preprocessing
from tests.agreement import disagreement
from tests.conftest import DIGITS

SMALL = """
name: "small"
input: "data" input_shape { dim: 2 dim: 3 dim: 8 dim: 9 }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 4 kernel_size: 3
        weight_filler { type: "xavier" } } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "norm1" type: "LRN" bottom: "conv1" top: "norm1" }
layer { name: "drop1" type: "Dropout" bottom: "norm1" top: "norm1" }
layer { name: "pool/1" type: "Pooling" bottom: "norm1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool1" top: "fc" inner_product_param { num_output: 5
        weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


@pytest.fixture
def small() -> caffeport.Network:
    return caffeport.load(SMALL.encode())


def digits() -> caffeport.Network:
    return caffeport.load(DIGITS / "deploy.prototxt", DIGITS / "digits.caffemodel")


def test_one_node_a_layer_under_caffes_names(small: caffeport.Network, tmp_path: Path) -> None:
    done = caffeport.export_onnx(small, tmp_path / "small.onnx")
    model = onnx.load(done.path)
    named = {
        node.name: (node.op_type, node.doc_string)
        for node in model.graph.node
        if "/" not in node.name.removeprefix("pool/")
    }
    assert named == {
        "conv1": ("Conv", "Convolution"),
        "bn1": ("BatchNormalization", "BatchNorm"),
        "scale1": ("Add", "Scale"),
        "relu1": ("Relu", "ReLU"),
        "norm1": ("LRN", "LRN"),
        "pool/1": ("MaxPool", "Pooling"),
        "fc": ("Gemm", "InnerProduct"),
        "prob": ("Softmax", "Softmax"),
    }
    tensors = {node.name: list(node.output) for node in model.graph.node}
    assert tensors["relu1"] == ["conv1"]  # the plain name is the last writer's
    assert tensors["conv1"] == ["conv1::conv1"]
    assert tensors["norm1"] == ["norm1"]  # Dropout passes it on
    state = set(small.state_dict()) - {"bn1.num_batches_tracked"}
    assert {tensor.name for tensor in model.graph.initializer if tensor.name in state} == state
    assert done.report is not None
    assert done.report.passed
    assert done.outputs == {"prob": ("N", 5)}


def test_facts_are_in_the_file(small: caffeport.Network, tmp_path: Path) -> None:
    model = onnx.load(caffeport.export_onnx(small, tmp_path / "small.onnx", prove=False).path)
    assert (model.producer_name, model.producer_version) == ("caffeport", caffeport.__version__)
    assert {entry.key: entry.value for entry in model.metadata_props}["model_name"] == "small"
    assert model.opset_import[0].version == 20


def test_the_same_network_gives_the_same_bytes(small: caffeport.Network, tmp_path: Path) -> None:
    files = [caffeport.export_onnx(small, tmp_path / name, prove=False).path for name in ("a.onnx", "b.onnx")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("batch, size", [("N", 7), ("items", 1), (3, 3), (None, 2)])
def test_batch(small: caffeport.Network, tmp_path: Path, batch: str | int | None, size: int) -> None:
    done = caffeport.export_onnx(small, tmp_path / "small.onnx", batch=batch, prove=False)
    assert done.inputs == {"data": (2 if batch is None else batch, 3, 8, 9)}
    x = np.random.default_rng(0).standard_normal((size, 3, 8, 9)).astype(np.float32)
    with torch.no_grad():
        assert disagreement(run(done.path, {"data": x})["prob"], small(x).numpy()) is None


def test_open_height_and_width(small: caffeport.Network, tmp_path: Path) -> None:
    done = caffeport.export_onnx(small, tmp_path / "a.onnx", spatial="dynamic", outputs=["pool1"])
    assert done.inputs == {"data": ("N", 3, "H", "W")}
    x = np.random.default_rng(0).standard_normal((1, 3, 21, 30)).astype(np.float32)
    with torch.no_grad():
        assert disagreement(run(done.path, {"data": x})["pool1"], small.truncate("pool1")(x).numpy()) is None
    fixed = caffeport.export_onnx(small, tmp_path / "b.onnx", spatial=(12, 13), outputs=["pool1"], prove=False)
    assert fixed.outputs == {"pool1": ("N", 4, 5, 6)}
    with pytest.raises(caffeport.ShapeError, match="layer 'fc'"):
        caffeport.export_onnx(small, tmp_path / "c.onnx", spatial="dynamic")
    assert not (tmp_path / "c.onnx").exists()


def test_outputs_by_blob_and_by_writer(small: caffeport.Network, tmp_path: Path) -> None:
    names = ["conv1::conv1", "conv1", "relu1::conv1", "norm1", "drop1::norm1"]
    done = caffeport.export_onnx(small, tmp_path / "small.onnx", outputs=names)
    assert list(done.outputs) == names
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 9)).astype(np.float32)
    with torch.no_grad():
        want = small.blobs(x)
    for name, array in run(done.path, {"data": x}).items():
        assert disagreement(array, want[name].numpy()) is None, name
    with pytest.raises(caffeport.InputError, match="no blob 'nope'"):
        caffeport.export_onnx(small, tmp_path / "no.onnx", outputs=["nope"])


def test_all_layers_that_onnx_cannot_say_are_named(tmp_path: Path) -> None:
    net = """input: "map" input_shape { dim: 1 dim: 8 dim: 2 dim: 2 }
    layer { name: "a" type: "Reorg" bottom: "map" top: "a" reorg_param { stride: 1 } }
    layer { name: "b" type: "RegionYolo" bottom: "a" top: "b" region_yolo_param { classes: 3 } }"""
    with pytest.raises(caffeport.UnsupportedLayer, match=r"(?s)layer 'a'.*layer 'b'.*--outputs"):
        caffeport.export_onnx(caffeport.load(net.encode()), tmp_path / "net.onnx", spatial="dynamic")
    assert list(tmp_path.iterdir()) == []


def test_inputs_may_be_outputs_beside_what_a_layer_computes(tmp_path: Path) -> None:
    net = """input: "a" input_shape { dim: 2 dim: 3 } input: "b" input_shape { dim: 2 dim: 4 }
    layer { name: "relu" type: "ReLU" bottom: "a" top: "c" } layer { name: "tanh" type: "TanH" bottom: "b" top: "d" }"""
    network = caffeport.load(net.encode())
    done = caffeport.export_onnx(network, tmp_path / "net.onnx", outputs=["c", "b"])
    feeds = {"a": np.ones((5, 3), np.float32), "b": np.full((5, 4), 2, np.float32)}
    assert list(done.outputs) == ["c", "b#2"]  # a tensor of its own
    assert np.array_equal(run(done.path, feeds)["b#2"], feeds["b"])
    with pytest.raises(caffeport.InputError, match="no layer computes 'a', 'b'"):
        caffeport.export_onnx(network, tmp_path / "no.onnx", outputs=["a", "b"])
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_batch_of_one_that_the_net_does_not_allow_is_not_tried(tmp_path: Path) -> None:
    net = """input: "data" input_shape { dim: 3 dim: 4 }
    layer { name: "crop" type: "CropCenter" bottom: "data" top: "crop"
            crop_center_param { crop_size: 1 crop_size: 0 } }"""
    done = caffeport.export_onnx(caffeport.load(net.encode()), tmp_path / "net.onnx")
    assert done.inputs == {"data": ("N", 4)}
    assert run(done.path, {"data": np.ones((5, 4), np.float32)})["crop"].shape == (3, 4)


def test_a_resize_of_open_sizes_cuts_from_the_end(tmp_path: Path) -> None:
    net = """input: "data" input_shape { dim: 1 dim: 2 dim: 9 dim: 7 }
    layer { name: "interp" type: "Interp" bottom: "data" top: "interp"
            interp_param { height: 5 width: 4 pad_beg: -1 pad_end: -2 } }"""
    network = caffeport.load(net.encode())
    done = caffeport.export_onnx(network, tmp_path / "net.onnx", spatial="dynamic")
    x = np.random.default_rng(0).standard_normal((2, 2, 12, 15)).astype(np.float32)
    with torch.no_grad():
        assert disagreement(run(done.path, {"data": x})["interp"], network(x).numpy()) is None


def test_a_size_that_a_stride_hides_from_small_steps_stays_open(tmp_path: Path) -> None:
    net = """input: "data" input_shape { dim: 3 dim: 2 dim: 4 dim: 4 }
    layer { name: "turn" type: "Permute" bottom: "data" top: "turn"
            permute_param { order: 1 order: 2 order: 0 order: 3 } }
    layer { name: "pool" type: "Pooling" bottom: "turn" top: "pool" pooling_param { kernel_size: 3 stride: 3 } }"""
    done = caffeport.export_onnx(caffeport.load(net.encode()), tmp_path / "net.onnx")
    assert done.outputs == {"pool": (2, 4, None, 2)}
    for size, pooled in ((3, 1), (4, 2), (5, 2), (9, 3)):
        assert run(done.path, {"data": np.ones((size, 2, 4, 4), np.float32)})["pool"].shape == (2, 4, pooled, 2)


def test_an_input_without_a_name_is_fed_under_that_of_the_file(tmp_path: Path) -> None:
    net = """input: "" input_shape { dim: 1 dim: 3 } layer { name: "relu" type: "ReLU" bottom: "" top: "y" }"""
    done = caffeport.export_onnx(caffeport.load(net.encode()), tmp_path / "net.onnx")
    assert done.inputs == {"_": ("N", 3)}
    assert done.report is not None and done.report.passed


def test_a_plane_of_one_value_is_normalised_to_zeros(tmp_path: Path) -> None:
    net = """input: "data" input_shape { dim: 1 dim: 2 dim: 4 dim: 4 }
    layer { name: "mvn" type: "MVN" bottom: "data" top: "mvn" }"""
    done = caffeport.export_onnx(caffeport.load(net.encode()), tmp_path / "net.onnx")
    assert not run(done.path, {"data": np.zeros((1, 2, 4, 4), np.float32)})["mvn"].any()


def test_what_onnxruntime_lacks_is_said(tmp_path: Path) -> None:
    net = """input: "data" input_shape { dim: 1 dim: 2 dim: 8 dim: 8 } input: "rois" input_shape { dim: 1 dim: 5 }
    layer { name: "roi" type: "ROIPooling" bottom: "data" bottom: "rois" top: "roi"
            roi_pooling_param { pooled_h: 2 pooled_w: 2 } }"""
    with pytest.raises(caffeport.UnsupportedLayer, match=r"onnxruntime cannot run.*MaxRoiPool.*'roi'"):
        caffeport.export_onnx(caffeport.load(net.encode()), tmp_path / "net.onnx", opset=22)
    assert list(tmp_path.iterdir()) == []


CLIPPED = """input: "data" input_shape { dim: 1 dim: 2 dim: 5 dim: 5 }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool"
        pooling_param { kernel_size: 2 stride: 3 pad: 1 pool: AVE } }"""


def test_a_clipped_pooling_window_wants_opset_22(tmp_path: Path) -> None:
    network = caffeport.load(CLIPPED.encode())
    done = caffeport.export_onnx(network, tmp_path / "a.onnx")
    assert done.opset == 22
    assert done.outputs["pool"] == ("N", 2, 2, 2)
    with pytest.raises(caffeport.UnsupportedLayer, match=r"opset 19.*opset 22 can"):
        caffeport.export_onnx(network, tmp_path / "b.onnx", opset=19)


def test_a_batch_that_the_net_fixes_stays_so_with_a_note(tmp_path: Path) -> None:
    net = """input: "data" input_shape { dim: 2 dim: 6 }
    layer { name: "r" type: "Reshape" bottom: "data" top: "r" reshape_param { shape { dim: 2 dim: 2 dim: 3 } } }"""
    done = caffeport.export_onnx(caffeport.load(net.encode()), tmp_path / "net.onnx")
    assert done.inputs == {"data": (2, 6)}
    assert "layer 'r'" in done.notes[0]


def test_shared_weights_are_one_initializer(tmp_path: Path) -> None:
    net = """input: "data" input_shape { dim: 1 dim: 4 }
    layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" }
            inner_product_param { num_output: 4 bias_term: false weight_filler { type: "xavier" } } }
    layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } inner_product_param { num_output: 4
            bias_term: false transpose: true } }"""
    model = onnx.load(caffeport.export_onnx(caffeport.load(net.encode()), tmp_path / "net.onnx").path)
    assert [tensor.name for tensor in model.graph.initializer] == ["a.weight"]


# ---- names


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=6, max_size=6, unique=True)
)
def test_any_name_makes_a_sound_file(names: list[str], tmp_path: Path) -> None:
    from google.protobuf import text_format

    from caffeport.formats.schema import message_class

    net = message_class("NetParameter")(name=names[0])
    net.layer.add(name=names[1], type="Input", top=[names[2]]).input_param.shape.add().dim[:] = [1, 3]
    net.layer.add(name=names[3], type="ReLU", bottom=[names[2]], top=[names[4]])
    net.layer.add(name=names[3], type="TanH", bottom=[names[4]], top=[names[5]])
    network = caffeport.load(text_format.MessageToString(net, as_utf8=True).encode())
    done = caffeport.export_onnx(network, tmp_path / "net.onnx", prove=False)
    onnx.checker.check_model(str(done.path), full_check=True)
    assert len(done.outputs) == 1


# ---- pictures


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"mean": (104.0, 117.0, 123.0), "scale": 0.017},
        {"crop": (8, 9), "bgr": False},
        {"crop": (8, 9), "mean": np.random.default_rng(1).random((3, 12, 14)) * 255},
    ],
)
def test_preprocessing_inside_is_preprocessing_outside(
    small: caffeport.Network, tmp_path: Path, layout: str, how: dict[str, object]
) -> None:
    prepare = Preprocessing(**how)  # type: ignore[arg-type]
    done = caffeport.export_onnx(small, tmp_path / "net.onnx", preprocess=prepare, layout=layout, outputs=["conv1"])
    size = (12, 14) if "crop" in how else (8, 9)
    pictures = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    with torch.no_grad():
        want = small.blobs(prepare(pictures))
    fed = pictures if layout == "NHWC" else np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    for name, array in run(done.path, {"image": fed}).items():
        assert disagreement(array, want[name].numpy()) is None, name


# ---- files


def test_beyond_the_limit_weights_go_to_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = digits()
    whole = caffeport.export_onnx(network, tmp_path / "whole.onnx", prove=False)
    monkeypatch.setattr(onnx_file, "LIMIT", 1000)
    split = caffeport.export_onnx(network, tmp_path / "split.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["split.onnx", "split.onnx.data", "whole.onnx"]
    assert split.path.stat().st_size < 20_000
    x = np.random.default_rng(0).random((3, 1, 8, 8)).astype(np.float32)
    assert np.array_equal(run(whole.path, {"data": x})["prob"], run(split.path, {"data": x})["prob"])


@pytest.mark.slow
def test_more_than_2_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffeport.loading.MOST_FILLED", 2**30)
    layers = [
        f'layer {{ name: "fc{i}" type: "InnerProduct" bottom: "{"data" if not i else f"fc{i - 1}"}" top: "fc{i}" '
        "inner_product_param { num_output: 16384 bias_term: false weight_filler { value: 0.0001 } } }"
        for i in range(3)
    ]
    net = 'input: "data" input_shape { dim: 1 dim: 16384 }' + "".join(layers)
    done = caffeport.export_onnx(caffeport.load(net.encode()), tmp_path / "net.onnx", prove=False)
    assert (tmp_path / "net.onnx.data").stat().st_size >= 3 * 2**30
    assert run(done.path, {"data": np.ones((1, 16384), np.float32)})["fc2"][0, 0] == pytest.approx(1.6384**3, rel=1e-4)


def test_a_folder_that_cannot_be_written(small: caffeport.Network, tmp_path: Path) -> None:
    with pytest.raises(caffeport.InputError, match="cannot be written"):
        caffeport.export_onnx(small, tmp_path / "none" / "small.onnx")


def test_a_full_disk_leaves_nothing_and_keeps_the_old_file(
    small: caffeport.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.onnx").write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx_file, "_write", full)
    with pytest.raises(caffeport.InputError, match="No space left on device"):
        caffeport.export_onnx(small, tmp_path / "small.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    assert (tmp_path / "small.onnx").read_text() == "old"


def test_a_file_that_computes_something_else_does_not_appear(
    small: caffeport.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caffeport.layers.normalization import LRN

    monkeypatch.setattr(LRN, "onnx", lambda self, graph, bottoms: [graph.call("LRN", *bottoms, size=3)])
    with pytest.raises(caffeport.ReferenceMismatch, match="onnxruntime does not give the network's values"):
        caffeport.export_onnx(small, tmp_path / "small.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_dies_is_an_error() -> None:
    import os

    with pytest.raises(caffeport.ReferenceMismatch, match="ended early"):
        in_child(lambda: os.kill(os.getpid(), 9))
    assert in_child(lambda: 3) == 3
    with pytest.raises(KeyError):
        in_child(lambda: {}["x"])
