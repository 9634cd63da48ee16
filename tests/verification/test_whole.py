"""The whole net from its inputs, in three arithmetics at once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import caffeport
from caffeport.network import Network
from caffeport.plan import plan
from caffeport.verification.arithmetic import under_test
from caffeport.verification.reference import Reference, match
from caffeport.verification.report import Report
from caffeport.verification.whole import Whole
from tests.verification.nets import chain, digits, on_threads, pictures, recorded, recorded_in_float64, with_statistics

RESIDUAL = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 20 dim: 20 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param {
        num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "gaussian" std: 0.2 } } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true
        filler { type: "gaussian" std: 1 } bias_filler { type: "gaussian" std: 1 } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2" convolution_param {
        num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "gaussian" std: 0.2 } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "sum" type: "Eltwise" bottom: "conv1" bottom: "conv2" top: "sum" }
layer { name: "norm" type: "LRN" bottom: "sum" top: "norm" }
layer { name: "fc" type: "InnerProduct" bottom: "norm" top: "fc" inner_product_param { num_output: 4
        weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


def residual() -> Network:
    return with_statistics(caffeport.load(RESIDUAL.encode(), seed=2), "bn1")


def whole(network: Network, reference: dict[str, np.ndarray[Any, Any]]) -> Whole:
    """After its run."""
    source = Reference.open(reference)
    fed = {value: torch.from_numpy(reference[f"in::{value.blob}"]) for value in network.graph.inputs}
    shapes = network.graph.shapes({value: tuple(x.shape) for value, x in fed.items()})
    with torch.no_grad():
        found = Whole(network, fed, match(source, network.graph, shapes), shapes, under_test("cpu", "ieee"))
        for step in network.graph.steps:
            found.advance(step)
    return found


@pytest.mark.parametrize("make", [chain, residual])
def test_outputs_are_those_of_the_network_and_of_float64(make: Callable[[], Network]) -> None:
    network = make()
    reference = recorded(network, pictures(network))
    y64, c32, d32 = whole(network, reference).outputs()
    assert d32 is not None
    data = torch.from_numpy(reference["in::data"])
    with torch.no_grad():
        assert torch.equal(d32["prob"], network(data))
        assert c32["prob"].dtype == torch.float32
        torch.testing.assert_close(c32["prob"], d32["prob"], rtol=1e-4, atol=1e-6)
        assert not torch.equal(c32["prob"], d32["prob"])  # LRN errs as Caffe's
        torch.testing.assert_close(y64["prob"], network.double()(data.double()), rtol=1e-12, atol=0)


def test_float32_is_run_once_where_caffe_errs_no_more_than_we() -> None:
    network, reference = digits()
    dtypes = []
    network.get_submodule("conv1").register_forward_hook(lambda module, args, top: dtypes.append(top.dtype))
    _, c32, d32 = whole(network, reference).outputs()
    assert d32 is not None
    assert c32["prob"] is d32["prob"]
    assert sorted(map(str, dtypes)) == ["torch.float32", "torch.float64"]


def growths(report: Report) -> dict[str, float]:
    return {row.layer: row.growth.ratio for row in report.layers if row.growth}


def test_every_layer_but_batch_norm_before_its_scale_is_compared_from_the_input_on() -> None:
    network = residual()
    report = caffeport.verify(network, recorded_in_float64(network, pictures(network)))
    assert report.passed
    ratios = growths(report)
    assert {row.layer for row in report.layers} - set(ratios) == {"bn1"}
    assert max(ratios.values()) < 3


@pytest.mark.parametrize(
    "last", ["conv1::conv1", "bn1::conv1", "scale1::conv1", "relu1::conv1", "conv2::conv2", "sum::sum"]
)
def test_a_segment_from_the_inputs_is_judged_as_without_the_whole_net(last: str) -> None:
    """`--fail-fast` runs it on its own."""
    network = residual()
    full = recorded_in_float64(network, pictures(network))
    reference = {key: full[key] for key in ("in::data", last, "prob::prob")}
    report, alone = (caffeport.verify(network, reference, fail_fast=fast) for fast in (False, True))
    assert report.passed
    assert alone.passed
    for row, other in zip(report.layers, alone.layers, strict=True):
        assert (row.judged, row.segment, row.reason) == (other.judged, other.segment, other.reason)
        if row.judgement and other.judgement:
            assert row.judgement.ratio == pytest.approx(other.judgement.ratio, rel=0.3, abs=0.3)
    assert set(growths(report)) == {last.split("::")[0], "prob"}
    wrong = {**reference, last: reference[last] * np.float32(1.001)}
    assert caffeport.verify(network, wrong).first_failure == last.split("::")[0]


def test_a_reference_of_the_output_alone_costs_no_second_run() -> None:
    network, full = digits()
    reference = {key: full[key] for key in ("in::data", "prob::prob")}
    found = whole(network, reference)
    assert all(found.gives(step) for step in network.graph.steps)
    assert caffeport.verify(network, reference).passed


def test_a_layer_that_cannot_run_ends_the_road_and_not_the_report() -> None:
    network = residual()
    full = recorded(network, pictures(network))
    network.get_submodule("fc").weight = torch.nn.Parameter(torch.zeros(4, 7))
    for reference in (full, {key: full[key] for key in ("in::data", "sum::sum", "prob::prob")}):
        report = caffeport.verify(network, reference)
        assert report.first_failure == "fc"
        assert "fc" not in growths(report)
        assert "sum" in growths(report)
        assert not report.outputs


def test_a_plan_runs_past_no_value_that_is_seen() -> None:
    network = residual()
    graph = network.graph

    def calls(seen: set[str]) -> list[tuple[str, ...]]:
        values = {top for step in graph.steps for top in step.tops if step.key in seen}
        return [tuple(step.key for step in steps) for _, steps, _ in plan(graph, network.names, {}, values)]

    assert ("bn1", "scale1") in calls(set())
    assert ("conv2", "relu2") in calls(set())
    assert [pair for pair in calls({"bn1", "conv2"}) if len(pair) > 1] == []


TIED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 6 } } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" }
        inner_product_param { num_output: 4 bias_term: false weight_filler { type: "gaussian" std: 1 } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" share_mode: PERMISSIVE }
        inner_product_param { num_output: 6 bias_term: false } }
"""


