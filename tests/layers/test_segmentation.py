"""Segmentation layers against plain loops over NumPy numbers, written from the layers' formulas."""

import math

import numpy as np
import pytest

from caffeport import ShapeError
from caffeport.formats.schema import LayerParameter
from caffeport.formats.text import parse_text
from caffeport.layers import Array, layer_class
from caffeport.layers.segmentation import BatchBN, StoredBN
from tests.single import net_of, run


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


INTERP = [  # parameters, bottom's height and width, top's
    pytest.param("height: 9 width: 4", (5, 7), (9, 4), id="given"),
    pytest.param("shrink_factor: 3", (8, 7), (3, 3), id="shrink"),
    pytest.param("zoom_factor: 3", (4, 5), (10, 13), id="zoom"),
    pytest.param("zoom_factor: 2 height: 5 width: 5", (4, 6), (7, 11), id="zoom goes before the given size"),
    pytest.param(
        "zoom_factor: 2 shrink_factor: 2 height: 3 width: 8", (4, 6), (3, 8), id="both lose to the given size"
    ),
    pytest.param("zoom_factor: 3 shrink_factor: 2", (7, 6), (10, 7), id="shrink, then zoom"),
    pytest.param("height: 6 width: 6 pad_beg: -1 pad_end: -2", (7, 8), (6, 6), id="cropped first"),
    pytest.param("height: 1 width: 3", (4, 1), (1, 3), id="a length of 1"),
    pytest.param("height: 4 width: 5", (4, 5), (4, 5), id="the same size"),
]


@pytest.mark.parametrize("text, bottom, top", INTERP)
def test_interp(text: str, bottom: tuple[int, int], top: tuple[int, int]) -> None:
    x = numbers(2, 3, *bottom)
    (got,) = run(f'type: "Interp" top: "t" interp_param {{ {text} }}', x)
    if "pad" in text:
        x = x[:, :, 1:-2, 1:-2]
    want = np.empty((2, 3, *top))
    for i, j in np.ndindex(*top):
        (y, p), (z, q) = (
            divmod(place * (size - 1) / (new - 1) if new > 1 else 0.0, 1)
            for place, size, new in zip((i, j), x.shape[2:], top, strict=True)
        )
        y, z, below, beside = int(y), int(z), min(int(y) + 1, x.shape[2] - 1), min(int(z) + 1, x.shape[3] - 1)
        upper = (1 - q) * x[:, :, y, z] + q * x[:, :, y, beside]
        lower = (1 - q) * x[:, :, below, z] + q * x[:, :, below, beside]
        want[:, :, i, j] = (1 - p) * upper + p * lower
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


BAD_INTERP = [
    pytest.param("", "nothing tells the size", id="no size"),
    pytest.param("height: 3", "nothing tells the size", id="half a size"),
    pytest.param("zoom_factor: 2 pad_beg: 1", "they crop", id="padding"),
    pytest.param("zoom_factor: 2 pad_end: -5", "an axis of 5 would become", id="nothing left"),
    pytest.param("zoom_factor: 0", "must be at least 1", id="zoom 0"),
]


