"""`verify` on the digits net, with real Caffe's numbers, and on small nets."""

import math
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import caffeport
from caffeport.network import Network
from caffeport.store import convert
from caffeport.verification import Limits
from caffeport.verification.arithmetic import BLOCK, TRUTH, Arithmetic, deterministic, in_float64, rounded, under_test
from tests.conftest import SHARED, needs_shared
from tests.verification.nets import chain, digits, largest_memory, on_threads, pictures, recorded


def test_a_right_net_passes_with_every_layer_alone() -> None:
    network, reference = digits()
    report = caffeport.verify(network, reference)
    assert report.passed
    assert report.first_failure is None
    assert report.coverage == {"alone": 10, "segment": 0, "no": 0}
    assert report.verdict == "passed: 10 of 10 layers judged alone"
    assert report.needed.rms < 4
    assert all(row.judgement and row.judgement.equal for row in report.layers if row.exact)
    assert {row.type for row in report.layers if row.exact} >= {"ReLU", "Pooling"}
    assert not any(entry.differs for entry in report.weights)
    assert [(o.name, o.top1, o.top5) for o in report.outputs] == [("prob", 1.0, 1.0)]


def test_weights_are_hashed_as_caffe_lays_them_out() -> None:
    """The same numbers in three forms of file have the same hashes."""
    from tests.conftest import DIGITS

    _, reference = digits()
    hashes = [
        caffeport.verify(caffeport.load(DIGITS / "deploy.prototxt", DIGITS / name), reference).weights
        for name in ("digits.caffemodel", "digits_v1.caffemodel", "digits.caffemodel.h5")
    ]
    assert hashes[0] == hashes[1] == hashes[2]
    assert [blob.shape for blob in hashes[0][0].blobs][1:] == [(20,)]


def test_a_sparse_reference_is_judged_in_segments() -> None:
    network, reference = digits()
    kept = {key: reference[key] for key in ("in::data", "conv2::conv2", "ip2::ip2", "prob::prob")}
    report = caffeport.verify(network, kept)
    assert report.passed
    by_layer = {row.layer: row for row in report.layers}
    assert by_layer["conv2"].judged == "segment"
    assert by_layer["conv2"].segment[0] == "conv1"
    assert by_layer["conv2"].segment[-1] == "conv2"
    assert by_layer["prob"].judged == "alone"
    assert by_layer["pool2"].reason == "the reference does not hold it"
    assert report.coverage == {"alone": 1, "segment": 9, "no": 0}
    assert "1 of 10 layers judged alone, 9 in a segment" in report.verdict


def test_a_failing_segment_says_where_it_begins() -> None:
    network, reference = digits()
    kept = {key: reference[key] for key in ("in::data", "ip1::ip1", "prob::prob")}
    network.description = None  # so that the weights are not compared
    with torch.no_grad():
        network.get_submodule("conv2").weight.mul_(1.001)
    report = caffeport.verify(network, kept)
    assert report.first_failure == "ip1"
    assert "or one of the" in report.verdict
    assert "since 'conv1'" in report.verdict


def test_what_nothing_follows_is_not_judged() -> None:
    network, reference = digits()
    report = caffeport.verify(network, {key: reference[key] for key in ("in::data", "conv1::conv1")})
    assert report.passed
    assert report.coverage == {"alone": 1, "segment": 0, "no": 9}
    assert "9 not judged" in report.verdict


def test_nothing_judged_is_no_pass() -> None:
    network, reference = digits()
    report = caffeport.verify(network, {"in::data": reference["in::data"]})
    assert not report.passed
    assert report.first_failure is None
    assert report.verdict.startswith("nothing was judged")


def test_a_change_too_small_for_the_arithmetic_is_caught_by_the_weights() -> None:
    network, reference = digits()
    with torch.no_grad():
        bias = network.get_submodule("ip1").bias
        bias[0] = float(np.nextafter(bias.numpy()[0], np.float32(9)))
    report = caffeport.verify(network, reference)
    assert report.first_failure == "ip1"
    assert "1 of 64 values differ" in next(entry for entry in report.weights if entry.differs).differs["bias"]


def test_wiring_is_told_from_a_wrong_layer() -> None:
    """A blob that ends with other numbers than its last writer's: the reference's net has one more in-place layer."""
    network, reference = digits()
    blob = next(name for name in reference if "::" not in name and name != "data")
    report = caffeport.verify(network, {**reference, blob: reference[blob] + 1})
    assert not report.passed
    assert report.first_failure is None
    assert f"blob {blob!r} ends with other numbers" in report.wiring[0]


