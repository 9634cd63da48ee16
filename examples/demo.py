"""Converts a small net that real Caffe trained, and shows that PyTorch now gives Caffe's numbers and Caffe's answers.

Run it with `make demo`. The net and the numbers are in fixtures/digits; fixtures/README.md says how they were made.
Ends with status 1 if any blob or any answer differs.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import caffeport
from caffeport.store import convert

DIGITS = Path(__file__).resolve().parents[1] / "fixtures/digits"
WEIGHTS = {"V2": "digits.caffemodel", "V1": "digits_v1.caffemodel", "HDF5": "digits.caffemodel.h5"}
REL_L2 = 1e-5  # float32: what rounding alone may do to a blob


def main() -> int:
    reference = dict(np.load(DIGITS / "reference.npz"))
    data = reference.pop("in::data")
    predictions, images = np.load(DIGITS / "predictions.npz"), np.load(DIGITS / "test_images.npz")["images"]
    pictures = torch.from_numpy(images[:, None].astype(np.float32) / 16)  # (297, 1, 8, 8), 0..1

    right = True
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for form, name in WEIGHTS.items():
            converted = convert(DIGITS / "deploy.prototxt", DIGITS / name, Path(folder) / form)
            network = caffeport.load(converted.folder)
            print(f"\n{form} weights, {name}: converted in {sum(converted.seconds.values()):.2f} s")
            if form == "V2":
                print(network)

            blobs = network.blobs({"data": data})
            errors = {blob: relative_l2(blobs[blob].numpy(), wanted) for blob, wanted in reference.items()}
            print(f"  {'blob':<14} {'shape':<16} relative L2 error against Caffe")
            for blob, error in errors.items():
                print(f"  {blob:<14} {' x '.join(map(str, blobs[blob].shape)):<16} {error:.1e}")

            answers = network(pictures).argmax(1).numpy()
            same, correct = answers == predictions["argmax"], answers == predictions["labels"]
            print(f"  {same.sum()} of {len(same)} test pictures answered as by Caffe; {correct.sum()} are right")
            right = right and max(errors.values()) <= REL_L2 and bool(same.all())

    print("\nEvery blob and every answer agrees with Caffe." if right else "\nNOT EVERYTHING AGREES WITH CAFFE.")
    return 0 if right else 1


def relative_l2(value: np.ndarray, wanted: np.ndarray) -> float:
    """||value - wanted|| / ||wanted||; infinite where shapes differ."""
    if value.shape != wanted.shape:
        return float("inf")
    difference = np.linalg.norm(value.astype(np.float64).ravel() - wanted.ravel())
    return float(difference / (np.linalg.norm(wanted.astype(np.float64)) or 1.0))


if __name__ == "__main__":
    sys.exit(main())