@pytest.mark.parametrize("text, message", BAD_INTERP)
def test_interp_errors(text: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        net_of(f'type: "Interp" top: "t" interp_param {{ {text} }}', [(1, 2, 5, 6)])


def test_crop_center() -> None:
    x = numbers(3, 4, 7, 9)
    (got,) = run(
        'type: "CropCenter" top: "t" crop_center_param { crop_size: 1 crop_size: 0 crop_size: 2 crop_size: 3 }', x
    )
    np.testing.assert_array_equal(got, x[1:-1, :, 2:-2, 3:-3])
    with pytest.raises(ShapeError, match="leaves nothing"):
        net_of('type: "CropCenter" top: "t" crop_center_param { crop_size: 2 }', [(4,)])


# ---- unpooling

SIZES = [
    pytest.param("", (6, 10), id="twice as large"),
    pytest.param("scale: 3", (9, 15), id="three times"),
    pytest.param("scale_h: 2 scale_w: 3", (6, 15), id="two scales"),
    pytest.param("pad_out_h: true", (5, 10), id="one row less"),
    pytest.param("upsample_h: 7 upsample_w: 4 scale: 9", (7, 4), id="given"),
]


@pytest.mark.parametrize("text, size", SIZES)
def test_upsample_by_mask(text: str, size: tuple[int, int]) -> None:
    x, mask = numbers(2, 3, 3, 5), np.random.default_rng(1).integers(0, math.prod(size), (2, 3, 3, 5)).astype(float)
    want = np.zeros((2, 3, *size))
    for n, c, y, z in np.ndindex(x.shape):
        want[n, c].reshape(-1)[int(mask[n, c, y, z])] = x[n, c, y, z]  # the last one wins
    (got,) = run(f'type: "Upsample" top: "t" upsample_param {{ {text} }}', x, mask)
    np.testing.assert_array_equal(got, want)


BAD_UPSAMPLE = [
    pytest.param("scale: 1", (1, 1, 2, 2), "must be at least 2", id="scale 1"),
    pytest.param("scale: 3 pad_out_h: true", (1, 1, 2, 2), "exactly 2 with pad_out", id="pad_out"),
    pytest.param("", (1, 1, 2, 3), "the mask, bottom 'b1', is 1 x 1 x 2 x 3, the values are 1 x 1 x 2 x 2", id="mask"),
]


@pytest.mark.parametrize("text, mask, message", BAD_UPSAMPLE)
def test_upsample_errors(text: str, mask: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        net_of(f'type: "Upsample" top: "t" upsample_param {{ {text} }}', [(1, 1, 2, 2), mask])


UNPOOLING = [  # kernel, stride, size of the top for a bottom of 3 x 4
    pytest.param((2, 2), (2, 2), (6, 8), id="side by side"),
    pytest.param((3, 3), (2, 2), (7, 9), id="overlapping"),
    pytest.param((3, 2), (2, 3), (6, 9), id="cut at the far edges"),
    pytest.param((2, 2), (3, 2), (5, 12), id="last row outside, empty columns"),
]


@pytest.mark.parametrize("method", ["MAX", "AVE", "TILE"])
@pytest.mark.parametrize("kernel, stride, size", UNPOOLING)
def test_unpooling(method: str, kernel: tuple[int, int], stride: tuple[int, int], size: tuple[int, int]) -> None:
    x = numbers(2, 3, 3, 4)
    want = np.zeros((2, 3, *size))
    for i, j in np.ndindex(3, 4):
        top, left = i * stride[0], j * stride[1]
        if method == "MAX":
            want[:, :, min(top, size[0] - 1), min(left, size[1] - 1)] = x[:, :, i, j]
            continue
        window = want[:, :, top : top + kernel[0], left : left + kernel[1]]
        cells = window.shape[2] * window.shape[3]
        if cells:
            window += x[:, :, i, j, None, None] / (cells if method == "AVE" else 1)
    text = f"""type: "Unpooling" top: "t" unpooling_param {{ unpool: {method}
        kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]}
        unpool_h: {size[0]} unpool_w: {size[1]} }}"""
    (got,) = run(text, x)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


BAD_UNPOOLING = [
    pytest.param("kernel_size: 2", "unpool_size .* must be given", id="no size"),
    pytest.param("unpool_size: 4", "kernel_size .* must be given", id="no kernel"),
    pytest.param("kernel_size: 2 unpool_size: 4 pad: 1", "pad must be 0", id="pad"),
    pytest.param("kernel_size: 2 unpool_size: 4 unpool_h: 4", "either unpool_size or both", id="twice"),
]


@pytest.mark.parametrize("text, message", BAD_UNPOOLING)
def test_unpooling_errors(text: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        net_of(f'type: "Unpooling" top: "t" unpooling_param {{ {text} }}', [(1, 1, 2, 2)])


# ---- BN

WEIGHTS = {"weight": np.array([1.5, -0.5, 2.0]), "bias": np.array([0.1, 0.2, -0.3])}


def test_bn_inference_scales_and_shifts() -> None:
    x = numbers(2, 3, 4, 5)
    (got,) = run('type: "BN" top: "t" bn_param { bn_mode: INFERENCE }', x, weights=WEIGHTS)
    np.testing.assert_allclose(got, x * WEIGHTS["weight"][:, None, None] + WEIGHTS["bias"][:, None, None], rtol=1e-12)


def test_bn_learn_takes_the_batchs_statistics_and_gives_them() -> None:
    x = numbers(2, 3, 4, 5)
    got, mean, variance = run('type: "BN" top: "t" top: "m" top: "v"', x, weights=WEIGHTS)
    want = np.empty_like(x)
    for c in range(3):
        values = x[:, c]
        average = sum(values.ravel()) / values.size
        spread = sum(v * v for v in values.ravel()) / values.size - average**2
        want[:, c] = (values - average) / math.sqrt(spread + 1e-9) * WEIGHTS["weight"][c] + WEIGHTS["bias"][c]
        np.testing.assert_allclose([mean[0, c, 0, 0], variance[0, c, 0, 0]], [average, spread], rtol=1e-9)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    assert mean.shape == variance.shape == (1, 3, 1, 1)


def test_bn_with_four_arrays_uses_stored_statistics() -> None:
    x = numbers(2, 3, 4, 5)
    stored = {"running_mean": np.array([0.5, -1.0, 0.0]), "running_var": np.array([0.25, 4.0, 1.0])}
    state = {**WEIGHTS, **stored, "num_batches_tracked": np.array(0)}
    (got,) = run('type: "BN" top: "t" bn_param { slope_filler { } eps: 0.01 }', x, weights=state)
    mean, variance, weight, bias = (
        a[:, None, None] for a in (stored["running_mean"], stored["running_var"], WEIGHTS["weight"], WEIGHTS["bias"])
    )
    np.testing.assert_allclose(got, (x - mean) / np.sqrt(variance + 0.01) * weight + bias, rtol=1e-7)


CHOICE = [
    pytest.param("", BatchBN, id="nothing said"),
    pytest.param("bn_param { scale_filler { } bn_mode: INFERENCE }", BatchBN, id="SegNet's fields"),
    pytest.param("bn_param { frozen: true }", StoredBN, id="PSPNet's field"),
    pytest.param("param { } param { } param { } param { }", StoredBN, id="four arrays with learning rates"),
]


@pytest.mark.parametrize("text, want", CHOICE)
def test_which_bn(text: str, want: type) -> None:
    spec = LayerParameter()
    parse_text(f'name: "bn" type: "BN" bottom: "x" top: "y" {text}'.encode(), spec, "bn")
    assert layer_class(spec) is want