def test_a_local_pass_and_a_fail_from_the_input_point_at_the_wiring() -> None:
    network, reference = digits()
    inputs = reference["in::data"] + 0.01
    shifted = recorded(network, {"data": inputs})
    mixed = {**{key: array for key, array in reference.items() if "::" in key}, "conv1::conv1": shifted["conv1::conv1"]}
    report = caffeport.verify(network, mixed)
    assert report.first_failure == "conv1"


def test_stops_at_the_first_failure() -> None:
    network, reference = digits()
    network.description = None
    with torch.no_grad():
        network.get_submodule("conv2").weight.mul_(1.01)
    report = caffeport.verify(network, reference, fail_fast=True)
    assert report.stopped
    assert [row.layer for row in report.layers][-1] == "conv2"
    assert report.first_failure == "conv2"


def test_a_layer_of_another_output_shape_fails_and_the_rest_is_judged() -> None:
    network, reference = digits()
    network._modules["pool2"] = torch.nn.MaxPool2d(3, 2)
    report = caffeport.verify(network, reference)
    row = next(row for row in report.layers if row.layer == "pool2")
    assert report.first_failure == "pool2"
    assert row.problem.startswith("gives shape")
    assert all(row.agrees(report.limits) for row in report.layers if row.layer != "pool2")


def test_a_layer_that_cannot_run_fails_and_the_rest_is_judged() -> None:
    network, reference = digits()
    network._modules["conv2"] = torch.nn.Conv2d(7, 32, 3)
    report = caffeport.verify(network, reference)
    assert report.first_failure == "conv2"
    row = next(row for row in report.layers if row.layer == "conv2")
    assert row.problem.startswith("cannot run on the reference's bottoms")
    assert next(row for row in report.layers if row.layer == "prob").agrees(report.limits)


def test_all_settings_are_as_before() -> None:
    network, reference = digits()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    settings = lambda: (  # noqa: E731
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32, torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),
    )  # fmt: skip
    before = settings()
    parameters = deepcopy(network.state_dict())
    caffeport.verify(network, reference, precisions=["ieee", "tf32"])
    assert settings() == before
    assert all(torch.equal(parameters[name], tensor) for name, tensor in network.state_dict().items())
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    assert settings() == before


def test_the_arithmetic_under_test_sees_both_values_of_threads() -> None:
    network, reference = digits()
    for threads in (1, 2):
        with on_threads(threads):
            assert caffeport.verify(network, reference).passed
            assert torch.get_num_threads() == threads


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_fewer_bits_fail_and_are_named(precision: str) -> None:
    network, reference = digits()
    report = caffeport.verify(network, reference, precisions=[precision])
    assert report.first_failure == "conv1"
    row = report.layers[0]
    assert row.judgement
    assert row.judgement.reference < 16 < row.judgement.device
    assert precision in report.causes[0].what.lower()


def test_the_precision_table() -> None:
    network, reference = digits()
    table = caffeport.verify(network, reference, precisions=["ieee", "tf32", "bf16"]).precisions
    assert [(line.precision, line.emulated) for line in table] == [("ieee", False), ("tf32", True), ("bf16", False)]
    errors = [line.relative_l2 for line in table]
    assert errors[0] < errors[1] / 10 < errors[2] / 10


