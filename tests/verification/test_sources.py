"""References made on the spot: a stand-in for pycaffe in a process of its own, OpenCV, and onnxruntime."""

import ast
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import caffeport
from caffeport.export.onnx import export_onnx
from caffeport.verification.sources import dump_script, from_caffe, from_opencv, opencv_fault
from tests.conftest import DIGITS, SHARED, needs_shared
from tests.verification.nets import chain, digits

# As much of pycaffe as the script uses; it answers with what the fixture's reference holds.
PYCAFFE = """
import sys
import numpy as np

TEST = 1
def set_mode_cpu(): pass

class Blob(object):
    def __init__(self, data): self.data = data
    def reshape(self, *shape): self.data = np.zeros(shape, np.float32)

class Kind(object):
    def __init__(self, type): self.type = type

class Net(object):
    def __init__(self, net, weights, phase):
        if "abort" in {mode!r}:
            where = "F1125 10:00:00.0 1 layer_factory.hpp:81] "
            sys.stderr.write(where + "Check failed: registry.count(type) == 1 Unknown layer type: Foo\\n")
            sys.stderr.flush()
            import os
            os.abort()
        self.held = np.load({reference!r})
        self.inputs = ["data"]
        keys = [key for key in self.held.files if "::" in key and not key.startswith("in::")]
        self._layer_names = ["input"] + [key.split("::")[0] for key in keys]
        self.tops = ["data"] + [key.split("::")[1] for key in keys]
        self._blob_names = sorted(set(self.tops))
        self.layers = [Kind("Input")] + [Kind("Other") for key in keys]
        self.blobs = dict((name, Blob(np.zeros(self.held["in::data"].shape, np.float32))) for name in self._blob_names)
    def _top_ids(self, index): return [self._blob_names.index(self.tops[index])]
    def reshape(self): pass
    def _forward(self, first, last):
        assert first == last
        if first:
            key = self._layer_names[first] + "::" + self.tops[first]
            self.blobs[self.tops[first]].data = self.held[key]
"""


@pytest.fixture
def pycaffe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "python"
    folder.mkdir()
    (folder / "caffe.py").write_text(PYCAFFE.format(mode="", reference=str(DIGITS / "reference.npz")))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_the_script_is_read_by_every_python_3_and_uses_only_what_python_2_has() -> None:
    tree = ast.parse(dump_script(), feature_version=(3, 4))
    nodes = list(ast.walk(tree))
    assert not [
        node for node in nodes if isinstance(node, ast.JoinedStr | ast.AnnAssign | ast.AsyncFunctionDef | ast.Nonlocal)
    ]
    assert not [node for node in nodes if isinstance(node, ast.FunctionDef) and (node.returns or node.args.kwonlyargs)]
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"argparse", "io", "os", "sys", "zipfile", "numpy", "caffe"}


def test_caffe_in_another_python(pycaffe: Path) -> None:
    network, reference = digits()
    report = caffeport.verify(network, f"caffe:{sys.executable}", inputs={"data": reference["in::data"]})
    assert report.passed
    assert report.coverage["alone"] == 10
    assert report.reference == f"Caffe in {sys.executable}"


def test_the_temporary_folder_is_removed(pycaffe: Path) -> None:
    network, reference = digits()
    with from_caffe(network, sys.executable, {"data": reference["in::data"]}) as made:
        file = made.source.path  # type: ignore[attr-defined]
        assert file.is_file()
    assert not file.parent.exists()


def test_caffes_own_words_when_it_aborts(pycaffe: Path) -> None:
    (pycaffe / "caffe.py").write_text(PYCAFFE.format(mode="abort", reference=""))
    network, _ = digits()
    with pytest.raises(
        caffeport.ReferenceMismatch, match=r"ended with signal 6 on this net: Check failed: .* Unknown layer type: Foo"
    ):
        caffeport.verify(network, f"caffe:{sys.executable}")


