"""Mistakes that converters make, to be put into a right net: each as a changed module or input, and what should be said of it."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from caffeport.graph import Step
from caffeport.network import Network
from caffeport.verification.arithmetic import rounded

FACTOR = 999.982  # of BatchNorm, as Caffe's training leaves it


@dataclass(frozen=True)
class Bug:
    """`make(module, step)` gives the wrong module, or None where the layer cannot have this bug. `cause`: words of the diagnosis."""

    name: str
    make: Callable[[Any, Step], nn.Module | None]
    cause: str = ""
    shows: bool = True  # in the arithmetic; else the weights' comparison alone has to find it


def _changed(module: nn.Module, **tensors: Any) -> nn.Module:
    new = deepcopy(module)
    for name, value in tensors.items():
        held = getattr(new, name)
        setattr(new, name, nn.Parameter(value) if isinstance(held, nn.Parameter) else value)
    return new


def _matrix(module: nn.Module) -> torch.Tensor | None:
    weight = getattr(module, "weight", None)
    return weight.detach().clone() if isinstance(weight, torch.Tensor) and weight.dim() >= 2 else None


def one_weight(module: Any, step: Step) -> nn.Module | None:
    weight = _matrix(module)
    if weight is None:
        return None
    flat = weight.reshape(-1)
    flat[flat.abs().argmax()] *= 1.01
    return _changed(module, weight=weight)


def one_bias(module: Any, step: Step) -> nn.Module | None:
    bias = getattr(module, "bias", None)
    if not isinstance(bias, torch.Tensor) or not bias.any():
        return None
    bias = bias.detach().clone()
    bias[bias.abs().argmax()] = 0
    return _changed(module, bias=bias)


def no_bias(module: Any, step: Step) -> nn.Module | None:
    bias = getattr(module, "bias", None)
    return _changed(module, bias=torch.zeros_like(bias)) if isinstance(bias, torch.Tensor) and bias.any() else None


def eps(module: Any, step: Step) -> nn.Module | None:
    return _changed(module, eps=2 * module.eps) if step.layer.spec.type == "BatchNorm" else None


def factor(module: Any, step: Step) -> nn.Module | None:
    if step.layer.spec.type != "BatchNorm":
        return None
    return _changed(module, running_mean=module.running_mean * FACTOR, running_var=module.running_var * FACTOR)


def alpha(module: Any, step: Step) -> nn.Module | None:
    return _changed(module, alpha=module.alpha * module.size) if step.layer.spec.type == "LRN" else None


def k(module: Any, step: Step) -> nn.Module | None:
    return _changed(module, k=2.0) if step.layer.spec.type == "LRN" and hasattr(module, "k") else None


def rgb(module: Any, step: Step) -> nn.Module | None:
    weight = _matrix(module)
    return _changed(module, weight=weight.flip(1)) if weight is not None and weight.dim() == 4 and weight.shape[1] == 3 else None


def rotated(module: Any, step: Step) -> nn.Module | None:
    weight = _matrix(module)
    if weight is None or weight.dim() != 4 or max(weight.shape[2:]) == 1:
        return None
    return _changed(module, weight=weight.flip((2, 3)))


def groups(module: Any, step: Step) -> nn.Module | None:
    if getattr(module, "groups", 1) != 2:
        return None
    first, second = module.weight.detach().chunk(2)
    return _changed(module, weight=torch.cat([second, first]))


def floor(module: Any, step: Step) -> nn.Module | None:
    if not getattr(module, "ceil_mode", False):
        return None
    kernel, stride, pad = step.layer.window(2)  # type: ignore[attr-defined]
    sizes = zip(step.bottoms[0].shape[2:], kernel, stride, pad, strict=True)
    fits = all(i is not None and (i + 2 * p - k) % s == 0 for i, k, s, p in sizes)
    return None if fits else _changed(module, ceil_mode=False)


def divisor(module: Any, step: Step) -> nn.Module | None:
    return _changed(module, count_include_pad=False) if isinstance(module, nn.AvgPool2d) and module.padding != 0 else None


def fewer_bits(form: str) -> Callable[[Any, Step], nn.Module | None]:
    def make(module: Any, step: Step) -> nn.Module | None:
        weight = _matrix(module)
        return None if weight is None else _changed(module, weight=rounded(weight, form))

    return make


BUGS = [
    Bug("one weight off by 1 %", one_weight, "one value|only channel"),
    Bug("one bias zeroed", one_bias, "one value|bias of channel|set to zero"),
    Bug("a bias dropped", no_bias, "set to zero|bias was dropped|bias of channel"),
    Bug("BatchNorm eps doubled", eps, "eps 1e-05 for 2e-05"),
    Bug("BatchNorm's factor ignored", factor, "the file's times 999.98|multiplied by 0.001"),
    Bug("LRN alpha not divided", alpha, "alpha was not divided by the size on our side"),
    Bug("LRN k changed", k, "k 1 for 2"),
    Bug("RGB swapped", rgb, "RGB"),
    Bug("kernels rotated", rotated, "180 degrees"),
    Bug("groups swapped", groups, "groups in the order 1, 0"),
    Bug("pooling rounded down", floor, "sizes are rounded up"),
    Bug("average divided otherwise", divisor, "averages are divided by the window cut"),
    Bug("weights in fp16", fewer_bits("fp16"), "rounded to fp16|10 bits"),
    Bug("weights in TF32", fewer_bits("tf32"), "rounded to TF32|rounded to 10 bits"),
]


def injected(network: Network) -> Iterator[tuple[Bug, Step]]:
    """Put each bug into each layer that can have it, one at a time, and take it out again."""
    for bug in BUGS:
        for step in network.graph.steps:
            name = network.names[step.key]
            right = network.get_submodule(name)
            wrong = bug.make(right, step)
            if wrong is None or _same(right, wrong):
                continue
            network._modules[name] = wrong
            try:
                yield bug, step
            finally:
                network._modules[name] = right


def _same(right: nn.Module, wrong: nn.Module) -> bool:
    """Whether the change changes nothing here, such as rounding numbers that are short already."""
    state, other = right.state_dict(), wrong.state_dict()
    return repr(right) == repr(wrong) and all(torch.equal(state[name], other[name]) for name in state) and vars_alike(right, wrong)


def vars_alike(right: nn.Module, wrong: nn.Module) -> bool:
    plain = lambda module: {n: v for n, v in vars(module).items() if isinstance(v, int | float | str | tuple)}  # noqa: E731
    return plain(right) == plain(wrong)
