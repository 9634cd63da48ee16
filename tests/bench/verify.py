"""What `verify` of open_nsfw costs, in forward passes of the same net: `python -m tests.bench.verify`.

With the stored reference, which has 10 of 228 layers' tops, and with one of all layers: a run in float64, rounded.
"""

from typing import Any

import numpy as np
import torch

import caffeport
from tests.bench.layers import best
from tests.conftest import SHARED
from tests.verification.nets import recorded_in_float64

ROUNDS = 15


def passes(network: caffeport.network.Network, reference: dict[str, np.ndarray[Any, Any]], fail_fast: bool) -> float:
    """The least time of a verification over that of a forward pass, of alternating runs."""
    data = torch.from_numpy(reference["in::data"])
    with torch.no_grad():
        verify, forward = best(
            lambda: caffeport.verify(network, reference, fail_fast=fail_fast), lambda: network(data), ROUNDS
        )
    return verify / forward


def main() -> None:
    folder = SHARED / "zoo" / "open_nsfw"
    network = caffeport.load(folder / "deploy.prototxt", folder / "weights.caffemodel")
    with np.load(folder / "reference.npz") as arrays:
        stored = {key: arrays[key] for key in arrays.files}
    full = recorded_in_float64(network, {"data": stored["in::data"]})
    print("verify of open_nsfw, in forward passes       1 thread  2 threads")
    for items in (2, 1):
        for name, reference in (("stored reference", stored), ("all layers", full)):
            for fail_fast in (False, True):
                some = {key: array[:items] for key, array in reference.items()}
                costs = []
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    costs.append(passes(network, some, fail_fast))
                what = f"{items} picture{'s' * (items > 1)}, {name}{', --fail-fast' * fail_fast}"
                print(f"  {what:42} {costs[0]:6.1f} {costs[1]:10.1f}", flush=True)


if __name__ == "__main__":
    main()
