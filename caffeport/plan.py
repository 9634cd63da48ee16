"""How the steps of a graph become calls: what `Network.forward` runs."""

from collections.abc import Callable, Container, Mapping
from copy import copy, deepcopy
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .errors import InputError
from .graph import Graph, Operand, Step, Value

Run = Callable[[Mapping[str, Any], list[Any]], None]  # modules by name, values by slot, of which it writes some


class View(NamedTuple):
    """A parameter of another layer, seen under another shape (PERMISSIVE sharing)."""

    layer: str
    parameter: str
    shape: tuple[int, ...]


def call_of(step: Step, names: Mapping[str, str], views: Mapping[str, Mapping[str, View]]) -> Run:
    """The step alone."""
    name, bottoms, tops = names[step.key], step.bottoms, [top.slot for top in step.tops]
    axis = step.layer.flatten_from()
    slots = [operand.value.slot for operand in bottoms]
    shared = shared_with(step, names, views)
    if axis is None and not shared and len(slots) == 1 and len(tops) == 1 and bottoms[0].like is None:
        (slot,), (top,) = slots, tops

        def one(modules: Mapping[str, Any], values: list[Any]) -> None:
            try:
                values[top] = modules[name](values[slot])
            except (ValueError, IndexError) as error:
                raise _fed_wrongly(step, error) from error

        return one

    def many(modules: Mapping[str, Any], values: list[Any]) -> None:
        args = [see(operand, values) for operand in bottoms]
        try:
            results = apply(step, modules[name], args, modules, shared)
        except (ValueError, IndexError) as error:
            raise _fed_wrongly(step, error) from error
        for top, value in zip(tops, results, strict=False):
            values[top] = value

    return many


def _fed_wrongly(step: Step, error: Exception) -> InputError:
    """For numbers that the layer cannot take, such as a region in an image that is not there."""
    return InputError(f"{step.layer}: {error}")


def shared_with(
    step: Step, names: Mapping[str, str], views: Mapping[str, Mapping[str, View]]
) -> list[tuple[str, str, View]]:
    """Parameters that are another layer's: own name, that layer's module name, how it is seen."""
    return [(own, names[view.layer], view) for own, view in views.get(step.key, {}).items()]


def apply(
    step: Step, module: Any, args: list[Any], modules: Mapping[str, Any], shared: list[tuple[str, str, View]]
) -> tuple[Any, ...]:
    """The tops of a step for its bottoms."""
    axis = step.layer.flatten_from()
    if axis is not None:
        args = [x.flatten(axis) if axis < 0 or x.dim() > axis + 1 else x for x in args]
    if shared:
        # attrgetter, since under functional_call the owner's parameter is a plain tensor
        tensors = {own: attrgetter(view.parameter)(modules[owner]).reshape(view.shape) for own, owner, view in shared}
        module = partial(functional_call, module, tensors)
        result = tuple(module((x,)) for x in args) if step.layer.per_bottom else module(tuple(args))
    else:
        result = tuple(map(module, args)) if step.layer.per_bottom else module(*args)
    return result if isinstance(result, tuple) else (result,)