@pytest.mark.parametrize("device", ["warp", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    network, reference = digits()
    with pytest.raises(caffeport.InputError, match=f"device '{device}' cannot be used"):
        caffeport.verify(network, reference, device=device)


def test_an_unknown_precision() -> None:
    network, reference = digits()
    with pytest.raises(caffeport.InputError, match="precision 'fp64' is none of ieee"):
        caffeport.verify(network, reference, precisions=["fp64"])


def test_out_of_memory_names_the_layer_and_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = digits()

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Network, "run_step", full)
    step = network.graph.steps[0]
    with pytest.raises(
        caffeport.InputError, match=r"layer 'conv1' \(Convolution\): cpu has not enough memory for a batch of 8"
    ):
        TRUTH.run(network, step, [torch.zeros(8, 1, 16, 16)])


def test_the_road_of_another_device_is_taken_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are moved one at a time and the outputs run a layer at a time, as on a card."""
    network, reference = digits()
    calls = []
    run = Arithmetic.run

    def seen(self: Arithmetic, *args: object) -> object:
        calls.append(self.name)
        return run(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Arithmetic, "run", seen)
    monkeypatch.setattr(
        "caffeport.verification._verify.under_test", lambda device, precision: Arithmetic("card", threads=None)
    )
    report = caffeport.verify(network, reference, device="cpu")
    assert report.passed
    assert calls.count("card") >= len(network.graph.steps)
    assert under_test("cpu", "ieee").device == torch.device("cpu")


def test_other_limits_need_no_second_run() -> None:
    network, reference = digits()
    report = caffeport.verify(network, reference)
    assert report.judged_by(Limits(1e-3, 1e-3)).first_failure == "conv1"
    needed = report.needed
    assert report.judged_by(needed).passed
    assert not report.judged_by(Limits(needed.rms * 0.99, needed.largest)).passed


def test_random_nets_pass_beside_themselves() -> None:
    network = chain()
    report = caffeport.verify(network, recorded(network, pictures(network)))
    assert report.passed
    assert not report.weights
    assert report.coverage["alone"] == 6


@pytest.mark.parametrize("form, bits", [("tf32", 10), ("fp16", 10), ("bf16", 7)])
def test_rounding_is_to_nearest_even(form: str, bits: int) -> None:
    step = 2.0**-bits
    x = torch.tensor([1 + step / 2, 1 + 3 * step / 2, 1 + step * 0.51, -1 - step * 0.49, 0.0, math.inf])
    assert rounded(x, form).tolist() == [1, 1 + 2 * step, 1 + step, -1, 0, math.inf]


@needs_shared
def test_a_converted_folder_is_checked_by_its_hashes(tmp_path: Path) -> None:
    zoo = SHARED / "zoo" / "lenet_v1_2014"
    folder = tmp_path / "lenet"
    convert(zoo / "deploy.prototxt", zoo / "weights.caffemodel", folder, onnx=False)
    network = caffeport.load(folder)
    report = caffeport.verify(network, zoo / "reference.npz")
    assert report.passed
    assert [entry.layer for entry in report.weights] == ["conv1", "conv2", "ip1", "ip2"]
    with torch.no_grad():
        network.get_submodule("ip1").bias[3] += 1e-6  # type: ignore[operator, union-attr]
    assert caffeport.verify(network, zoo / "reference.npz").first_failure == "ip1"


BROAD = """
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 16 dim: 128 dim: 128 }} }} }}
layer {{ name: "branch" type: "ReLU" bottom: "data" top: "branch" }}
{layers}
layer {{ name: "sum" type: "Eltwise" bottom: "branch" bottom: "abs5" top: "sum" }}
"""
ABS = 'layer {{ name: "abs{0}" type: "AbsVal" bottom: "{1}" top: "abs{0}" }}'


def test_fail_fast_holds_the_blobs_of_two_layers(tmp_path: Path) -> None:
    """A blob is 1 MiB. The sum has two bottoms and a top; in float64 they are as much as those of two such layers."""
    layers = [ABS.format(i, f"abs{i - 1}" if i else "branch") for i in range(6)]
    network = caffeport.load(BROAD.format(layers="\n".join(layers)).encode(), seed=0)
    reference = recorded(network, pictures(network))
    streamed = largest_memory(lambda: caffeport.verify(network, reference, fail_fast=True), tmp_path / "streamed.json")
    both = largest_memory(lambda: caffeport.verify(network, reference), tmp_path / "both.json")
    assert streamed <= 2 * 3 * 2**20 + 2**16
    assert both > streamed


def test_a_segment_keeps_no_value_longer_than_its_arithmetic_needs_it(tmp_path: Path) -> None:
    """A value is 2 MiB in float64 and 1 MiB in float32, on one thread the same under test and as yardstick. The branch
    and the bottom of a layer are there in both, and one top.
    """
    layers = [ABS.format(i, f"abs{i - 1}" if i else "branch") for i in range(6)]
    network = caffeport.load(BROAD.format(layers="\n".join(layers)).encode(), seed=0)
    full = recorded(network, pictures(network))
    reference = {key: full[key] for key in ("in::data", "sum::sum")}
    with on_threads(1):
        streamed = largest_memory(lambda: caffeport.verify(network, reference, fail_fast=True), tmp_path / "trace.json")
    assert streamed <= (3 + 3 + 2) * 2**20 + 2**16


def test_a_large_matrix_is_never_there_as_a_whole_in_float64(tmp_path: Path) -> None:
    net = """
        layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4096 } } }
        layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 1024
                weight_filler { type: "gaussian" std: 0.1 } bias_filler { type: "gaussian" std: 0.1 } } }"""
    network = caffeport.load(net.encode(), seed=0)
    reference = recorded(network, pictures(network))
    assert caffeport.verify(network, reference).passed
    assert largest_memory(lambda: caffeport.verify(network, reference), tmp_path / "fc.json") <= 8 * BLOCK + 2**18


def test_an_output_that_is_a_learned_array() -> None:
    """It requires a gradient, as parameters do."""
    net = caffeport.load(
        b'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }\n'
        b'layer { name: "abs" type: "AbsVal" bottom: "data" top: "abs" }\n'
        b'layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 3 } } }\n'
    )
    data = np.ones((2, 3), np.float32)
    assert caffeport.verify(net, {"in::data": data, "abs": data, "p": np.zeros(3, np.float32)}).passed


@pytest.mark.parametrize(
    "how, message",
    [
        ({"inputs": 5}, "inputs: give a mapping of arrays"),
        ({"precisions": "ieee"}, "precisions: give a list"),
        ({"precisions": 5}, "precisions: give a list"),
        ({"device": "meta"}, "device 'meta' cannot be used here"),
        ({"device": None}, "device 'None' cannot be used here"),
        ({"limits": 5}, "limits: give Limits"),
        ({"limits": Limits(math.nan, 1)}, "limits: give Limits"),
        ({"limits": Limits(1, math.nan)}, "limits: give Limits"),
    ],
)
def test_arguments_of_another_kind(how: dict[str, object], message: str) -> None:
    with pytest.raises(caffeport.InputError, match=message):
        caffeport.verify(*digits(), **how)  # type: ignore[arg-type]


RESHAPED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 4 dim: 4 } } }
layer { name: "twice" type: "Power" bottom: "data" top: "twice" power_param { scale: 2 } }
layer { name: "half" type: "Reshape" bottom: "twice" top: "half"
        reshape_param { shape { dim: 2 dim: 6 dim: 4 dim: 4 } } }
layer { name: "abs" type: "AbsVal" bottom: "half" top: "abs" }
"""


