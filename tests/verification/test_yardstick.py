"""What Caffe loses by adding one number after the other, or by its formula, fails no right layer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import caffeport
from caffeport.verification import Report
from tests.verification.nets import on_threads

Array = np.ndarray[Any, Any]
F = np.float32


def report(layer: str, x: Array, top: Array) -> Report:
    """One layer on x, beside what Caffe is supposed to have made of it."""
    dims = " ".join(f"dim: {n}" for n in x.shape)
    net = f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}\n{layer}'
    return caffeport.verify(caffeport.load(net.encode()), {"in::data": x, "top": top})


def normalised(x: Array, size: int, alpha: float, k: float) -> Array:
    """LRN across channels as Caffe 1.0 computes it on a CPU, in float32."""
    half, channels = size // 2, x.shape[1]
    square = np.pad(x * x, ((0, 0), (half, half), (0, 0), (0, 0)))
    scale = np.full_like(x, k)
    share = F(alpha / size)
    for c in range(size):
        scale[:, 0] += share * square[:, c]
    for c in range(1, channels):
        scale[:, c] = scale[:, c - 1] + share * square[:, c + size - 1] - share * square[:, c - 1]
    return np.asarray(x * scale ** F(-0.75), F)


def steep() -> Array:
    """Channels of which the second is far larger than the others."""
    x = np.random.default_rng(0).standard_normal((2, 12, 5, 6)).astype(F)
    x[:, 1] *= 30
    return x


@pytest.mark.parametrize("size", [1, 3, 5, 41])
def test_lrn_keeps_the_error_of_a_large_channel(size: int) -> None:
    layer = 'layer {{ name: "top" type: "LRN" bottom: "data" top: "top" lrn_param {{ local_size: {} alpha: {} }} }}'
    x = steep()
    assert report(layer.format(size, 0.5), x, normalised(x, size, 0.5, 1)).passed
    assert not report(layer.format(size, 0.5), x, normalised(x, size, 0.55, 1)).passed


@pytest.mark.parametrize("window, n", [("global_pooling: true", 900), ("kernel_size: 15 stride: 15", 225)])
def test_an_average_of_one_value(window: str, n: int) -> None:
    """All rounding errors of the sum point the same way."""
    x = np.full((1, 4, 30, 30), 0.1, F) * np.array([1, 1.1, 1.2, 1.3], F).reshape(1, 4, 1, 1)
    side = 1 if n == 900 else 2
    total = np.zeros((1, 4, 1, 1), F)
    for _ in range(n):
        total += x[:, :, :1, :1]
    top = np.repeat(np.repeat(total / F(n), side, 2), side, 3)
    layer = f'layer {{ name: "top" type: "Pooling" bottom: "data" top: "top" pooling_param {{ pool: AVE {window} }} }}'
    assert abs(top[0, 0, 0, 0] / 0.1 - 1) > 1e-6
    assert report(layer, x, top).passed
    assert not report(layer, x, top * F(1.001)).passed


@pytest.mark.parametrize(
    "type_, function",
    [
        ("ELU", lambda x: np.where(x > 0, x, np.exp(x) - F(1))),
        ("BNLL", lambda x: np.where(x > 0, x + np.log(F(1) + np.exp(-x)), np.log(F(1) + np.exp(x)))),
    ],
)
def test_formulas_that_lose_small_values(type_: str, function: Callable[[Array], Array]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(F)
    x = x * F(1e-6) if type_ == "ELU" else x - F(14)
    layer = f'layer {{ name: "top" type: "{type_}" bottom: "data" top: "top" }}'
    assert report(layer, x, function(x).astype(F)).passed
    assert not report(layer, x, function(x * F(1.5)).astype(F)).passed


def test_mvn_of_values_far_from_zero() -> None:
    x = (np.random.default_rng(0).standard_normal((2, 3, 40, 40)) * 0.01 + 100).astype(F)
    rows = x.reshape(6, -1)
    mean = np.add.accumulate(rows.reshape(6, -1, 8), axis=1)[:, -1].sum(1, keepdims=True) / F(1600)
    d = rows - mean
    top = (d / (np.sqrt((d * d).mean(1, keepdims=True)) + F(1e-9))).reshape(x.shape)
    assert report('layer { name: "top" type: "MVN" bottom: "data" top: "top" }', x, top).passed


def test_what_is_tested_stays_the_users_own_layer() -> None:
    """The yardstick may err more than ours: the ratio of the device is below one."""
    x = steep()
    layer = 'layer { name: "top" type: "LRN" bottom: "data" top: "top" lrn_param { local_size: 3 alpha: 0.5 } }'
    with on_threads(1):
        found = report(layer, x, normalised(x, 3, 0.5, 1))
    judgement = found.layers[-1].judgement
    assert judgement is not None
    assert judgement.device < 0.5 < judgement.reference
