"""Causes that lie in the input or in one number, on a small net beside itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import caffeport
from caffeport.network import Network
from caffeport.verification import Report
from tests.verification.nets import chain, pictures, recorded

Arrays = dict[str, np.ndarray[Any, Any]]


def other_input(change: Callable[[Any], Any]) -> Report:
    """The reference saw the pictures, we see them changed."""
    network = chain()
    inputs = pictures(network)
    reference = {key: array for key, array in recorded(network, inputs).items() if not key.startswith("in::")}
    return caffeport.verify(network, reference, inputs={"data": change(inputs["data"]).astype(np.float32)})


def other_module(layer: str, change: Callable[[Any], None]) -> Report:
    """Our layer is changed in place after the reference was made."""
    network = chain()
    reference = recorded(network, pictures(network))
    with torch.no_grad():
        change(network.get_submodule(layer))
    report = caffeport.verify(network, reference)
    assert report.first_failure == layer
    return report


class TestInput:
    def test_channels_in_the_opposite_order(self) -> None:
        report = other_input(lambda x: x[:, ::-1])
        assert report.first_failure == "conv"
        assert "channels of the input are in the opposite order" in report.causes[0].what

    def test_a_mean_not_subtracted(self) -> None:
        mean = np.array([104.0, 117.0, 123.0])[:, None, None]
        report = other_input(lambda x: x + mean)
        assert report.first_failure == "conv"
        assert "a mean was subtracted from the input on one side only" in report.causes[0].what
        assert "x + (-104, -117, -123)" in report.causes[0].evidence

    def test_a_mean_of_one(self) -> None:
        report = other_input(lambda x: x + 1)
        assert "x + (-1, -1, -1)" in report.causes[0].evidence

    def test_another_scale(self) -> None:
        report = other_input(lambda x: x / 255)
        assert "the input was scaled differently" in report.causes[0].what
        assert "x * (255, 255, 255)" in report.causes[0].evidence

    def test_scale_and_mean(self) -> None:
        report = other_input(lambda x: (x - 128) / 128)
        assert "scaled and shifted" in report.causes[0].what
        assert report.causes[0].after < report.causes[0].before / 1e6

    def test_an_input_beside_the_references_own_is_said(self) -> None:
        network = chain()
        inputs = pictures(network)
        report = caffeport.verify(network, recorded(network, inputs), inputs={"data": inputs["data"] + 1})
        assert report.first_failure == "conv"
        assert any("'data' is not the one that the reference holds" in note for note in report.notes)


def setting(name: str, value: float) -> Callable[[Any], None]:
    return lambda module: setattr(module, name, value)


LAYERS = [
    pytest.param("conv", lambda m: m.weight.copy_(m.weight.flip((2, 3))), "rotated by 180", id="rotated"),
    pytest.param("conv", lambda m: m.weight.copy_(m.weight.transpose(2, 3).clone()), "height and width exchanged",
    id="transposed kernels"),
    pytest.param("conv", lambda m: m.bias.zero_(), "a bias was dropped", id="bias dropped"),
    pytest.param("conv", lambda m: m.bias[3].add_(1), "bias of channel 3 is off by -1", id="one bias"),
    pytest.param("conv", lambda m: m.weight[2, 1, 0, 2].mul_(1.01), r"one value of its weights, at \(2, 1, 0, 2\)",
    id="one weight"),
    pytest.param("conv", lambda m: (m.weight.mul_(0.5), m.bias.mul_(0.5)), "ours times 2", id="factor"),
    pytest.param("norm", lambda m: setattr(m, "alpha", m.alpha * 3), "alpha was not divided by the size on our side",
    id="alpha times n"),
    pytest.param("norm", setting("k", 2.0), "k 1 for 2", id="k"),
    pytest.param("norm", setting("beta", 0.5), "beta 0.75 for 0.5", id="beta"),
    pytest.param("pool", setting("count_include_pad", False), "divided by the window cut at image", id="divisor"),
    pytest.param("pool", setting("ceil_mode", False), "rounded up", id="floor"),
    pytest.param(
        "fc", lambda m: m.weight.copy_(m.weight.reshape(5, 8, 7, 6).permute(0, 2, 3, 1).reshape(5, -1).clone()),
        "flattened as height, width, channels", id="flatten order",
    ),
    pytest.param("fc", lambda m: m.weight.copy_(m.weight.t().reshape(5, -1).clone()), "transposed", id="transposed"),
    pytest.param("fc", lambda m: m.weight.copy_(m.weight.bfloat16().float()), "rounded to bf16", id="bf16"),
]  # fmt: skip


@pytest.mark.parametrize("layer, change, cause", LAYERS)
def test_one_layer(layer: str, change: Callable[[Any], None], cause: str) -> None:
    import re

    report = other_module(layer, change)
    assert any(re.search(cause, found.what) for found in report.causes), report.causes


BATCH_NORM = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 6 dim: 5 } } }
layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" batch_norm_param { eps: 0.001 } }
"""


