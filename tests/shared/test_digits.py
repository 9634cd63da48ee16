"""The digits net, which real Caffe trained: every form of its weights gives Caffe's numbers and answers."""

from pathlib import Path

import numpy as np
import pytest
import torch

import caffeport
from tests.agreement import disagreement
from tests.conftest import SHARED

DIGITS = SHARED / "nets" / "digits"
WEIGHTS = ["digits.caffemodel", "digits_v1.caffemodel", "digits.caffemodel.h5"]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_blob_is_caffes(weights: str) -> None:
    network = caffeport.load(DIGITS / "deploy.prototxt", DIGITS / weights)
    with np.load(DIGITS / "reference.npz") as reference, torch.no_grad():
        blobs = network.blobs(data=reference["in::data"])
        for key in reference.files:
            if not key.startswith("in::"):
                assert disagreement(blobs[key].numpy(), reference[key]) is None, key


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_answer_to_every_picture_is_caffes(weights: str) -> None:
    network = caffeport.load(DIGITS / "deploy.prototxt", DIGITS / weights)
    with np.load(DIGITS / "test_images.npz") as pictures, np.load(DIGITS / "predictions.npz") as predictions:
        data = pictures["images"][:, None].astype(np.float32) / 16
        with torch.no_grad():
            prob = network(data).numpy()
        assert np.array_equal(prob.argmax(1), predictions["argmax"])
        assert (prob.argmax(1) == pictures["labels"]).sum() == 295
        assert disagreement(prob, predictions["prob"]) is None


@pytest.mark.parametrize("weights", WEIGHTS[:2])
def test_weights_alone(weights: str) -> None:
    """The training net inside, without labels: a Softmax stands in the loss's place."""
    network = caffeport.load(DIGITS / weights)
    assert list(network.inputs) == ["data"]
    with np.load(DIGITS / "predictions.npz") as predictions, np.load(DIGITS / "test_images.npz") as pictures:
        with torch.no_grad():
            prob = network(pictures["images"][:, None].astype(np.float32) / 16)
        assert disagreement(prob.numpy(), predictions["prob"]) is None


def test_the_training_net_in_test_phase_counts_the_right_answers() -> None:
    network = caffeport.load(DIGITS / "train_test.prototxt", DIGITS / "digits.caffemodel")
    with np.load(DIGITS / "test_images.npz") as pictures, torch.no_grad():
        fed = {"data": pictures["images"][:, None].astype(np.float32) / 16, "label": pictures["labels"]}
        blobs = network.blobs(fed)
    assert blobs["accuracy"].item() == pytest.approx(295 / 297)


def test_fixtures_are_the_shared_files() -> None:
    """What `make demo` shows is this net."""
    fixtures = Path(__file__).resolve().parents[2] / "fixtures" / "digits"
    for path in fixtures.iterdir():
        assert path.read_bytes() == (DIGITS / path.name).read_bytes(), path.name
