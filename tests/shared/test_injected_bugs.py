"""Bugs put into large nets are found: in MemNet in the right layer, in open_nsfw and mobilefacenet in the segment that
holds it.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffeport
from caffeport.network import Network
from caffeport.verification import Report
from tests.conftest import SHARED
from tests.verification.bugs import BUGS, Bug, injected
from tests.verification.nets import recorded_in_float64

Arrays = dict[str, np.ndarray[Any, Any]]

pytestmark = pytest.mark.slow

MEMNET = {  # bug: layers that get it
    "one weight off by 1 %": {"conv1", "conv4", "fc6"},
    "one bias zeroed": {"conv5", "fc6", "fc8-euclidean"},
    "a bias dropped": {"conv1", "fc7"},
    "LRN alpha not divided": {"norm1", "norm2"},
    "LRN k changed": {"norm1", "norm2"},
    "RGB swapped": {"conv1"},
    "kernels rotated": {"conv1", "conv5"},
    "groups swapped": {"conv2", "conv4", "conv5"},
    "weights in fp16": {"conv3", "fc8-euclidean"},
    "weights in TF32": {"conv2", "fc7"},
}
NSFW = {
    "one weight off by 1 %": {"conv_1", "conv_stage2_block0_branch2c"},
    "one bias zeroed": {"scale_stage2_block0_branch2b", "fc_nsfw"},
    "a bias dropped": {"scale_stage2_block0_branch2b", "fc_nsfw"},
    "BatchNorm eps doubled": {"bn_stage2_block0_branch2b", "bn_stage3_block2_branch2c"},
    "BatchNorm's factor ignored": {"bn_1", "bn_stage2_block0_branch2b"},
    "RGB swapped": {"conv_1"},
    "kernels rotated": {"conv_1", "conv_stage3_block2_branch2b"},
    "pooling rounded down": {"pool1"},
    "weights in fp16": {"conv_stage2_block0_branch2c"},
    "weights in TF32": {"fc_nsfw"},
}
MOBILE = {
    "one weight off by 1 %": {"conv_1_conv2d", "dconv_23_conv_sep_conv2d", "pre_fc1"},
    "one bias zeroed": {"conv_2_dw_batchnorm_scale", "bn6w_scale", "fc1_scale"},
    "a bias dropped": {"dconv_23_conv_sep_batchnorm_scale", "fc1_scale"},
    "BatchNorm eps doubled": {"conv_2_dw_batchnorm", "bn6w"},
    "BatchNorm's factor ignored": {"conv_1_batchnorm", "fc1"},
    "RGB swapped": {"conv_1_conv2d"},
    "kernels rotated": {"conv_2_dw_conv2d", "res_5_block1_conv_dw_conv2d"},
    "weights in fp16": {"dconv_23_conv_dw_conv2d", "pre_fc1"},
    "weights in TF32": {"res_5_block1_conv_proj_conv2d", "pre_fc1"},
}


def hunt(network: Network, reference: Arrays, chosen: Mapping[str, set[str]]) -> list[str]:
    """Inject the chosen bugs; list those that are not found where they are, or not for the right reason."""
    missed, done = [], set()
    for bug, step in injected(network, {}, [bug for bug in BUGS if bug.name in chosen]):
        if step.key not in chosen[bug.name]:
            continue
        done.add((bug.name, step.key))
        report = caffeport.verify(network, reference)
        if not blamed(report, bug, step.key):
            causes = "; ".join(cause.what for cause in report.causes) or "nothing"
            missed.append(f"{bug.name} in {step.key}: found in {report.first_failure}, because {causes}")
    assert done == {(name, layer) for name, layers in chosen.items() for layer in layers}
    return missed


def blamed(report: Report, bug: Bug, layer: str) -> bool:
    row = next((row for row in report.layers if row.layer == report.first_failure), None)
    here = row is not None and layer in (row.segment or (row.layer,))
    return here and any(re.search(bug.cause, cause.what) for cause in report.causes)


def test_memnet(tmp_path: Path) -> None:
    """Every layer's top from an unbroken run in float64, rounded to float32; one picture."""
    folder, weights = SHARED / "nets" / "memnet", tmp_path / "memnet.caffemodel"
    subprocess.run([sys.executable, folder / "make_weights.py", weights], check=True, capture_output=True)
    network = caffeport.load(folder / "deploy.prototxt", weights)
    with np.load(folder / "reference.npz") as arrays:
        data = arrays["in::data"][:1]
    reference = recorded_in_float64(network, {"data": data})
    assert caffeport.verify(network, reference).coverage == {"alone": 22, "segment": 0, "no": 0}
    assert hunt(network, reference, MEMNET) == []
    with torch.no_grad():
        report = caffeport.verify(network, reference, inputs={"data": data + 1})
    assert report.first_failure == "conv1"
    assert "a mean was subtracted from the input on one side only" in report.causes[0].what


def test_open_nsfw() -> None:
    """The stored reference has 10 of 228 layers' tops. In bn_1, whose variances are large, eps makes no difference
    that is left at the first of them.
    """
    folder = SHARED / "zoo" / "open_nsfw"
    network = caffeport.load(folder / "deploy.prototxt", folder / "weights.caffemodel")
    with np.load(folder / "reference.npz") as arrays:
        reference = {key: arrays[key] for key in arrays.files}
    assert hunt(network, reference, NSFW) == []


def test_mobilefacenet() -> None:
    """The stored reference has 13 of 197 layers' tops."""
    folder = SHARED / "zoo" / "mobilefacenet"
    network = caffeport.load(folder / "deploy.prototxt", folder / "weights.caffemodel")
    with np.load(folder / "reference.npz") as arrays:
        reference = {key: arrays[key] for key in arrays.files}
    assert hunt(network, reference, MOBILE) == []