def batch_norm(change: Callable[[Any], None]) -> Report:
    network: Network = caffeport.load(BATCH_NORM.encode())
    bn = network.get_submodule("bn")
    bn.running_mean.copy_(torch.tensor([1.0, -2, 3, 0]))  # type: ignore[operator]
    bn.running_var.copy_(torch.tensor([0.01, 0.1, 1, 3]))  # type: ignore[operator]
    reference = recorded(network, pictures(network))
    change(bn)
    return caffeport.verify(network, reference)


def test_another_eps() -> None:
    assert "eps 0.001 for 0.002" in batch_norm(setting("eps", 0.002)).causes[0].what


def test_an_unusual_eps_is_fitted() -> None:
    network_eps = 0.0371
    report = batch_norm(setting("eps", network_eps))
    assert any("for 0.0371" in cause.what for cause in report.causes)


def test_the_factor_was_not_divided_by() -> None:
    def undivided(module: Any) -> None:
        module.running_mean.mul_(999.98)
        module.running_var.mul_(999.98)

    assert any("multiplied by 0.001" in cause.what for cause in batch_norm(undivided).causes)


def test_nothing_is_claimed_where_nothing_explains() -> None:
    report = other_module("fc", lambda m: m.weight.copy_(torch.randn_like(m.weight)))
    assert not [cause for cause in report.causes if cause.after < cause.before / 50]


def test_only_the_border() -> None:
    network = chain()
    reference = recorded(network, pictures(network))
    damaged = {key: array.copy() for key, array in reference.items()}
    damaged["conv::conv"][:, :, 0] += 1
    damaged["relu::conv"] = np.maximum(damaged["conv::conv"], 0)
    report = caffeport.verify(network, damaged)
    assert any("only the border differs" in cause.what for cause in report.causes)


def one_layer(layer: str, shape: tuple[int, ...], change: Callable[[Any], None], scale: float = 1.0) -> Report:
    """A net of one layer beside itself, changed after the reference was made. No learned array is zero."""
    dims = " ".join(f"dim: {n}" for n in shape)
    net = f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}\n{layer}'
    network = caffeport.load(net.encode(), seed=1)
    data = {"data": (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float32)}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    reference = recorded(network, data)
    with torch.no_grad():
        change(network.get_submodule("top"))
    report = caffeport.verify(network, reference)
    assert report.first_failure == "top"
    return report


CONVOLUTION = """layer { name: "top" type: "Convolution" bottom: "data" top: "top"
                        convolution_param { num_output: 8 kernel_size: 3 } }"""
