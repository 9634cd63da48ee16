"""What `verify` of open_nsfw costs, in forward passes of the same net: `python -m tests.bench.verify`.

With the stored reference, which has 10 of 228 layers' tops, and with one of all layers: a run in float64, rounded.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import caffeport
from tests.conftest import SHARED
from tests.verification.nets import in_float64

ROUNDS = 7


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def passes(network: caffeport.network.Network, reference: dict[str, np.ndarray[Any, Any]], fail_fast: bool) -> float:
    """The least time of a verification over that of a forward pass, of alternating runs."""
    data = torch.from_numpy(reference["in::data"])
    forward, verify = [], []
    with torch.no_grad():
        network(data)
        for _ in range(ROUNDS):
            forward += [seconds(lambda: network(data)) for _ in range(3)]
            verify.append(seconds(lambda: caffeport.verify(network, reference, fail_fast=fail_fast)))
    return min(verify) / min(forward)


def main() -> None:
    folder = SHARED / "zoo" / "open_nsfw"
    network = caffeport.load(folder / "deploy.prototxt", folder / "weights.caffemodel")
    with np.load(folder / "reference.npz") as arrays:
        stored = {key: arrays[key] for key in arrays.files}
    full = in_float64(network, stored["in::data"])
    print("verify of open_nsfw, in forward passes       1 thread  2 threads")
    for name, reference, fail_fast in (
        ("stored reference", stored, False),
        ("stored reference, --fail-fast", stored, True),
        ("all layers", full, False),
        ("all layers, --fail-fast", full, True),
    ):
        costs = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            costs.append(passes(network, reference, fail_fast))
        print(f"  {name:42} {costs[0]:6.1f} {costs[1]:10.1f}", flush=True)


if __name__ == "__main__":
    main()