def test_a_python_without_caffe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "caffe.py").write_text("raise ImportError('No module named _caffe')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(caffeport.ReferenceMismatch, match=r"ended with status 1 .* No module named _caffe"):
        caffeport.verify(digits()[0], f"caffe:{sys.executable}")


def test_a_python_that_is_not_there() -> None:
    with pytest.raises(caffeport.InputError, match="caffe:/nowhere/python: cannot be started: No such file"):
        caffeport.verify(digits()[0], "caffe:/nowhere/python")


def test_an_open_input_has_to_be_given(pycaffe: Path) -> None:
    network = caffeport.load(DIGITS / "deploy.prototxt", DIGITS / "digits.caffemodel", inputs={"data": (None, 1, 8, 8)})
    with pytest.raises(caffeport.InputError, match=r"input 'data': its shape .* is open"):
        caffeport.verify(network, f"caffe:{sys.executable}")


@pytest.mark.skipif("CAFFE_PYTHON" not in os.environ, reason="CAFFE_PYTHON names no Python that has Caffe")
def test_real_caffe() -> None:
    network, _ = digits()
    report = caffeport.verify(network, f"caffe:{os.environ['CAFFE_PYTHON']}")
    assert report.passed
    assert report.coverage["alone"] == 10


class TestOpenCV:
    def test_a_right_net(self) -> None:
        pytest.importorskip("cv2")
        report = caffeport.verify(digits()[0], "opencv", inputs={"data": digits()[1]["in::data"]})
        assert report.passed
        assert report.reference.startswith("OpenCV 4")
        assert report.coverage["no"] <= 1

    def test_a_known_fault_is_put_down_to_it(self) -> None:
        network = chain()
        faults = {step.key: opencv_fault(step) for step in network.graph.steps}
        assert not faults["norm"]
        network.graph.steps[2].layer.param.k = 2
        assert opencv_fault(network.graph.steps[2]) == "OpenCV ignores k"

    def test_a_fault_does_not_fail(self, tmp_path: Path) -> None:
        pytest.importorskip("cv2")
        norm = 'layer { name: "norm" type: "LRN" bottom: "conv2" top: "norm" lrn_param { k: 2 alpha: 3 } }\n'
        pool = 'layer { name: "pool2"'
        net = (DIGITS / "deploy.prototxt").read_text().replace(pool, norm + pool)
        (tmp_path / "net.prototxt").write_text(net)
        network = caffeport.load(tmp_path / "net.prototxt", DIGITS / "digits.caffemodel")
        report = caffeport.verify(network, "opencv", inputs={"data": digits()[1]["in::data"]})
        row = next(row for row in report.layers if row.layer == "norm")
        assert row.agrees(report.limits) is False
        assert row.fault == "OpenCV ignores k"
        assert report.passed

    def test_what_it_refuses_is_said_in_its_words(self) -> None:
        pytest.importorskip("cv2")
        with pytest.raises(caffeport.InputError, match=r"the weights were not read from a file|cannot run"):
            from_opencv(
                caffeport.load((DIGITS / "deploy.prototxt").read_bytes(), (DIGITS / "digits.caffemodel").read_bytes())
            )


class TestOnnx:
    @pytest.mark.parametrize("fold", [False, True])
    def test_the_nets_own_export(self, tmp_path: Path, fold: bool) -> None:
        network, reference = digits()
        path = tmp_path / "digits.onnx"
        export_onnx(network, path, fold=fold, prove=False)
        report = caffeport.verify(network, f"onnx:{path}", inputs={"data": reference["in::data"]})
        assert report.passed
        assert report.coverage["no"] == 0
        assert report.layers[-1].judged == "segment"
        assert report.reference == f"onnxruntime {onnxruntime.__version__} on digits.onnx"

    def test_every_layer_of_an_export_with_all_tops(self, tmp_path: Path) -> None:
        network, _ = digits()
        path = tmp_path / "digits.onnx"
        tops = [top.key for step in network.graph.steps for top in step.tops]
        export_onnx(network, path, outputs=tops, prove=False)
        assert caffeport.verify(network, f"onnx:{path}").coverage["alone"] == len(tops)
        with torch.no_grad():
            network.get_parameter("conv2.bias").add_(0.01)
        assert caffeport.verify(network, f"onnx:{path}").first_failure == "conv2"

    def test_a_file_that_is_not_there(self) -> None:
        with pytest.raises(caffeport.InputError, match=r"onnx:nowhere\.onnx: no such file"):
            caffeport.verify(digits()[0], "onnx:nowhere.onnx")

    def test_a_file_that_is_no_model(self) -> None:
        with pytest.raises(caffeport.ReferenceMismatch, match=r"does not run it on this net's inputs, 'data': "):
            caffeport.verify(digits()[0], f"onnx:{DIGITS / 'deploy.prototxt'}")

    def test_another_nets_model(self, tmp_path: Path) -> None:
        export_onnx(chain(), tmp_path / "chain.onnx", prove=False)
        with pytest.raises(caffeport.ReferenceMismatch, match=r"does not run it .* invalid dimensions for input: data"):
            caffeport.verify(digits()[0], f"onnx:{tmp_path / 'chain.onnx'}")


@needs_shared
def test_opencv_on_a_real_net() -> None:
    pytest.importorskip("cv2")
    folder = SHARED / "zoo" / "mtcnn_det1"
    network = caffeport.load(folder / "deploy.prototxt", folder / "weights.caffemodel")
    with np.load(folder / "reference.npz") as reference:
        assert caffeport.verify(network, "opencv", inputs={"data": reference["in::data"]}).passed
