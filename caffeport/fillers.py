"""Caffe's fillers: the numbers of an array that no weights file gives.

Source: BVLC Caffe 1.0, include/caffe/filler.hpp. Random ones follow the same distributions, not the same draws.
"""

from math import prod, sqrt

import numpy as np

from .errors import UnsupportedLayer
from .formats.schema import Message
from .layers import Array


def filled(shape: tuple[int, ...], filler: Message, random: np.random.Generator, where: str) -> Array:
    """A new float32 array of `shape`.

    `where` names the layer for errors: an unknown type, or bilinear on other than 4 axes.
    """
    out = np.empty(shape, np.float32)
    size = out.size
    fan_in = size / shape[0] if shape else 1.0
    fan_out = size / shape[1] if len(shape) > 1 else float(size)
    fan = {0: fan_in, 1: fan_out, 2: (fan_in + fan_out) / 2}[filler.variance_norm]
    match filler.type:
        case "constant":
            out[...] = filler.value
        case "uniform":
            _uniform(out, filler.min, filler.max, random)
        case "gaussian":
            _gaussian(out, filler.mean, abs(filler.std), random)
            if filler.sparse >= 0 and shape:
                out *= random.random(shape, np.float32) < filler.sparse / shape[0]
        case "positive_unitball":
            if not shape:
                raise UnsupportedLayer(f"{where}: the positive_unitball filler wants an array with axes, not a scalar")
            rows = random.random((shape[0], prod(shape[1:])), np.float32)
            out[...] = (rows / rows.sum(1, keepdims=True)).reshape(shape)
        case "xavier":
            _uniform(out, -sqrt(3 / fan), sqrt(3 / fan), random)
        case "msra":
            _gaussian(out, 0.0, sqrt(2 / fan), random)
        case "bilinear":
            out[...] = _bilinear(shape, where)
        case other:
            raise UnsupportedLayer(f"{where}: filler type {other!r} is not one of Caffe's")
    return out


def _uniform(out: Array, low: float, high: float, random: np.random.Generator) -> None:
    random.random(dtype=np.float32, out=out)
    out *= high - low
    out += low


def _gaussian(out: Array, mean: float, deviation: float, random: np.random.Generator) -> None:
    random.standard_normal(dtype=np.float32, out=out)
    out *= deviation
    out += mean


def _bilinear(shape: tuple[int, ...], where: str) -> Array:
    """Weights with which a Deconvolution interpolates; the same for every pair of channels."""
    if len(shape) != 4 or shape[2] != shape[3]:
        raise UnsupportedLayer(f"{where}: the bilinear filler wants a square kernel in 4 axes, not {shape}")
    factor = -(-shape[3] // 2)
    centre = (shape[3] - 1) / (2.0 * factor)
    line = 1 - np.abs(np.arange(shape[3]) / factor - centre)
    return np.outer(line, line).astype(np.float32)
