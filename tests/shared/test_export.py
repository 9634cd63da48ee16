"""Exports of every shared net: onnxruntime gives Caffe's arrays, and the generated source gives the Network's bits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import caffeport
from caffeport.export.proof import run
from caffeport.formats.schema import message_class
from caffeport.formats.text import parse_text
from caffeport.layers import Array
from tests.agreement import arrays, disagreement
from tests.conftest import SHARED

TIES = {"detection_output/003", "detection_output/009", "detection_output/012"}  # equal scores, any order is right
POSITIVE = {"proposal/000": 9, "proposal/004": 19}  # rows of positive score; those of score 0 follow in any order
CASES = [
    pytest.param(SHARED / folder / case["case"], case, id=f"{folder}/{case['case']}")
    for folder in ("parity", "parity_forks")
    if (SHARED / folder / "index.json").is_file()
    for case in json.loads((SHARED / folder / "index.json").read_text())
]
ZOO = sorted(path.parent.name for path in (SHARED / "zoo").glob("*/weights.caffemodel*"))


def opened(folder: Path, name: str = "net.prototxt") -> tuple[caffeport.Network, dict[str, Array], dict[str, Array]]:
    """The network, Caffe's arrays, and what was fed."""
    reference = arrays(folder / "reference.npz")
    feeds = {key.removeprefix("in::"): array for key, array in reference.items() if key.startswith("in::")}
    weights = next(
        (folder / f"weights.{end}" for end in ("caffemodel", "caffemodel.h5") if (folder / f"weights.{end}").exists()),
        None,
    )
    network = caffeport.load(
        folder / name, weights, inputs={blob: array.shape for blob, array in feeds.items()}, strict=False
    )
    return network, reference, feeds


def kept(network: caffeport.Network, reference: dict[str, Array]) -> list[str]:
    """All values of the net that the reference holds."""
    tops = [top.key for step in network.graph.steps for top in step.tops]
    return [
        key for key in dict.fromkeys([*tops, *network.graph.blobs]) if key in reference and key not in network.inputs
    ]


@pytest.mark.parametrize("folder, case", CASES)
def test_onnxruntime_gives_caffes_arrays(folder: Path, case: dict[str, object], tmp_path: Path) -> None:
    network, reference, feeds = opened(folder)
    name = f"{folder.parent.name}/{folder.name}"
    outputs = kept(network, reference)
    if not outputs:
        with pytest.raises(caffeport.CaffeportError, match=r"none was named"):
            caffeport.export_onnx(network, tmp_path / "net.onnx")
        return
    done = caffeport.export_onnx(network, tmp_path / "net.onnx", outputs=outputs, prove=False)
    got = run(done.path, {blob: feeds[blob] for blob in done.inputs})
    if name not in TIES:
        for key in outputs:
            assert got[key].shape == reference[key].shape, key
            rows = slice(POSITIVE[name]) if name in POSITIVE and key.endswith("rois") else ...  # all, also of a scalar
            assert disagreement(got[key][rows], reference[key][rows]) is None, key
    fixed = [note for note in done.notes if "batch size is fixed" in note]
    if case.get("batch_independent") and name not in TIES:
        assert all("was built as" in note for note in fixed)  # Caffe's own weights go along the batch there
        if fixed:
            return
        double = {blob: np.concatenate([feeds[blob], feeds[blob][:1]]) for blob in done.inputs}
        with torch.no_grad():
            want = network.blobs(double)
        for key, array in run(done.path, double).items():
            assert disagreement(array, want[key].numpy()) is None, key


@pytest.mark.parametrize("number", range(6))
def test_regions_of_a_picture_of_another_size(number: int, tmp_path: Path) -> None:
    network, _, feeds = opened(SHARED / "parity_forks" / "faster_rcnn_net" / f"{number:03}")
    done = caffeport.export_onnx(network, tmp_path / "net.onnx", spatial="dynamic")
    feeds["data"] = np.random.default_rng(number).standard_normal((1, 3, 70, 91)).astype(np.float32)
    feeds["im_info"] = np.array([[70, 91, *feeds["im_info"][0, 2:]]], np.float32)
    with torch.no_grad():
        want = network.blobs(feeds)
    assert len(want["rois"]) > 5
    for key, array in run(done.path, feeds).items():
        assert disagreement(array, want[key].numpy()) is None, key


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_in_onnxruntime(name: str, tmp_path: Path) -> None:
    network, reference, feeds = opened(SHARED / "zoo" / name, "deploy.prototxt")
    outputs = kept(network, reference)
    done = caffeport.export_onnx(network, tmp_path / "net.onnx", outputs=outputs)
    got = run(done.path, {blob: feeds[blob] for blob in done.inputs})
    for key in outputs:
        if "sigmoid" in key and name == "tusimple_lane":  # onnxruntime's Sigmoid has an absolute precision only
            assert np.abs(got[key] - reference[key]).max() <= 2**-22, key
        else:
            assert disagreement(got[key], reference[key]) is None, key


