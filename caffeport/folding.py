"""A network with fewer layers and the same function.

What only multiplies and adds per channel (BatchNorm, Scale, Bias) goes into the weights of the convolution or matrix
product before it; Dropout and Split, which do nothing in TEST phase, go. Convolutions are laid out channels last, which
is faster on a CPU. The folded network is for running: its weights are no longer the file's.
"""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .graph import Graph, Operand, Step, Value
from .layers import Layer
from .modules.normalization import Bias, Scale
from .modules.packed import PackedConv2d

if TYPE_CHECKING:
    from .network import Network
    from .plan import View

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded(network: "Network") -> "Network":
    """A new Network of the same function; layers that nothing was folded into share their weights with the old one."""
    from .network import Network

    result = Network(*_Folder(network).fold())
    result.source_files = network.source_files
    result.mean_file = network.mean_file
    return result


class _Folder:
    def __init__(self, network: "Network") -> None:
        self.network = network
        self.graph = network.graph
        self.modules: dict[str, nn.Module] = {
            step.key: network.get_submodule(network.names[step.key]) for step in self.graph.steps
        }
        self.steps: list[Step] = []
        self.same: dict[Value, Value] = {}  # what a removed layer wrote -> what it read
        self.folds: dict[
            str, tuple[Tensor, Tensor]
        ] = {}  # layer key -> factor and shift of each output channel, float64
        owners: dict[int, int] = {}
        for tensor in (p for module in self.modules.values() for p in module.parameters()):
            owners[id(tensor)] = owners.get(id(tensor), 0) + 1
        viewed = {view.layer for views in network._views.values() for view in views.values()}
        self.shared = {*network._views, *viewed}
        self.shared |= {key for key, m in self.modules.items() if any(owners[id(p)] > 1 for p in m.parameters())}

    def fold(self) -> tuple[Graph, dict[str, nn.Module], dict[str, dict[str, "View"]]]:
        readers: dict[Value, int] = {}
        for step in self.graph.steps:
            for value in step.reads:
                readers[value] = readers.get(value, 0) + 1
        for name in self.graph.outputs:
            for value in self.graph.blobs[name].values:
                readers[value] = readers.get(value, 0) + 1
        for step in self.graph.steps:
            step = replace(step, bottoms=tuple(self._now(operand) for operand in step.bottoms))
            before = next((s for s in reversed(self.steps) if step.bottoms and step.bottoms[0].value in s.tops), None)
            if step.layer.passes_on and step.bottoms[0].like is None:
                for top in step.tops:
                    self.same[top] = step.bottoms[0].value
                    readers[step.bottoms[0].value] = readers.get(step.bottoms[0].value, 0) + readers.get(top, 0)
                readers[step.bottoms[0].value] -= 1
            elif before and readers[step.bottoms[0].value] == 1 and self._takes(before, step):
                self.steps[self.steps.index(before)] = replace(before, tops=step.tops)
            else:
                self.steps.append(step)
        self._finish()
        written = {*self.graph.inputs, *(top for step in self.steps for top in step.tops)}
        blobs = {name: self._now(operand) for name, operand in self.graph.blobs.items()}
        graph = replace(
            self.graph,
            steps=self.steps,
            blobs={name: operand for name, operand in blobs.items() if set(operand.values) <= written},
        )
        views = {key: dict(held) for key, held in self.network._views.items()}
        return graph, {step.key: self.modules[step.key] for step in self.steps}, views

    def _now(self, operand: Operand) -> Operand:
        like = operand.like
        return Operand(self.same.get(operand.value, operand.value), like and self.same.get(like, like))

    # ---- one layer into the one before

    def _takes(self, before: Step, step: Step) -> bool:
        """Fold `step` into `before`, where that is possible."""
        module, rank = self.modules[before.key], len(step.tops[0].shape) if step.tops else 0
        # A matrix product along a later axis has its outputs there, and not on axis 1.
        takes = isinstance(module, CONVOLUTIONS) or (isinstance(module, nn.Linear) and rank == 2)
        if not takes or len(before.tops) != 1 or len(step.bottoms) != 1 or {before.key, step.key} & self.shared:
            return False
        after = affine(self.modules[step.key], rank)
        if after is None:
            return False
        factor, shift = after
        held = self.folds.get(before.key)
        self.folds[before.key] = (held[0] * factor, held[1] * factor + shift) if held else (factor, shift)
        return True

    def _finish(self) -> None:
        """Give every layer that took others its new weights, and lay convolutions out channels last."""
        for i, step in enumerate(self.steps):
            module = self.modules[step.key]
            if step.key in self.folds:
                module = with_affine(module, *self.folds[step.key])
                self.steps[i] = replace(step, layer=_with_bias(step.layer, [top.blob for top in step.tops]))
                shapes = [operand.shape for operand in step.bottoms]
                blobs = tuple(self.steps[i].layer.blobs(shapes))
                self.steps[i] = replace(
                    self.steps[i], blobs=blobs, owners=tuple((step.key, n) for n in range(len(blobs)))
                )
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and step.key not in self.shared:
                module = _replaced(module, weight=module.weight.detach().contiguous(memory_format=torch.channels_last))
            if type(module) is nn.Conv2d and step.key not in self.shared:
                module = PackedConv2d.of(module)
            self.modules[step.key] = module


def affine(module: nn.Module, rank: int) -> tuple[Tensor, Tensor] | None:
    """Factor and shift of each channel (axis 1), float64, where the module does nothing else.

    rank  number of axes of its input
    """
    if isinstance(module, NORMS):
        if module.running_mean is None or module.running_var is None:
            return None
        factor = (module.running_var.double() + module.eps).rsqrt()
        if module.weight is not None:
            factor = factor * module.weight.detach().double()
        shift = -module.running_mean.double() * factor
        return factor, shift if module.bias is None else shift + module.bias.detach().double()
    if isinstance(module, Scale | Bias) and module.after == rank - 2:
        array = module.bias if isinstance(module, Bias) else module.weight
        if array is None or array.dim() != 1:
            return None
        factor = torch.ones_like(array).double() if isinstance(module, Bias) else array.detach().double()
        return factor, torch.zeros_like(factor) if module.bias is None else module.bias.detach().double()
    return None


def with_affine(module: nn.Module, factor: Tensor, shift: Tensor) -> nn.Module:
    """A convolution or matrix product whose outputs are multiplied and shifted, one number for each output channel."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        groups = module.groups  # (C, outputs / groups, ...), group by group
        split = weight.reshape(groups, -1, *weight.shape[1:]).double()
        laid = factor.reshape(groups, 1, -1, *(1,) * (weight.dim() - 2))
        new = (split * laid).reshape(weight.shape)
    else:
        new = weight.double() * factor.reshape(-1, *(1,) * (weight.dim() - 1))
    bias = module.bias.detach().double() * factor + shift if module.bias is not None else shift  # type: ignore[operator]
    return _replaced(module, weight=new.to(weight.dtype), bias=bias.to(weight.dtype))


def _with_bias(layer: Layer, tops: list[str]) -> Layer:
    spec = type(layer.spec)()
    spec.CopyFrom(layer.spec)
    spec.top[:] = tops
    getattr(spec, layer.param_field).bias_term = True
    del spec.param[:]
    return type(layer)(spec, layer.key, layer.stored)


def _replaced(module: nn.Module, **tensors: Tensor) -> nn.Module:
    """The module with other tensors, the old one left as it is."""
    new = copy.copy(module)
    new._parameters = {
        **module._parameters,
        **{name: nn.Parameter(t, requires_grad=False) for name, t in tensors.items()},
    }
    return new
