"""Small nets for these tests, and references for them."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

import caffeport
from caffeport.network import Network
from tests.conftest import DIGITS

CHAIN = """
name: "chain"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 12 dim: 10 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
        num_output: 8 kernel_size: 3 pad: 1
        weight_filler { type: "gaussian" std: 0.2 } bias_filler { type: "gaussian" std: 0.5 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "norm" type: "LRN" bottom: "conv" top: "norm" lrn_param { local_size: 3 alpha: 0.5 } }
layer { name: "pool" type: "Pooling" bottom: "norm" top: "pool" pooling_param {
        pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 5
        weight_filler { type: "gaussian" std: 0.1 } bias_filler { type: "gaussian" std: 0.5 } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_statistics(network: Network, norm: str) -> Network:
    """The same network, its BatchNorm with numbers that are not 0 and 1."""
    module = network.get_submodule(norm)
    module.running_mean.normal_(generator=torch.Generator().manual_seed(1))
    module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    return network


def chain() -> Network:
    """Convolution, in-place ReLU, LRN, average pooling, a fully connected layer, softmax: random weights, no file."""
    return caffeport.load(CHAIN.encode(), seed=3)


def pictures(network: Network, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {name: random.uniform(-50, 200, shape).astype(np.float32) for name, shape in network.inputs.items()}


def recorded(network: Network, inputs: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """What the net itself gives, in the form of a reference. Good for what `verify` makes of it, not for what is
    right.
    """
    with torch.no_grad():
        blobs = network.blobs(dict(inputs))
    names = network.inputs
    return {
        (f"in::{key}" if key in names else key): tensor.numpy().copy()
        for key, tensor in blobs.items()
        if "::" in key or key in names
    }


def recorded_in_float64(network: Network, inputs: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The same from a run in float64, rounded to float32."""
    found = recorded(deepcopy(network).double(), inputs)
    return {key: array.astype(np.float32) for key, array in found.items()}


def digits() -> tuple[Network, dict[str, np.ndarray[Any, Any]]]:
    """The net of fixtures/digits and real Caffe's numbers for it."""
    network = caffeport.load(DIGITS / "deploy.prototxt", DIGITS / "digits.caffemodel")
    with np.load(DIGITS / "reference.npz") as reference:
        return network, {key: reference[key] for key in reference.files}


def largest_memory(call: Callable[[], object], trace: Path) -> int:
    """Bytes of torch's tensors on the CPU, at most at one time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    profile.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    return max(accumulate(e["args"]["Bytes"] for e in sorted(events, key=lambda e: e["ts"])))
