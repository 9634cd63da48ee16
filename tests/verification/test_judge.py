"""The ratios of one comparison."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caffeport.verification.judge import BLOCK, Limits, growth, judge, sample

NOISE = 1e-7  # of the made-up float32 results, relative


def arrays(n: int = 1000, error: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ref, y64, c32: c32 off by NOISE, ref by NOISE and `error`, both relative."""
    g = torch.Generator().manual_seed(seed)
    y64 = torch.randn(n, dtype=torch.float64, generator=g)
    noise = [torch.randn(n, dtype=torch.float64, generator=g) for _ in range(2)]
    c32 = (y64 * (1 + NOISE * noise[0])).float()
    return (y64 * (1 + NOISE * noise[1]) * (1 + error)).float(), y64, c32


def test_a_right_layer_has_a_ratio_of_one() -> None:
    ref, y64, c32 = arrays()
    found = judge(ref, y64, c32, c32)
    assert found.reference == pytest.approx(1, rel=0.2)
    assert found.device == pytest.approx(1)
    assert found.within(Limits())
    assert found.bits == pytest.approx(-math.log2(NOISE * math.sqrt(2)), abs=0.3)


@pytest.mark.parametrize("error", [1e-5, 1e-3, -0.5])
def test_the_ratio_is_the_error_in_noise(error: float) -> None:
    ref, y64, c32 = arrays(error=error)
    found = judge(ref, y64, c32, c32)
    assert found.reference == pytest.approx(abs(error) / NOISE, rel=0.1)
    assert not found.within(Limits())


def test_a_device_that_rounds_worse_does_not_excuse_itself() -> None:
    ref, y64, c32 = arrays()
    d32 = (y64 * 1.001).float()
    found = judge(ref, y64, c32, d32)
    assert found.reference < 2 < 1000 < found.device
    assert not found.within(Limits())


def test_one_wrong_value_of_many_shows_in_the_largest_error() -> None:
    ref, y64, c32 = arrays(100_000)
    ref[77_777] += 1e-4
    found = judge(ref.reshape(100, 1000), y64.reshape(100, 1000), c32.reshape(100, 1000), c32.reshape(100, 1000))
    assert found.reference_max > 64 > 16 > found.reference
    assert found.at == (77, 777)
    assert not found.within(Limits())


@settings(max_examples=30)
@given(st.integers(-30, 30), st.integers(0, 100))
def test_units_do_not_matter(power: int, seed: int) -> None:
    """All ratios stay when everything is multiplied by a power of two."""
    ref, y64, c32 = arrays(50, 1e-5, seed)
    a = judge(ref, y64, c32, c32)
    b = judge(ref * 2.0**power, y64 * 2.0**power, c32 * 2.0**power, c32 * 2.0**power)
    assert (a.reference, a.reference_max, a.relative_l2, a.ulp) == pytest.approx(
        (b.reference, b.reference_max, b.relative_l2, b.ulp)
    )


@settings(max_examples=20)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_every_shape_is_judged(shape: list[int]) -> None:
    ref = torch.ones(shape)
    found = judge(ref, ref.double(), ref, ref)
    assert found.equal
    assert found.ratio == 0
    assert len(found.at) == len(shape)


def test_sums_over_many_blocks_are_those_of_numpy() -> None:
    ref, y64, c32 = arrays(2 * BLOCK + 123, 1e-6)
    found = judge(ref, y64, c32, c32)
    r, c = ref.numpy().astype(np.float64), c32.numpy().astype(np.float64)
    # A block is summed up in float32, in which the many equal terms of a difference of roundings err alike.
    assert found.relative_l2 == pytest.approx(np.linalg.norm(c - r) / np.linalg.norm(r), rel=2e-5)
    assert found.cosine == pytest.approx(c @ r / np.linalg.norm(c) / np.linalg.norm(r))
    assert found.ours.mean == pytest.approx(c.mean(), abs=1e-9 * c.std())
    assert found.ours.sd == pytest.approx(c.std())
    assert (found.theirs.low, found.theirs.high) == (ref.min(), ref.max())
    assert found.largest_error == pytest.approx(np.abs(c - r).max())
    assert found.at == (np.abs(c - r).argmax(),)


def test_steps_of_float32() -> None:
    c32 = torch.tensor([1.0, 2.0, 3.0])
    ref = torch.tensor([1.0, 2.0, np.nextafter(np.float32(3), np.float32(4))])
    assert judge(ref, c32.double(), c32, c32).ulp == 1


def test_zeros_agree_with_zeros_only() -> None:
    zero, one = torch.zeros(4), torch.full((4,), 1e-3)
    assert judge(zero, zero.double(), zero, zero).ratio == 0
    assert not judge(one, zero.double(), zero, zero).within(Limits())


class TestNotFinite:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_the_same_on_both_sides_agrees(self, value: float) -> None:
        ref, y64, c32 = arrays()
        for x in (ref, y64, c32):
            x[5] = value
        found = judge(ref, y64, c32, c32)
        assert found.within(Limits())
        assert found.ours.nan + found.ours.inf == 1
        assert found.ours.mean == pytest.approx(float(c32[torch.isfinite(c32)].double().mean()))

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_on_one_side_only_fails(self, value: float) -> None:
        ref, y64, c32 = arrays()
        ref[5] = value
        found = judge(ref, y64, c32, c32)
        assert found.strange == 1
        assert not found.within(Limits())

    def test_beyond_float32_in_float64_is_inf(self) -> None:
        y64 = torch.tensor([1.0, 1e39], dtype=torch.float64)
        assert judge(y64.float(), y64, y64.float(), y64.float()).within(Limits())

    def test_all_of_them(self) -> None:
        ref = torch.full((3,), math.nan)
        assert judge(ref, ref.double(), ref, ref).within(Limits())
        assert growth(*map(sample, (ref, ref.double(), ref))).within(Limits())


def test_floors_count_as_noise() -> None:
    y64 = torch.full((100,), 1e-6, dtype=torch.float64)
    ref, c32 = y64.float() + 2e-8, y64.float()
    assert not judge(ref, y64, c32, c32).within(Limits())
    assert judge(ref, y64, c32, c32, floor=2.0**-25).within(Limits())
    assert judge(ref, y64, c32, c32, relative=1e-2).within(Limits())


def test_growth_is_relative() -> None:
    ref, y64, c32 = arrays(error=1e-3)
    found = growth(*map(sample, (ref, y64, c32)))
    assert found.error == pytest.approx(1e-3, rel=0.01)
    assert found.noise == pytest.approx(NOISE, rel=0.1)
    assert found.ratio == pytest.approx(found.error / found.noise)