def converted(module: nn.Module, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    """The module with its numbers in `dtype` on `device`: a copy, or the module itself where they are so already."""

    def moved(tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        new = tensor.detach().to(device, dtype if tensor.is_floating_point() else None)
        return nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new

    device = torch.device(device)
    leaf = not module._modules
    tensors = (
        [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
        if leaf  # several times as fast as the other
        else [*module.parameters(), *module.buffers()]
    )
    if all((t.dtype == dtype or not t.is_floating_point()) and t.device == device for t in tensors):
        return module
    if not leaf:
        return deepcopy(module, {id(tensor): moved(tensor) for tensor in tensors})
    new = copy(module)  # several times as fast as deepcopy
    new._parameters = {name: moved(tensor) for name, tensor in module._parameters.items()}
    new._buffers = {name: moved(tensor) for name, tensor in module._buffers.items()}
    return new


def see(operand: Operand, values: list[Any]) -> Any:
    tensor = values[operand.value.slot]
    return tensor if operand.like is None else tensor.reshape(values[operand.like.slot].shape)


def _relu_in_place(step: Step, name: str) -> Run:
    """A ReLU whose bottom nobody else needs: overwrites it, unless autograd or a hook may look."""
    slot, top = step.bottoms[0].value.slot, step.tops[0].slot

    def run(modules: Mapping[str, Any], values: list[Any]) -> None:
        module, x = modules[name], values[slot]
        if torch.is_grad_enabled() or type(module) is not nn.ReLU or module._forward_hooks or module._forward_pre_hooks:
            values[top] = module(x)
        else:
            values[top] = F.relu_(x)

    return run


def _convolution_with_relu(conv: Step, relu: Step, call: Run, names: Mapping[str, str]) -> Run:
    """A convolution and the ReLU after it: one call where the convolution is packed, else `call` and in place."""
    slot, between, top = conv.bottoms[0].value.slot, conv.tops[0].slot, relu.tops[0].slot
    first, second = names[conv.key], names[relu.key]
    after = _relu_in_place(relu, second)

    def run(modules: Mapping[str, Any], values: list[Any]) -> None:
        c, r = modules[first], modules[second]
        hooks = c._forward_hooks or c._forward_pre_hooks or r._forward_hooks or r._forward_pre_hooks
        if getattr(c, "takes_relu", False) and type(r) is nn.ReLU and not hooks:
            values[top] = c.forward(values[slot], relu=True)
        else:
            call(modules, values)
            after(modules, values)
            values[between] = None

    return run


def _affine_batch_norm(norm: Step, scale: Step, names: Mapping[str, str]) -> Run:
    """BatchNorm and the Scale after it in one call, which is what they are in PyTorch."""
    slot, top, first, second = norm.bottoms[0].value.slot, scale.tops[0].slot, names[norm.key], names[scale.key]

    def run(modules: Mapping[str, Any], values: list[Any]) -> None:
        n, s = modules[first], modules[second]
        if n._forward_hooks or n._forward_pre_hooks or s._forward_hooks or s._forward_pre_hooks:
            values[top] = s(n(values[slot]))
        else:
            values[top] = F.batch_norm(values[slot], n.running_mean, n.running_var, s.weight, s.bias, False, 0.0, n.eps)

    return run


def plan(
    graph: Graph,
    names: Mapping[str, str],
    views: Mapping[str, Mapping[str, View]],
    seen: Container[Value] = (),
) -> list[tuple[Run, tuple[Step, ...], tuple[int, ...]]]:
    """Calls for `forward`, each with the steps that it runs and the slots that nothing needs after it.

    seen  values that somebody looks at right after the call that writes them, so that no call runs past them
    """
    readers: dict[Value, list[Step | None]] = {}
    for step in graph.steps:
        for value in step.reads:
            readers.setdefault(value, []).append(step)
    for name in graph.outputs:
        for value in graph.blobs[name].values:
            readers.setdefault(value, []).append(None)
    writer = {top: step for step in graph.steps for top in step.tops}

    def only_reader(value: Value | None, step: Step) -> bool:
        return value is not None and readers[value] == [step]

    def pairs_with(norm: Step, scale: Step) -> bool:
        return (
            norm.layer.affine_with(scale.layer)
            and norm.key not in views
            and scale.key not in views
            and scale.bottoms[0] == Operand(norm.tops[0])
            and only_reader(norm.tops[0], scale)
            and norm.tops[0] not in seen
        )

    def overwrites(step: Step) -> bool:
        """Is it a ReLU that may write over its bottom?"""
        bottom = step.bottoms[0].value if step.bottoms else None
        return (
            step.layer.overwrites
            and bottom in writer
            and writer[bottom].layer.fresh
            and step.bottoms[0].like is None
            and only_reader(bottom, step)
        )

    def takes_relu(conv: Step, relu: Step) -> bool:
        return (
            conv.layer.spec.type == "Convolution"
            and conv.key not in views
            and len(conv.bottoms) == len(conv.tops) == 1
            and conv.bottoms[0].like is None
            and overwrites(relu)
            and relu.bottoms[0].value == conv.tops[0]
            and conv.tops[0] not in seen
        )

    calls: list[tuple[Run, tuple[Step, ...]]] = []
    skip: set[str] = set()
    for i, step in enumerate(graph.steps):
        if step.key in skip:
            continue
        after = graph.steps[i + 1] if i + 1 < len(graph.steps) else None
        if after and pairs_with(step, after):
            skip.add(after.key)
            calls.append((_affine_batch_norm(step, after, names), (step, after)))
        elif after and takes_relu(step, after):
            skip.add(after.key)
            calls.append((_convolution_with_relu(step, after, call_of(step, names, views), names), (step, after)))
        elif overwrites(step):
            calls.append((_relu_in_place(step, names[step.key]), (step,)))
        else:
            calls.append((call_of(step, names, views), (step,)))
    last = {value: i for i, (_, steps) in enumerate(calls) for value in steps[0].reads}
    kept = {value for value, users in readers.items() if None in users}
    plan = []
    for i, (run, steps) in enumerate(calls):
        unread = [top for top in steps[-1].tops if top not in readers]
        done = dict.fromkeys(v.slot for v in [*steps[0].reads, *unread] if last.get(v, i) == i and v not in kept)
        plan.append((run, steps, tuple(done)))
    return plan
