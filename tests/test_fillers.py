"""Caffe's fillers: exact ones by their numbers, random ones by their distribution (filler.hpp)."""

import numpy as np
import pytest

from caffeport import UnsupportedLayer
from caffeport.fillers import filled
from caffeport.layers import Array
from caffeport.layers.base import FillerParameter

SHAPE = (200, 30, 5, 5)  # num, channels, kernel
FAN_IN, FAN_OUT = 30 * 25, 200 * 25


def fill(shape: tuple[int, ...], seed: int = 0, **parameters: object) -> Array:
    return filled(shape, FillerParameter(**parameters), np.random.default_rng(seed), "layer 'l'")


def test_the_default_is_zero() -> None:
    assert not fill((3, 2)).any()


def test_constant() -> None:
    assert fill((3, 2), type="constant", value=0.25).tolist() == [[0.25] * 2] * 3


def test_uniform() -> None:
    out = fill(SHAPE, type="uniform", min=-1, max=3)
    assert out.min() >= -1 and out.max() <= 3
    assert out.mean() == pytest.approx(1, abs=0.01)
    assert out.var() == pytest.approx(16 / 12, rel=0.01)


def test_gaussian() -> None:
    out = fill(SHAPE, type="gaussian", mean=2, std=0.5)
    assert out.mean() == pytest.approx(2, abs=0.01)
    assert out.std() == pytest.approx(0.5, rel=0.01)


def test_sparse_gaussian_keeps_that_many_inputs_of_each_output() -> None:
    out = fill((50, 4000), type="gaussian", std=1, sparse=5)
    assert (out != 0).mean() == pytest.approx(5 / 50, rel=0.05)


@pytest.mark.parametrize("norm, fan", [("FAN_IN", FAN_IN), ("FAN_OUT", FAN_OUT), ("AVERAGE", (FAN_IN + FAN_OUT) / 2)])
@pytest.mark.parametrize("kind, factor", [("xavier", 1), ("msra", 2)])
def test_fans(kind: str, factor: int, norm: str, fan: float) -> None:
    """fan_in is the count without axis 0, fan_out without axis 1."""
    out = fill(SHAPE, type=kind, variance_norm=norm)
    assert out.var() == pytest.approx(factor / fan, rel=0.01)
    assert out.mean() == pytest.approx(0, abs=1e-3)


def test_positive_unitball_rows_sum_to_one() -> None:
    out = fill((7, 3, 4), type="positive_unitball")
    assert (out >= 0).all()
    assert out.sum((1, 2)) == pytest.approx(np.ones(7), abs=1e-5)


@pytest.mark.parametrize(
    "size, line", [(1, [1.0]), (2, [0.5, 0.5]), (3, [0.5, 1.0, 0.5]), (4, [0.25, 0.75, 0.75, 0.25])]
)
def test_bilinear(size: int, line: list[float]) -> None:
    out = fill((2, 3, size, size), type="bilinear")
    want = np.outer(line, line)
    assert np.array_equal(out, np.broadcast_to(want, out.shape))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3), ()])
def test_bilinear_wants_square_kernels(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedLayer, match="layer 'l': the bilinear filler"):
        fill(shape, type="bilinear")


def test_a_scalar_has_no_rows() -> None:
    with pytest.raises(UnsupportedLayer, match="layer 'l': the positive_unitball filler"):
        fill((), type="positive_unitball")


@pytest.mark.parametrize("kind", ["constant", "uniform", "gaussian", "xavier", "msra"])
def test_scalars_and_vectors(kind: str) -> None:
    assert fill((), type=kind).shape == ()
    assert fill((3,), type=kind).shape == (3,)


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "xavier", "msra", "positive_unitball"])
def test_the_seed_decides(kind: str) -> None:
    parameters = {"type": kind, "max": 1.0, "std": 1.0}
    assert np.array_equal(fill((4, 5), **parameters), fill((4, 5), **parameters))
    assert not np.array_equal(fill((4, 5), **parameters), fill((4, 5), seed=1, **parameters))


def test_unknown_types_are_named() -> None:
    with pytest.raises(UnsupportedLayer, match=r"layer 'l': filler type 'xavierr' is not one of Caffe's"):
        fill((2,), type="xavierr")
