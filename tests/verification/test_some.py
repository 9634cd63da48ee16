"""Some channels instead of all: they are the same numbers, and what lies outside of them is found all the same."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import caffeport
from caffeport.modules.elementwise import Maximum, Product, Sum
from caffeport.modules.normalization import Scale
from caffeport.network import Network
from caffeport.verification import Limits, compare
from caffeport.verification.judge import Judgement, judge, judge_by_some
from caffeport.verification.some import ITS_OWN, how_many, some_of
from tests.verification.nets import on_threads, pictures, recorded, recorded_in_float64, with_statistics

SHAPE = (3, 64, 24, 20)

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 3 dim: 3 dim: 40 dim: 40 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param {
        num_output: 32 kernel_size: 3 weight_filler { type: "gaussian" std: 0.2 } } }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2" convolution_param {
        num_output: 64 kernel_size: 3 stride: 2 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv2" top: "norm" }
layer { name: "scale" type: "Scale" bottom: "norm" top: "scale" scale_param { bias_term: true
        filler { type: "gaussian" std: 1 } bias_filler { type: "gaussian" std: 1 } } }
layer { name: "relu" type: "ReLU" bottom: "scale" top: "relu" }
layer { name: "conv3" type: "Convolution" bottom: "relu" top: "conv3" convolution_param {
        num_output: 64 kernel_size: 1 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "sum" type: "Eltwise" bottom: "conv3" bottom: "relu" top: "sum" }
"""
SAMPLED = ("conv1", "conv2", "norm", "scale", "conv3", "sum")


