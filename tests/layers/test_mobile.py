"""Layers of the mobile and sequence forks against plain loops over NumPy numbers, and types that only train."""

import math

import numpy as np
import pytest

from caffeport import ShapeError, UnsupportedLayer
from caffeport.layers import Array
from tests.single import net_of, run


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("slope", [0, 0.25])
def test_relu6(slope: float) -> None:
    x = numbers(2, 3, 4, 5) * 6
    want = np.minimum(np.maximum(x, 0) + slope * np.minimum(x, 0), 6)
    (got,) = run(f'type: "ReLU6" top: "t" relu6_param {{ negative_slope: {slope} }}', x)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def depthwise(x: Array, weight: Array, bias: Array, stride: int, pad: int) -> Array:
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    k = weight.shape[2]
    height, width = ((size - k) // stride + 1 for size in x.shape[2:])
    y = np.empty((*x.shape[:2], height, width))
    for c, i, j in np.ndindex(x.shape[1], height, width):
        window = x[:, c, i * stride : i * stride + k, j * stride : j * stride + k]
        y[:, c, i, j] = (window * weight[c, 0]).sum((1, 2)) + bias[c]
    return y


LAYERS = [
    pytest.param(
        'type: "ConvolutionDepthwise" top: "t" convolution_param { num_output: 9 group: 7 %s }', id="no group read"
    ),
    pytest.param(
        'type: "DepthwiseConvolution" top: "t" convolution_param { num_output: 4 group: 4 %s }', id="group given"
    ),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_depthwise_convolution(layer: str) -> None:
    x, weight, bias = numbers(2, 4, 6, 7), numbers(4, 1, 3, 3, seed=1), numbers(4, seed=2)
    (got,) = run(layer % "kernel_size: 3 stride: 2 pad: 1", x, weights={"weight": weight, "bias": bias})
    np.testing.assert_allclose(got, depthwise(x, weight, bias, 2, 1), rtol=1e-9, atol=1e-12)


def test_weights_of_one_channel_a_filter_make_a_depthwise_convolution() -> None:
    """Published nets leave the group away; the file's arrays tell."""
    x, weight = numbers(1, 4, 5, 5).astype(np.float32), numbers(4, 1, 3, 3, seed=1).astype(np.float32)
    data = " ".join(f"data: {value!r}" for value in weight.ravel().tolist())
    blob = f"blobs {{ shape {{ dim: 4 dim: 1 dim: 3 dim: 3 }} {data} }}"
    layer = 'type: "DepthwiseConvolution" top: "t" convolution_param { num_output: 4 kernel_size: 3 bias_term: false }'
    (got,) = run(f"{layer} {blob}", x)
    np.testing.assert_allclose(got, depthwise(x, weight, np.zeros(4), 1, 0), rtol=1e-5, atol=1e-5)


def test_shuffle_channel() -> None:
    x, group = numbers(2, 6, 3, 2), 3
    (got,) = run('type: "ShuffleChannel" top: "t" shuffle_channel_param { group: 3 }', x)
    for i, j in np.ndindex(group, 6 // group):
        np.testing.assert_array_equal(got[:, j * group + i], x[:, i * (6 // group) + j])
    with pytest.raises(ShapeError, match="multiple of group 4; bottom is 2 x 6 x 3 x 2"):
        net_of('type: "ShuffleChannel" top: "t" shuffle_channel_param { group: 4 }', [(2, 6, 3, 2)])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1)])
def test_axpy(shape: tuple[int, ...]) -> None:
    a, x, y = numbers(*shape), numbers(2, 3, 4, 5, seed=1), numbers(2, 3, 4, 5, seed=2)
    (got,) = run('type: "Axpy" top: "t"', a, x, y)
    np.testing.assert_allclose(got, a.reshape(2, 3, 1, 1) * x + y, rtol=1e-12)
    with pytest.raises(ShapeError, match="a must be N x C"):
        net_of('type: "Axpy" top: "t"', [(2, 4), x.shape, y.shape])


def test_grn() -> None:
    x = numbers(2, 3, 4, 5)
    want = np.empty_like(x)
    for n, h, w in np.ndindex(2, 4, 5):
        want[n, :, h, w] = x[n, :, h, w] / math.sqrt(sum(v * v for v in x[n, :, h, w]) + 0.5)
    (got,) = run('type: "GRN" top: "t" grn_param { bias: 0.5 }', x)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_reverse() -> None:
    x = numbers(4, 3, 2)
    np.testing.assert_array_equal(run('type: "Reverse" top: "t"', x)[0], x[::-1])
    np.testing.assert_array_equal(run('type: "Reverse" top: "t" reverse_param { axis: 1 }', x)[0], x[:, ::-1])
    with pytest.raises(ShapeError, match="axis 3 is outside"):
        net_of('type: "Reverse" top: "t" reverse_param { axis: 3 }', [(4, 3, 2)])


def test_continuation_indicator() -> None:
    layer = 'type: "ContinuationIndicator" top: "t" continuation_indicator_param { time_step: 3 batch_size: 2 }'
    assert run(layer)[0].tolist() == [[0, 0], [1, 1], [1, 1]]
    with pytest.raises(ShapeError, match="time_step 3 and batch_size 0 must be above 0"):
        net_of('type: "ContinuationIndicator" top: "t" continuation_indicator_param { time_step: 3 }', [])


@pytest.mark.parametrize("type_", ["MultiBoxLoss", "SmoothL1Loss", "CtcLoss", "RegionLoss", "BoxAnnotatorOHEM"])
def test_types_that_only_train_say_so(type_: str) -> None:
    with pytest.raises(
        UnsupportedLayer, match=rf"layer 'l' \({type_}\) only trains or evaluates \(.*b0, b1\); .*deploy"
    ):
        net_of(f'type: "{type_}" top: "t"', [(1, 2), (1, 2)])


def test_python_layers_that_only_train_say_so() -> None:
    with pytest.raises(UnsupportedLayer, match=r"rpn.anchor_target_layer.AnchorTargetLayer\) only trains"):
        net_of(
            'type: "Python" top: "t" python_param { module: "rpn.anchor_target_layer" layer: "AnchorTargetLayer" }',
            [(1, 2)],
        )