def test_names_in_the_file_are_those_of_the_prototxt(tmp_path: Path) -> None:
    """Each layer of open_nsfw is the node of its name; a tensor has its blob's name where it is its last value."""
    folder = SHARED / "zoo" / "open_nsfw"
    net = message_class("NetParameter")()
    parse_text((folder / "deploy.prototxt").read_bytes(), net, "deploy.prototxt")
    layers = [layer for layer in net.layer if layer.type != "Input"]
    network, _, _ = opened(folder, "deploy.prototxt")
    graph = onnx.load(caffeport.export_onnx(network, tmp_path / "net.onnx", prove=False).path).graph
    assert [node.name for node in graph.node if "/" not in node.name] == [layer.name for layer in layers]
    assert all("/" not in layer.name for layer in layers)  # so that a "/" says: a part of a layer

    last = {top: layer.name for layer in layers for top in layer.top}
    current = {value.name: value.name for value in graph.input}
    weights = {tensor.name for tensor in graph.initializer}
    for layer in layers:
        nodes = [node for node in graph.node if node.name.partition("/")[0] == layer.name]
        assert {node.doc_string for node in nodes} == {layer.type}
        inside = {name for node in nodes for name in node.output}
        read = [name for node in nodes for name in node.input if name not in inside | weights]
        assert read == [current[blob] for blob in layer.bottom]
        (top,) = layer.top
        current[top] = top if last[top] == layer.name else f"{layer.name}::{top}"
        assert list(nodes[-1].output) == [current[top]]
    assert [value.name for value in graph.output] == [current[top] for top in layers[-1].top]


RUNNER = """
import importlib.util, sys, torch
sys.modules["caffeport"] = None  # whoever imports it fails
torch.set_num_threads(1)
for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("net", path + ".py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    case = torch.load(path + ".pt")
    net = getattr(module, case["class"])()
    net.load_state_dict(case["state"])
    net.eval()
    with torch.no_grad():
        got = net(*case["inputs"])
    got = got if isinstance(got, dict) else {"": got}
    for name, want in case["outputs"].items():
        same = got[name].shape == want.shape and torch.equal(got[name].nan_to_num(), want.nan_to_num())
        assert same, f"{path}: {name}"
"""


@pytest.mark.parametrize("folder", ["parity", "parity_forks", "zoo"])
def test_the_source_gives_the_networks_bits_without_caffeport(folder: str, tmp_path: Path) -> None:
    paths = []
    for i, place in enumerate(sorted(path.parent for path in (SHARED / folder).rglob("reference.npz"))):
        network, _, feeds = opened(place, "deploy.prototxt" if folder == "zoo" else "net.prototxt")
        done = caffeport.export_source(network, tmp_path / f"net{i}.py", prove=False, exact=True)
        inputs = [torch.from_numpy(feeds[value.blob]) for value in network.graph.needed]
        with torch.no_grad():
            outputs = (
                network(*inputs)
                if len(inputs) == len(network.inputs)
                else network({v.blob: x for v, x in zip(network.graph.needed, inputs, strict=True)})
            )
        state = {}
        for key, tensor in network.state_dict().items():
            module, _, rest = key.partition(".")
            state[f"{done.renamed.get(module, module)}.{rest}"] = tensor
        case = {"class": done.name, "inputs": inputs, "state": state}
        torch.save(case | {"outputs": outputs if isinstance(outputs, dict) else {"": outputs}}, tmp_path / f"net{i}.pt")
        paths.append(str(tmp_path / f"net{i}"))
    finished = subprocess.run([sys.executable, "-c", RUNNER, *paths], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