def net() -> Network:
    return with_statistics(caffeport.load(NET.encode(), seed=1), "norm")


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize(
    "own, bottoms",
    [
        (nn.Conv2d(7, 64, 3, padding=1), [drawn(3, 7, 24, 20)]),
        (nn.Conv2d(7, 64, (2, 3), stride=2, bias=False), [drawn(3, 7, 48, 60)]),
        (nn.Conv1d(7, 64, 3), [drawn(3, 7, 999)]),
        (nn.Conv3d(2, 64, 3), [drawn(3, 2, 9, 9, 9)]),
        (nn.Linear(50, 20_000), [drawn(3, 50)]),
        (nn.BatchNorm2d(64), [drawn(*SHAPE)]),
        (nn.BatchNorm2d(64, affine=False), [drawn(*SHAPE)]),
        (Scale((64,), 2, bias=True), [drawn(*SHAPE)]),
        (Scale((64,), 2, bias=False), [drawn(*SHAPE)]),
        (Sum((0.5, -2.0)), [drawn(*SHAPE), drawn(*SHAPE) + 1]),
        (Product(), [drawn(*SHAPE), drawn(*SHAPE) - 1]),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_some_channels_are_those_of_the_layer(own: nn.Module, bottoms: list[Tensor]) -> None:
    own = own.double().eval()
    for tensor in (*own.parameters(), *own.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    # num_batches_tracked counts, and is of no channel; Caffe's nets do not have it
    own._buffers.pop("num_batches_tracked", None)
    with torch.no_grad():
        top = own(*bottoms)
        few = how_many(own, bottoms, tuple(top.shape))
        assert 0 < few <= top.shape[1] // 2
        part = some_of(own, bottoms, top.float(), few)
        found = part.module(*part.bottoms)
    assert found.shape == (1, few, *top.shape[2:])  # of three items
    torch.testing.assert_close(found, part.of(top), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "own, bottoms, top",
    [
        (nn.Conv2d(8, 64, 1, groups=2), [drawn(3, 8, 24, 20)], SHAPE),
        (nn.Conv2d(8, 6, 1), [drawn(3, 8, 120, 100)], (3, 6, 120, 100)),  # few channels
        (nn.Conv2d(8, 64, 1), [drawn(3, 8, 2, 2)], (3, 64, 2, 2)),  # few values
        (nn.Conv2d(8, 64, 1), [drawn(3, 8, 24, 20)], (None, 64, 24, 20)),
        (nn.Linear(8, 64), [drawn(3, 64, 8)], (3, 64, 64)),  # channels are not axis 1
        (Scale((64, 24), 1, bias=True), [drawn(*SHAPE)], SHAPE),
        (Scale((64,), 0, bias=True), [drawn(3, 64, 24, 64)], (3, 64, 24, 64)),  # along another axis of that size
        (Maximum(), [drawn(*SHAPE), drawn(*SHAPE)], SHAPE),
        (nn.ConvTranspose2d(8, 64, 1), [drawn(3, 8, 24, 20)], SHAPE),
    ],
    ids=range(9),
)
def test_other_layers_are_computed_whole(
    own: nn.Module, bottoms: Sequence[Tensor], top: tuple[int | None, ...]
) -> None:
    assert how_many(own, bottoms, top) == 0


@pytest.mark.parametrize("unit", [1, 1e25, 1e-25])
def test_channels_are_of_all_loudnesses(unit: float) -> None:
    top = unit * 1.5 ** torch.arange(64)[:, None, None] * torch.tensor([9, 1, 2, 3, 0.0]).view(5, 1, 1, 1)
    top = top.expand(5, 64, 12, 10).contiguous()
    own = nn.Conv2d(8, 64, 1)
    part = some_of(own, [torch.randn(5, 8, 12, 10)], top, 8)
    assert sorted(part.items) == [1, 3]  # of the loudnesses 9, 1, 2, 3, 0
    assert list(part.channels) == list(range(4, 64, 8))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is computed in float64: "some" or "whole" of a layer, in the order in which it was asked for."""
    asked: list[str] = []
    original = compare.judge_by_some

    def watched(ref: Tensor, d32: Tensor, some: Any, whole: Any, *rest: Any) -> Judgement:
        def noted(what: str, function: Any) -> Any:
            asked.append(what)
            return function()

        return original(ref, d32, partial(noted, "some", some), partial(noted, "whole", whole), *rest)

    monkeypatch.setattr(compare, "judge_by_some", watched)
    return asked


def test_all_values_are_compared_only_where_some_are_not_enough(asked: list[str]) -> None:
    network = net()
    reference = recorded(network, pictures(network))
    reference["conv3::conv3"][0, 7, 3, 3] *= 1.01
    report = caffeport.verify(network, reference)
    assert report.first_failure == "conv3"
    assert asked.count("whole") == 2  # conv3, and the sum that reads what it wrote


@pytest.mark.parametrize("threads", [1, 2])
def test_a_difference_that_cannot_fail_needs_no_float64(
    asked: list[str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = net()
    right = recorded_in_float64(network, pictures(network))
    with on_threads(threads):
        report = caffeport.verify(network, right)
        assert report.passed
        bounds = {row.layer for row in report.layers if row.judgement and row.judgement.bound}
        assert bounds >= {"norm", "scale", "sum"}
        assert asked == ["some"] * (len(SAMPLED) - len(bounds))
        monkeypatch.setattr(compare, "CLOSE", 0.0)
        exact = caffeport.verify(network, right)
    for row, full in zip(report.layers, exact.layers, strict=True):
        assert row.judgement and full.judgement and not full.judgement.bound
        if row.judgement.bound:
            assert row.judgement.reference >= full.judgement.reference
            assert row.judgement.reference_max >= full.judgement.reference_max
            assert full.judgement.device <= 1


def test_a_bound_fails_under_no_limits_under_which_the_ratio_passes() -> None:
    network = net()
    reference = recorded_in_float64(network, pictures(network))
    narrow = Limits(1.9, 3.0)
    rows = caffeport.verify(network, reference, limits=narrow).layers
    assert all(row.agrees(narrow) for row in rows)
    assert not any(row.judgement and row.judgement.bound and row.judgement.ratio > 1.9 for row in rows)


def test_a_saved_bound_tells_nothing_under_narrower_limits() -> None:
    network = net()
    report = caffeport.verify(network, recorded_in_float64(network, pictures(network)))
    (norm,) = (row for row in report.layers if row.layer == "norm")
    assert norm.judgement is not None
    assert norm.judgement.bound
    assert norm.agrees(Limits(norm.judgement.ratio, norm.judgement.ratio_max))
    assert norm.agrees(Limits(norm.judgement.ratio * 0.99, 32)) is None
    assert report.needed.rms < norm.judgement.ratio
    assert report.judged_by(report.needed).passed


@settings(max_examples=50)
@given(st.integers(0, 1000), st.floats(0, 4), st.floats(-3, 3))
def test_bounds_are_not_below_the_ratios(seed: int, steps: float, spread: float) -> None:
    """ref and c32 are y64 rounded, and moved by some rounding errors more."""
    g = torch.Generator().manual_seed(seed)
    y64 = torch.randn(300, dtype=torch.float64, generator=g) * 10 ** (spread * torch.randn(300, generator=g))
    ref, c32 = ((y64 * (1 + steps * 2.0**-25 * torch.randn(300, generator=g))).float() for _ in range(2))
    full = judge(ref, y64, c32, c32)
    found = judge_by_some(ref, c32, lambda: (ref, y64, c32, c32), lambda: (y64, c32), close=1e9, same=True)
    assert found.bound
    for name in ("reference", "device", "reference_max", "device_max"):
        assert getattr(found, name) >= getattr(full, name) * (1 - 1e-6), name


@pytest.mark.parametrize(
    "own, bottoms",
    [
        (nn.BatchNorm2d(33), [torch.randn(3, 33, 37, 41)]),
        (Scale((33,), 2, bias=True), [torch.randn(3, 33, 37, 41)]),
        (Sum((1.0, -0.7)), [torch.randn(3, 33, 37, 41), torch.randn(3, 33, 37, 41)]),
        (Product(), [torch.randn(3, 33, 37, 41), torch.randn(3, 33, 37, 41)]),
    ],
)
def test_what_sums_up_nothing_gives_the_same_on_any_number_of_threads(own: nn.Module, bottoms: list[Tensor]) -> None:
    assert type(own) in ITS_OWN
    for tensor in own.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.3, 3)
    found = []
    for threads in (1, 2, 3):
        with on_threads(threads), torch.no_grad():
            found.append(own.eval()(*bottoms))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layer", SAMPLED)
def test_a_wrong_channel_is_found_wherever_it_is(layer: str, threads: int) -> None:
    """One channel of one item."""
    network = net()
    right = recorded(network, pictures(network))
    last = right[f"{layer}::{layer}"].shape[1] - 1
    with on_threads(threads):
        for item, channel in ((0, 0), (1, last * 2 // 3), (2, last)):
            reference = {key: array.copy() for key, array in right.items()}
            reference[f"{layer}::{layer}"][item, channel] *= 1.001
            assert caffeport.verify(network, reference, fail_fast=True).first_failure == layer


class TestOneOfSixtyFour:
    """y64 is known of one row of 64, in which c32 errs by 1e-5 and in the others by 1e-7."""

    y64 = drawn(64, 500)
    noise = torch.full((64, 1), 1e-7, dtype=torch.float64)
    noise[7] = 1e-5
    c32 = (y64 * (1 + noise * drawn(64, 501)[:, 1:])).float()

    def judged(self, ref: Tensor) -> tuple[Judgement, bool]:
        asked = []

        def whole() -> tuple[Tensor, Tensor]:
            asked.append(True)
            return self.y64, self.c32

        part = slice(7, 8)
        found = judge_by_some(ref, self.c32, lambda: (ref[part], self.y64[part], self.c32[part], self.c32[part]), whole)
        return found, bool(asked)

    def test_a_noisy_one_does_not_stand_for_the_others(self) -> None:
        ref = (self.c32 * 1.00002).float()
        found, whole = self.judged(ref)
        assert whole
        assert found.reference == pytest.approx(judge(ref, self.y64, self.c32, self.c32).reference)
        assert found.reference > 16 * 0.9

    def test_one_that_is_wrong_does_not_either(self) -> None:
        ref = self.c32.clone()
        ref[7] *= 1.0001
        found, whole = self.judged(ref)
        assert whole
        assert found == judge(ref, self.y64, self.c32, self.c32)

    def test_what_is_larger_elsewhere_shows(self) -> None:
        ref = self.c32.clone()
        ref[8] *= 1 + 1e-6
        found, whole = self.judged(ref)
        assert not whole
        assert found.reference > judge(ref[7], self.y64[7], self.c32[7], self.c32[7]).reference

    def test_zeros_tell_nothing_of_the_others(self) -> None:
        y64, c32 = self.y64.clone(), self.c32.clone()
        y64[7] = c32[7] = 0
        off = c32 * 1.001
        none = torch.zeros(500)
        found = judge_by_some(off, off, lambda: (none, none.double(), none, none), lambda: (y64, c32))
        assert found.device > 100


def test_a_wrong_value_is_found_under_any_default_dtype() -> None:
    network = net()
    reference = recorded(network, pictures(network))
    reference["relu::relu"] *= np.float32(1 + 1e-6)
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            assert caffeport.verify(network, reference).first_failure == "relu"
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_of_another_dtype_gives_a_report(dtype: torch.dtype) -> None:
    network = net()
    reference = recorded(network, pictures(network))
    assert caffeport.verify(network.to(dtype), reference).passed is (dtype is torch.float64)


def test_a_layer_that_is_watched_is_run_whole() -> None:
    network = net()
    reference = recorded(network, pictures(network))
    shapes = set()
    network.get_submodule("conv2").register_forward_hook(lambda module, args, top: shapes.add(tuple(top.shape)))
    assert caffeport.verify(network, reference).passed
    assert shapes == {(3, 64, 18, 18)}


def test_a_device_that_errs_in_all_channels_is_seen_though_the_reference_errs_alike() -> None:
    """d32 - ref is 0 then; the values that are compared in float64 tell."""
    y64 = drawn(4, 5000)
    wrong = (y64 * 1.001).float()
    c32 = y64.float()
    found = judge_by_some(
        wrong, wrong, lambda: (wrong[:1], y64[:1], c32[:1], wrong[:1]), lambda: (y64, c32), relative=2.0**-25
    )
    assert found.equal
    assert found.reference > 1000
    assert found.device > 1000
    assert not judge(wrong, y64, c32, wrong).within(Limits())
