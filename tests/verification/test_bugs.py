"""Bugs put into right nets are found in the right layer and named for what they are."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffeport
from caffeport.network import Network
from tests.conftest import SHARED, needs_shared
from tests.verification.bugs import injected
from tests.verification.nets import digits

ZOO = ["lenet_v1_2014", "mtcnn_det1", "convbn_block", "pnet_pytorch"]


def hunt(network: Network, reference: Any) -> list[str]:
    """Inject every bug in every layer, and list those that are not found, not there, or not for the right reason."""
    with torch.no_grad():
        blobs = network.blobs({name: reference[f"in::{name}"] for name in network.inputs})
    bottoms = {step.key: blobs[step.bottoms[0].value.key] for step in network.graph.steps if step.bottoms}
    missed, count = [], 0
    for bug, step in injected(network, bottoms):
        count += 1
        report = caffeport.verify(network, reference)
        causes = "; ".join(cause.what for cause in report.causes)
        if report.first_failure != step.key or not re.search(bug.cause, causes):
            missed.append(f"{bug.name} in {step.key}: found in {report.first_failure}, because {causes or 'nothing'}")
    assert count
    return missed


def test_digits() -> None:
    assert hunt(*digits()) == []


@needs_shared
@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    network, reference = zoo(name)
    assert hunt(network, reference) == []


@needs_shared
@pytest.mark.parametrize("name", ["digits", *ZOO])
def test_without_the_weights_file(name: str) -> None:
    """Arithmetic alone: what it cannot show is a weight that meets zeros only, or a bias that rounding swallows."""
    network, reference = digits() if name == "digits" else zoo(name)
    network.description = None
    invisible = [
        "one weight off by 1 % in ip2: found in None, because nothing",
        "one bias zeroed in conv1: found in None, because nothing",
        "a bias dropped in conv1: found in None, because nothing",
    ]
    assert [line for line in hunt(network, reference) if line not in invisible] == []


def zoo(name: str) -> tuple[Network, dict[str, np.ndarray[Any, Any]]]:
    folder: Path = SHARED / "zoo" / name
    with np.load(folder / "reference.npz") as reference:
        return caffeport.load(folder / "deploy.prototxt", folder / "weights.caffemodel"), {
            key: reference[key] for key in reference.files
        }