@pytest.mark.parametrize("until", ["a", "b"])
def test_a_truncated_net_with_shared_parameters(until: str) -> None:
    network = caffeport.load(TIED.encode(), seed=1).truncate(until)
    assert caffeport.verify(network, recorded_in_float64(network, pictures(network))).passed


TWO = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 24 dim: 24 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1" convolution_param { num_output: 16 kernel_size: 3
        weight_filler { type: "gaussian" std: 0.2 } } }
layer { name: "c2" type: "Convolution" bottom: "c1" top: "c2" convolution_param { num_output: 16 kernel_size: 3
        weight_filler { type: "gaussian" std: 0.1 } } }
"""


@pytest.mark.parametrize("fail_fast", [False, True])
def test_the_yardstick_of_a_segment_is_not_what_is_under_test(fail_fast: bool) -> None:
    """A convolution that is off by 0.1 % on two threads, and right on one."""
    network = caffeport.load(TWO.encode(), seed=1)
    full = recorded_in_float64(network, pictures(network))
    reference = {key: full[key] for key in ("in::data", "c2::c2")}

    def spoil(module: object, args: object, top: torch.Tensor) -> torch.Tensor:
        wrong = top.dtype == torch.float32 and torch.get_num_threads() > 1
        return top * (1 + 1e-3 * torch.sin(torch.arange(top.shape[-1]) * 7.0)) if wrong else top

    network.get_submodule("c1").register_forward_hook(spoil)
    with on_threads(2):
        report = caffeport.verify(network, reference, fail_fast=fail_fast)
    assert report.first_failure == "c2"
    assert report.layers[1].judgement is not None
    assert report.layers[1].judgement.device > 100


def test_batch_norm_has_an_end_to_end_number_where_its_scale_has_none() -> None:
    network = residual()
    full = recorded_in_float64(network, pictures(network))
    del full["scale1::conv1"]
    report = caffeport.verify(network, full)
    assert report.passed
    assert "bn1" in growths(report)


def test_a_road_that_ends_though_each_layer_runs_alone_is_told() -> None:
    network, reference = digits()
    calls = []

    def fail_once(module: object, args: object, top: object) -> None:
        calls.append(top)
        if len(calls) == 1:
            raise ValueError("not this time")

    network.get_submodule("conv2").register_forward_hook(fail_once)
    report = caffeport.verify(network, reference)
    assert report.passed
    assert "the net cannot be run from its inputs: " in report.notes[-1]
    assert "not this time" in report.notes[-1]
    assert "conv2" not in growths(report)


EDGE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 } } }
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 50 } } }
layer { name: "move" type: "Power" bottom: "data" top: "move" power_param { scale: 0.1 shift: 0.27 } }
layer { name: "pick" type: "Threshold" bottom: "move" top: "pick" threshold_param { threshold: %r } }
layer { name: "same" type: "Power" bottom: "x" top: "same" power_param { scale: 3 } }
layer { name: "filter" type: "Filter" bottom: "same" bottom: "pick" top: "filter" }
"""


def test_another_number_of_rows_in_float64_is_told() -> None:
    sum32, sum64 = np.float32(0.1) + np.float32(0.27), float(np.float32(0.1)) + float(np.float32(0.27))
    assert sum64 > float(sum32)
    network = caffeport.load((EDGE % float(sum32)).encode(), seed=1)
    inputs = {
        "data": np.array([1, 5, 5, -5], np.float32),
        "x": np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32),
    }
    full = recorded(network, inputs)
    assert full["filter::filter"].shape == (2, 50)
    reference = {key: full[key] for key in ("in::data", "in::x", "filter::filter")}
    for fail_fast in (False, True):
        report = caffeport.verify(network, reference, fail_fast=fail_fast)
        assert report.first_failure is None
        assert "another number of rows in float64" in report.layers[-1].reason
