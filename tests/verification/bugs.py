"""Mistakes that converters make, to be put into a right net: each as a changed module or input, and what should
be said of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from caffeport.graph import Step
from caffeport.network import Network
from caffeport.verification.arithmetic import rounded

FACTOR = 999.982  # of BatchNorm, as Caffe's training leaves it


@dataclass(frozen=True)
class Bug:
    """`make(module, step)` gives the wrong module, or None where the layer cannot have this bug.

    cause  words that the diagnosis must hold, as a regular expression
    """

    name: str
    make: Callable[[Any, Step], nn.Module | None]
    cause: str


def _changed(module: nn.Module, **tensors: Any) -> nn.Module:
    new = deepcopy(module)
    for name, value in tensors.items():
        held = getattr(new, name)
        setattr(new, name, nn.Parameter(value) if isinstance(held, nn.Parameter) else value)
    return new


def _matrix(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight.detach().clone() if isinstance(weight, Tensor) and weight.dim() >= 2 else None


def one_weight(module: Any, step: Step) -> nn.Module | None:
    weight = _matrix(module)
    if weight is None:
        return None
    flat = weight.reshape(-1)
    flat[flat.abs().argmax()] *= 1.01
    return _changed(module, weight=weight)


def one_bias(module: Any, step: Step) -> nn.Module | None:
    bias = getattr(module, "bias", None)
    if not isinstance(bias, Tensor) or not bias.any():
        return None
    bias = bias.detach().clone()
    bias[bias.abs().argmax()] = 0
    return _changed(module, bias=bias)


def no_bias(module: Any, step: Step) -> nn.Module | None:
    bias = getattr(module, "bias", None)
    return _changed(module, bias=torch.zeros_like(bias)) if isinstance(bias, Tensor) and bias.any() else None


def eps(module: Any, step: Step) -> nn.Module | None:
    return _changed(module, eps=2 * module.eps) if step.layer.spec.type == "BatchNorm" else None


def factor(module: Any, step: Step) -> nn.Module | None:
    if step.layer.spec.type != "BatchNorm":
        return None
    return _changed(module, running_mean=module.running_mean * FACTOR, running_var=module.running_var * FACTOR)


def alpha(module: Any, step: Step) -> nn.Module | None:
    if step.layer.spec.type != "LRN":
        return None
    return _changed(module, alpha=module.alpha * (module.size if hasattr(module, "k") else module.size**2))


def k(module: Any, step: Step) -> nn.Module | None:
    return _changed(module, k=2.0) if step.layer.spec.type == "LRN" and hasattr(module, "k") else None


def rgb(module: Any, step: Step) -> nn.Module | None:
    weight = _matrix(module)
    return (
        _changed(module, weight=weight.flip(1))
        if weight is not None and weight.dim() == 4 and weight.shape[1] == 3
        else None
    )


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
    return _changed(module, ceil_mode=False) if getattr(module, "ceil_mode", False) else None


def divisor(module: Any, step: Step) -> nn.Module | None:
    return (
        _changed(module, count_include_pad=False) if isinstance(module, nn.AvgPool2d) and module.padding != 0 else None
    )


def fewer_bits(form: str) -> Callable[[Any, Step], nn.Module | None]:
    def make(module: Any, step: Step) -> nn.Module | None:
        weight = _matrix(module)
        return None if weight is None else _changed(module, weight=rounded(weight, form))

    return make


BUGS = [
    Bug("one weight off by 1 %", one_weight, "one value|only channel"),
    Bug("one bias zeroed", one_bias, "one value|bias of channel|set to zero"),
    Bug("a bias dropped", no_bias, "set to zero|bias was dropped|bias of channel"),
    Bug("BatchNorm eps doubled", eps, "eps (1e-05 for 2e-05|2e-05 for 4e-05|0.001 for 0.002|0.0001 for 0.0002)"),
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


def injected(network: Network, bottoms: Mapping[str, Tensor], bugs: Sequence[Bug] = BUGS) -> Iterator[tuple[Bug, Step]]:
    """Put each bug into each layer that can have it, one at a time, and take it out again.

    bottoms  each layer's first one, by layer key: a layer whose output does not change with the bug does not have it
    """
    for bug in bugs:
        for step in network.graph.steps:
            name = network.names[step.key]
            right = network.get_submodule(name)
            wrong = bug.make(right, step)
            if wrong is None or (step.key in bottoms and _same(right, wrong, step, bottoms[step.key], network)):
                continue
            network._modules[name] = wrong
            try:
                yield bug, step
            finally:
                network._modules[name] = right


def _same(right: nn.Module, wrong: nn.Module, step: Step, bottom: Tensor, network: Network) -> bool:
    """Whether nobody can tell: equal numbers in the module, and outputs that differ by less than float32's rounding."""
    state, other = right.state_dict(), wrong.state_dict()
    if not all(torch.equal(state[name], other[name]) for name in state):
        return False
    with torch.no_grad():
        a, b = (network.run_step(step, [bottom], torch.float64, module=module)[0] for module in (right, wrong))
    return a.shape == b.shape and float((a - b).norm()) <= 1e-6 * float(a.norm())
