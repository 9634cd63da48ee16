"""Every net of ../shared/parity and ../shared/parity_forks against what real Caffe and its forks computed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffeport
from caffeport import Network
from caffeport.layers import Array
from tests.agreement import disagreement
from tests.conftest import SHARED

# Equal scores meet an unstable sort in Caffe, so that order or choice can be any of several (README of parity_forks).
TIED_SCORES = {"detection_output/003", "detection_output/009", "detection_output/012"}  # compare the scores as a set
TIED_ZEROS = {"proposal/000": 9, "proposal/004": 19}  # so many first rows have positive scores; the rest are ties


def cases(folder: str) -> list[Any]:
    """The cases of a folder, as pytest parameters (folder of the case, its entry in the index)."""
    index = SHARED / folder / "index.json"
    entries = json.loads(index.read_text()) if index.exists() else []
    return [pytest.param(SHARED / folder / entry["case"], entry, id=entry["case"]) for entry in entries]


def reference(folder: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """The arrays to feed, and those that Caffe computed."""
    with np.load(folder / "reference.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    fed = {key.removeprefix("in::"): array for key, array in arrays.items() if key.startswith("in::")}
    return fed, {key: array for key, array in arrays.items() if not key.startswith("in::")}


def load(folder: Path) -> Network:
    weights = folder / "weights.caffemodel"
    return caffeport.load(folder / "net.prototxt", weights if weights.exists() else None)


def run(network: Network, fed: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """All blobs, and what forward gives, by name."""
    with torch.no_grad():
        blobs = network.blobs(fed)
        outputs = network(fed)
    by_name = outputs if isinstance(outputs, dict) else {network.outputs[0]: outputs}
    as_arrays = [{key: value.detach().numpy() for key, value in values.items()} for values in (blobs, by_name)]
    return as_arrays[0], as_arrays[1]


def same_but_for_ties(case: str, got: Array, want: Array) -> str | None:
    if got.shape != want.shape:
        return f"shape {got.shape}, Caffe has {want.shape}"
    if case in TIED_ZEROS:
        return disagreement(got[: TIED_ZEROS[case]], want[: TIED_ZEROS[case]])
    return disagreement(np.sort(got[..., 2], axis=None), np.sort(want[..., 2], axis=None))


@pytest.mark.parametrize("folder, entry", cases("parity") + cases("parity_forks"))
def test_every_blob_is_caffes(folder: Path, entry: dict[str, Any]) -> None:
    case = entry["case"]
    network = load(folder)
    fed, wanted = reference(folder)
    blobs, outputs = run(network, fed)
    exact = entry.get("exact") or []
    tied = case in TIED_SCORES or case in TIED_ZEROS
    for key, want in wanted.items():
        assert key in blobs, f"{case}: no blob {key}; there are {list(blobs)}"
        if tied and key not in fed:
            wrong = same_but_for_ties(case, blobs[key], want)
        else:
            wrong = disagreement(blobs[key], want, exact=key in exact)
        assert wrong is None, f"{case}: {key}: {wrong}"
    if "outputs" in entry:
        assert sorted(outputs) == sorted(entry["outputs"])
    for name, value in outputs.items():
        # forward may compute a BatchNorm and the Scale after it in one call: the same rule, not the same bits.
        assert disagreement(value, blobs[name]) is None, f"{case}: forward and blobs() give different {name}"


@pytest.mark.parametrize("folder, entry", [case for case in cases("parity") if case.values[1]["h5"]])
def test_hdf5_weights_are_the_same(folder: Path, entry: dict[str, Any]) -> None:
    binary = caffeport.load(folder / "net.prototxt", folder / "weights.caffemodel").state_dict()
    hdf5 = caffeport.load(folder / "net.prototxt", folder / "weights.caffemodel.h5").state_dict()
    assert list(binary) == list(hdf5)
    assert all(torch.equal(binary[key], hdf5[key]) for key in binary)


@pytest.mark.parametrize("folder", ["parity", "parity_forks"])
def test_every_case_is_in_the_index(folder: str) -> None:
    found = {str(path.parent.relative_to(SHARED / folder)) for path in (SHARED / folder).glob("*/*/net.prototxt")}
    assert found == {case.id for case in cases(folder)}