@pytest.mark.parametrize("fail_fast", [False, True])
def test_a_layer_that_needs_more_items_than_the_reference_holds_is_not_judged(fail_fast: bool) -> None:
    network = caffeport.load(RESHAPED.encode())
    full = recorded(network, pictures(network))
    reference = {"in::data": full["in::data"], "twice::twice": full["twice::twice"][:1], "abs::abs": full["abs::abs"]}
    report = caffeport.verify(network, reference, fail_fast=fail_fast)
    assert report.passed
    assert [row.judged for row in report.layers] == ["alone", "no", "no"]


MASKED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 5 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" top: "mask"
        pooling_param { pool: MAX kernel_size: 2 stride: 3 pad: 1 } }
"""


def test_largest_values_with_their_places_in_fewer_bits() -> None:
    network = caffeport.load(MASKED.encode())
    report = caffeport.verify(network, recorded(network, pictures(network)), precisions=["ieee", "bf16", "fp16"])
    assert report.passed
    assert {row.precision for row in report.precisions} == {"ieee", "bf16", "fp16"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_fewer_bits_has_other_weights_than_the_file(dtype: torch.dtype) -> None:
    network, reference = digits()
    report = caffeport.verify(network.to(dtype), reference)
    assert report.first_failure == "conv1"
    assert {entry.layer for entry in report.weights if entry.differs} == {"conv1", "conv2", "ip1", "ip2"}


@pytest.mark.parametrize("band", [1, 3000, 10_000])
@pytest.mark.parametrize(
    "own, shape",
    [
        (nn.Conv2d(6, 8, 3), (2, 6, 11, 9)),
        (nn.Conv2d(6, 8, 5, stride=2, padding=2, bias=False), (1, 6, 20, 13)),
        (nn.Conv2d(6, 8, (3, 1), stride=(1, 2), padding=(2, 0), dilation=(2, 1), groups=2), (2, 6, 12, 10)),
        (nn.Conv2d(6, 8, (7, 2), stride=(3, 1), padding=(3, 1)), (2, 6, 8, 8)),
    ],
)
def test_a_convolution_in_bands(
    own: nn.Conv2d, shape: tuple[int, ...], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffeport.verification.arithmetic.BAND", band)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        found, wanted = in_float64(own, tied=False)(x), deepcopy(own).double()(x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fail_fast", [False, True])
def test_a_large_convolution_is_never_copied_as_a_whole_in_float64(fail_fast: bool, tmp_path: Path) -> None:
    """The copies for a 7 x 7 kernel would be 49 times the bottom."""
    net = """
        layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 16 dim: 96 dim: 96 } } }
        layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 16
                kernel_size: 7 pad: 3 weight_filler { type: "gaussian" std: 0.1 } } }"""
    network = caffeport.load(net.encode(), seed=0)
    reference = recorded(network, pictures(network))
    blob = 16 * 96 * 96 * 8  # of the bottom and of the top, in float64
    call = partial(caffeport.verify, network, reference, fail_fast=fail_fast)
    assert call().passed
    assert largest_memory(call, tmp_path / "conv.json") <= 5 * blob