DENSE = 'layer { name: "top" type: "InnerProduct" bottom: "data" top: "top" inner_product_param { num_output: 5 } }'
SCALE = 'layer { name: "top" type: "Scale" bottom: "data" top: "top" }'
LEAKY = 'layer { name: "top" type: "ReLU" bottom: "data" top: "top" relu_param { negative_slope: 0.1 } }'
ELU = 'layer { name: "top" type: "ELU" bottom: "data" top: "top" elu_param { alpha: 0.5 } }'
LRN = 'layer { name: "top" type: "LRN" bottom: "data" top: "top" lrn_param { local_size: 3 alpha: 2 } }'
MAPS = (2, 4, 8, 8)
ONE = [
    pytest.param(CONVOLUTION, MAPS, 1e-6, lambda m: m.bias.zero_(), "a bias was dropped", id="bias above tiny data"),
    pytest.param(DENSE, (1, 9), 1.0, lambda m: m.bias.zero_(), "a bias was dropped, or its weights", id="one item"),
    pytest.param(SCALE, MAPS, 1.0, lambda m: m.weight[3].mul_(1.01), "only channel 3 differs, by a factor", id="scale"),
    pytest.param(LEAKY, MAPS, 1.0, setting("negative_slope", 0.2), "negative_slope 0.1 for 0.2", id="slope"),
    pytest.param(ELU, MAPS, 1.0, setting("alpha", 1.0), "alpha 0.5 for 1", id="elu"),
    pytest.param(LRN, MAPS, 1.0, setting("size", 5), "local_size 3 for 5", id="size"),
    pytest.param(CONVOLUTION, (3, 4, 9, 9), 1.0, lambda m: m.weight.copy_(m.weight.half().float()), "fp16", id="fp16"),
]  # fmt: skip


@pytest.mark.parametrize("layer, shape, scale, change, cause", ONE)
def test_a_layer_by_itself(
    layer: str, shape: tuple[int, ...], scale: float, change: Callable[[Any], None], cause: str
) -> None:
    report = one_layer(layer, shape, change, scale)
    assert any(cause in found.what for found in report.causes), report.causes


def test_a_layer_without_a_bias_has_none_dropped() -> None:
    network, reference = in_one("Power", "power_param { shift: 1 }")
    report = caffeport.verify(network, {**reference, "top": reference["top"] + np.arange(4.0).reshape(4, 1, 1)})
    assert [cause.what for cause in report.causes] == ["an offset in 3 of 4 channels, up to 3"]


def test_the_other_kind_of_pooling() -> None:
    network, _ = in_one("Pooling", "pooling_param { kernel_size: 2 stride: 2 pool: AVE }")
    _, reference = in_one("Pooling", "pooling_param { kernel_size: 2 stride: 2 }")
    causes = caffeport.verify(network, reference).causes
    assert causes[0].what == "the reference takes the max of each window"


def test_no_number_is_fitted_to_nan() -> None:
    network, reference = in_one("LRN", "lrn_param { local_size: 3 }")
    reference["top"][0, 1, 2, 3] = np.nan
    (cause,) = caffeport.verify(network, reference).causes
    assert "the reference holds NaN or Inf at 1 of 512 places, first at (0, 1, 2, 3)" in cause.what


def test_nan_that_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    network, reference = in_one("Convolution", "convolution_param { num_output: 3 kernel_size: 3 }")
    reference["in::data"][0, 1, 2, 3] = np.inf
    (cause,) = caffeport.verify(network, reference).causes
    assert cause.what == "'data', which it reads, holds NaN or Inf at 1 of 512 places"
    assert not any(capfd.readouterr()), "MKL complains when it is asked to solve for NaN"


def in_one(type_: str, param: str) -> tuple[Network, Arrays]:
    """A net of one layer on `MAPS`, and what it gives."""
    network = caffeport.load(
        b'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 8 dim: 8 } } }\n'
        + f'layer {{ name: "top" type: "{type_}" bottom: "data" top: "top" {param} }}'.encode(),
        seed=0,
    )
    given = recorded(network, pictures(network))
    return network, {"in::data": given["in::data"], "top": given["top::top"]}
