"""A Network as one file of plain PyTorch: what a careful person would have typed for this net.

Every layer's `source` method gives the expression of its tops. What torch lacks is copied, function by function, from
caffeport.modules, so that the file computes what the Network computes, to the last bit.
"""

import ast
import builtins
import importlib.util
import inspect
import keyword
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from .. import __version__, modules
from ..errors import InputError
from ..files import appearing
from ..graph import Operand, Step, Value
from ..modules import normalization
from ..modules.packed import PackedConv2d
from ..network import Network

WIDTH = 88  # columns of the generated code; the copied functions keep their own
LONGEST = 40  # characters of a local variable
_MODULES = [
    importlib.import_module(f"{modules.__name__}.{found.name}") for found in pkgutil.iter_modules(modules.__path__)
]
_RESERVED = {
    *keyword.kwlist, *keyword.softkwlist, *dir(builtins), "self", "cls", "x", "F", "nn", "load_file", "RENAMED",
    *(name for module in _MODULES for name in vars(module)),
}  # fmt: skip
_TAKEN = {*dir(nn.Module()), *dir(GraphModule)}  # the latter is what torch.export makes of the class
_RENAMED_ARGUMENTS: dict[
    str, Callable[[Any], Any]
] = {  # parameters of modules that are kept as an attribute of another name
    "pad": lambda m: m.padding,
    "group": lambda m: m.groups,
    "kernel": lambda m: tuple(m.weight.shape[2:]),
    "shape": lambda m: tuple((m.bias if getattr(m, "weight", None) is None else m.weight).shape),
    "rows": lambda m: m.weight.shape[0],
    "Embed.outputs": lambda m: m.weight.shape[1],
    "TransposedLinear.inputs": lambda m: m.weight.shape[0],
    "TransposedLinear.outputs": lambda m: m.weight.shape[1],
    "LooseConv.channels": lambda m: m.weight.shape[1] * m.groups,
    "LooseConv.outputs": lambda m: m.weight.shape[0],
    "LooseConvTranspose.channels": lambda m: m.weight.shape[0],
    "LooseConvTranspose.outputs": lambda m: m.weight.shape[1] * m.groups,
    "BatchStatistics.channels": lambda m: m.running_mean.numel(),
    "BatchBN.channels": lambda m: m.weight.numel(),
    "Normalize.channels": lambda m: m.weight.numel() if m.weight.dim() else None,
    "inputs": lambda m: m.weight_x.shape[1],
    "static": lambda m: None if m.weight_static is None else m.weight_static.shape[1],
    "ScaleBy.bias": lambda m: None if m.bias is None else tuple(m.bias.shape),
}


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
REPEATED = 3  # units of one form that are worth a method


@dataclass
class SourceExport:
    """What was written: the class's name, the number of lines, and which layers' keys differ in the file."""

    path: Path
    name: str
    lines: int
    renamed: dict[str, str]


def export_source(network: Network, path: str | Path, *, prove: bool = True, exact: bool = False) -> SourceExport:
    """Write the network as a Python file that needs torch and safetensors only.

    The file's class loads the weights of a converted folder: `Net.from_pretrained("model.safetensors")`. Before it
    appears, it is run beside the network and has to give the same bits (`prove=False` leaves that out).
    `exact` writes Caffe's float32 numbers with all their digits (9.999999747378752e-05) in any case; else only where
    the short form (0.0001) does not give the same bits.

    Raises UnsupportedLayer for a layer of which no source can be written, InputError where the file cannot be.
    """
    path = Path(path)
    network = _unpacked(network)
    with appearing(path) as temporary:
        for short in (False,) if exact else (True, False):
            source = NetSource(network, short=short)
            temporary.write_text(source.text(), encoding="ascii")
            if not prove or source.agrees(temporary):
                break
        else:
            raise AssertionError(f"{path}: the generated source does not give the network's values; please report this")
    return SourceExport(path, source.name, source.text().count("\n"), source.renamed)


def _unpacked(network: Network) -> Network:
    """The network with an nn.Conv2d for each convolution that folding packed, which may round otherwise."""
    modules = {key: network.get_submodule(name) for key, name in network.names.items()}
    if not any(isinstance(module, PackedConv2d) for module in modules.values()):
        return network
    plain = {key: module.plain() if isinstance(module, PackedConv2d) else module for key, module in modules.items()}
    return Network(network.graph, plain, network._views)


class SourceWriter:
    """What a layer's `source` method writes into: its module, and the helpers that the file has to hold."""

    def __init__(self, network: Network, short: bool) -> None:
        self.network = network
        self.short = short
        self.step: Step = None  # type: ignore[assignment]
        self.helpers: dict[str, Any] = {}
        self.attributes: dict[str, str] = {}  # layer key -> attribute
        self.assignments: list[str] = []

    def module(self) -> str:
        """The layer's module, made in __init__; gives `self.conv1`."""
        key = self.step.key
        if key not in self.attributes:
            name = self._attribute(key)
            self.attributes[key] = name
            if name != self.network.names[key]:
                self.assignments.append(f"# {key!a}")
            self.assignments += called(f"self.{name} = ", *self._constructor(self.built()), indent=8)
        return f"self.{self.attributes[key]}"

    def buffers(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[str]:
        """Fixed arrays, which move with the net."""
        names: list[str] = []
        for array in arrays:
            name = self._attribute(self.step.key, *names)
            if array.size and (array == array.flat[0]).all():
                made = f"torch.full({tuple(array.shape)}, {self.number(float(array.flat[0]))})"
            else:
                made = f"torch.tensor({self._value(array.tolist())})"
            self.assignments += called(f"self.{name} = ", "nn.Buffer", [made, "persistent=False"], indent=8)
            self.attributes[f"{self.step.key}:{len(names)}"] = name
            names.append(name)
        return [f"self.{name}" for name in names]

    def helper(self, found: Any) -> str:
        """A function or class of caffeport.modules, to be copied; gives its name."""
        self.helpers[found.__name__] = found
        return str(found.__name__)

    def number(self, value: float) -> str:
        """A number as text: as short as float32 allows, unless that changed a result."""
        if isinstance(value, float) and self.short and math.isfinite(value):
            value = float(str(np.float32(value)))
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        return repr(value)

    def built(self) -> Any:
        """The network's own module of this layer."""
        return self.network.get_submodule(self.network.names[self.step.key])

    def _attribute(self, key: str, *also: str) -> str:
        taken = {*self.attributes.values(), *also, *_TAKEN, "from_pretrained"}
        name = identifier(self.network.names.get(key, key), "layer")
        while name in taken:
            name += "_"
        return name

    def _constructor(self, module: nn.Module) -> tuple[str, list[str]]:
        """The call that makes this module: its class and arguments, without those at their defaults."""
        cls = type(module)
        stock = cls.__module__.startswith("torch.nn.")
        arguments: list[str] = []
        by_name = False
        for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name in (
                "device",
                "dtype",
            ):
                continue
            if parameter.name == "bias" and isinstance(module, NORMS):
                continue  # it goes with affine
            value = _argument(module, parameter.name)
            text = self._value(value)
            if parameter.default is not parameter.empty and text == self._value(parameter.default):
                by_name = True
                continue
            by_name = by_name or len(arguments) >= 2 or not isinstance(value, int) or isinstance(value, bool)
            arguments.append(f"{parameter.name}={text}" if by_name else text)
        return (f"nn.{cls.__name__}" if stock else self.helper(cls)), arguments

    def _value(self, value: Any) -> str:
        if isinstance(value, Tensor):
            value = value.tolist()
        if isinstance(value, list | tuple):
            items = ", ".join(self._value(item) for item in value)
            return f"[{items}]" if isinstance(value, list) else f"({items},)" if len(value) == 1 else f"({items})"
        return quoted(value) if isinstance(value, str) else self.number(value)


def _argument(module: nn.Module, name: str) -> Any:
    """The value of a constructor's parameter, read from the module that it made."""
    cls = type(module).__name__
    get = _RENAMED_ARGUMENTS.get(f"{cls}.{name}") or (None if hasattr(module, name) else _RENAMED_ARGUMENTS.get(name))
    value: Any = get(module) if get else getattr(module, name)
    if name == "bias" and not get:
        return isinstance(value, Tensor) if not isinstance(value, int | float) else value
    if isinstance(value, tuple) and type(module).__module__.startswith("torch.nn.") and len(set(value)) == 1:
        return value[0]
    return value


@dataclass(frozen=True)
class Unit:
    """A convolution, a BatchNorm and a Scale under one name in three settings, such as conv_*, bn_*, scale_*.

    attributes  the three, as an f-string's text: "conv_{name}"
    made        how the three are made, with `channels` for the number of output channels
    """

    attributes: tuple[str, str, str]
    convolution: str
    made: tuple[str, str]

    def methods(self, name: str) -> list[str]:
        """Two methods: one that adds the three modules, one that applies them."""
        conv, norm, scale = self.attributes
        made = zip(self.attributes, ("conv", *self.made), strict=True)
        added = [f"    {line}" for form, text in made for line in laid_out(f'self.add_module(f"{form}", {text})', 8)]
        return [
            f"def add_{name}(self, name: str, conv: {self.convolution}) -> None:",
            '    """A convolution, and the normalisation and scale that follow it."""',
            "    channels = conv.out_channels",
            *added,
            "",
            f"def {name}(self, x: Tensor, name: str) -> Tensor:",
            '    """That convolution of x, normalised and scaled."""',
            f'    x = self.get_submodule(f"{conv}")(x)',
            f'    norm = getattr(self, f"{norm}")',
            f'    scale = getattr(self, f"{scale}")',
            f"    return {normalization.affine_batch_norm.__name__}(x, norm, scale)",
            "",
        ]


class NetSource:
    """The file's text for a network."""

    def __init__(self, network: Network, short: bool = True) -> None:
        self.network = network
        self.graph = network.graph
        self.writer = SourceWriter(network, short)
        self.name = class_name(network.graph.name)
        self.inputs = self.graph.needed
        self.body: list[str] = []
        self.units: dict[str, tuple[Unit, str]] = {}  # key of a convolution -> its form and name
        self.methods: dict[Unit, str] = {}
        self.expressions: dict[Value, str] = {}
        self.holds: dict[str, Value] = {}  # local name -> value
        self._write_forward()
        names = network.names
        self.renamed = {
            names[key]: name for key, name in self.writer.attributes.items() if key in names and names[key] != name
        }
        self.shared = self._shared()

    # ---- forward

    def _write_forward(self) -> None:
        graph = self.graph
        self.left: dict[Value, int] = {}  # how often each value is still read
        steps = [step for step in graph.steps if step.tops]  # Silence and its like do nothing
        for step in steps:
            for value in step.reads:
                self.left[value] = self.left.get(value, 0) + 1
        kept = [value for name in graph.outputs for value in graph.blobs[name].values]
        for value in kept:
            self.left[value] = self.left.get(value, 0) + 1
        self._find_units()
        self.arguments = []
        for value in self.inputs:
            name = self._local(value, value.blob)
            self.arguments.append(name)
            if value in graph.labels:
                self.body += laid_out(f"{name}.reshape(-1, 1, 1, 1)", 8, f"{name} = ")
        self.typed = set(self.arguments)
        while steps:
            step = steps.pop(0)
            self.writer.step = step
            bottoms = [self._see(operand) for operand in step.bottoms]
            after = steps[0] if steps else None
            if step.key in self.units:
                tops, done = [self._unit(step, steps[:2], bottoms[0])], step.reads
                step = steps[1]
                del steps[:2]
            elif after and self._is_affine_pair(step, after):
                norm = self.writer.module()
                self.writer.step = step = steps.pop(0)
                function = self.writer.helper(normalization.affine_batch_norm)
                tops = [f"{function}({bottoms[0]}, {norm}, {self.writer.module()})"]
                for value in step.reads:
                    self.left[value] -= 1
                done = graph.steps[graph.steps.index(step) - 1].reads
            else:
                tops = step.layer.source(self.writer, bottoms)
                tops = self._with_shared(step, bottoms, tops)
                done = step.reads
            for value in done:
                self.left[value] -= 1
            self._assign(step, tops, steps[0] if steps else None)
        self._return()

    def _find_units(self) -> None:
        """Convolutions with a normalisation and a scale, of which the net has several under names of one form."""
        found: dict[Unit, list[tuple[str, str]]] = {}
        for conv, norm, scale in zip(self.graph.steps, self.graph.steps[1:], self.graph.steps[2:], strict=False):
            module = self.network.get_submodule(self.network.names[conv.key])
            alone = (
                len(conv.tops) == 1 and norm.bottoms == (Operand(conv.tops[0]),) and self.left.get(conv.tops[0]) == 1
            )
            if not isinstance(module, nn.Conv2d) or not alone or not self._is_affine_pair(norm, scale):
                continue
            names = [identifier(self.network.names[step.key], "layer") for step in (conv, norm, scale)]
            name = max(_common_start(names), _common_start([name[::-1] for name in names])[::-1], key=len).strip("_")
            if not name:
                continue
            forms = [re.sub(rf"^{name}|{name}$", "{name}", n, count=1) for n in names]
            made = []
            for step in (norm, scale):
                self.writer.step = step
                function, arguments = self.writer._constructor(self.writer.built())
                channels = str(module.out_channels)
                arguments = [re.sub(rf"\b{channels}\b", "channels", arguments[0]), *arguments[1:]]
                made.append(f"{function}({', '.join(arguments)})")
            unit = Unit(tuple(forms), f"nn.{type(module).__name__}", tuple(made))  # type: ignore[arg-type]
            found.setdefault(unit, []).append((conv.key, name))
        taken = {identifier(name, "layer") for name in self.network.names.values()}
        for unit, members in found.items():
            if len(members) < REPEATED or len({name for _, name in members}) < len(members):
                continue
            method = "unit"
            while {method, f"add_{method}"} & {*taken, *self.methods.values()}:
                method += "_"
            self.methods[unit] = method
            self.units |= {key: (unit, name) for key, name in members}

    def _unit(self, conv: Step, rest: Sequence[Step], bottom: str) -> str:
        """Add a unit's modules and give the expression of its top."""
        unit, name = self.units[conv.key]
        writer = self.writer
        writer.step = conv
        writer.helper(normalization.affine_batch_norm)
        made = "".join(called("", *writer._constructor(writer.built()), indent=0))
        for step, form in zip((conv, *rest), unit.attributes, strict=True):
            writer.attributes[step.key] = form.replace("{name}", name)
        writer.assignments += called(f"self.add_{self.methods[unit]}", "", [quoted(name), made], indent=8)
        for value in [value for step in rest for value in step.reads]:
            self.left[value] -= 1
        return f"self.{self.methods[unit]}({bottom}, {quoted(name)})"

    def _is_affine_pair(self, step: Step, after: Step) -> bool:
        if not step.tops:
            return False
        top = step.tops[0]
        return (
            step.layer.affine_with(after.layer)
            and not {step.key, after.key} & set(self.network._views)
            and after.bottoms[0] == Operand(top)
            and self.left.get(top) == 1
        )

    def _see(self, operand: Operand) -> str:
        text = self.expressions[operand.value]
        return text if operand.like is None else f"{text}.reshape({self.expressions[operand.like]}.shape)"

    def _assign(self, step: Step, tops: Sequence[str], after: Step | None) -> None:
        if not tops:
            return
        if len(tops) == 1 and len(step.tops) > 1:
            long = not _heads(tops[0], sum(_local_width(top.blob) + 2 for top in step.tops))
            names = [self._local(top, "x" if long else top.blob) if self.left.get(top) else "_" for top in step.tops]
            self.body += laid_out(tops[0], 8, f"{', '.join(names)} = ")
            return
        for top, text in zip(step.tops, tops, strict=True):
            if not self.left.get(top):
                continue  # nobody reads it
            if text.isidentifier():
                self.expressions[top] = text  # the layer passes its bottom on
                self._alias(top, text)
                continue
            next_only = (
                after is not None
                and self.left.get(top) == 1
                and top in after.reads
                and after.bottoms.count(Operand(top)) == 1
            )
            if next_only and after is not None and after.layer.wraps and len(text) < WIDTH - 28:
                self.expressions[top] = text
                continue
            last = self._is_last(top) and (not text.startswith("self.") or len(top.blob) > 24)
            short = next_only or last or not _heads(text, _local_width(top.blob) + len(": Tensor"))
            name = self._local(top, "x" if short else top.blob)
            annotated = text.startswith("self.") and name not in self.typed
            self.typed.add(name)
            self.body += laid_out(text, 8, f"{name}: Tensor = " if annotated else f"{name} = ")

    def _is_last(self, top: Value) -> bool:
        return (
            len(self.graph.outputs) == 1
            and self.graph.blobs[self.graph.outputs[0]] == Operand(top)
            and self.left.get(top) == 1
        )

    def _alias(self, top: Value, name: str) -> None:
        """`top` is the value that `name` holds, so that one stays as long as either is read."""
        held = self.holds.get(name)
        if held is not None:
            self.left[top] = self.left.get(top, 0) + max(self.left.get(held, 0), 0)
            self.holds[name] = top

    def _local(self, value: Value, blob: str) -> str:
        """A local name for the value, which no value holds that is still to be read."""
        name = base = blob if blob == "x" else identifier(blob, "blob")
        if len(name) > LONGEST:
            name = base = f"{name[: LONGEST - 1]}_"
        number = 2
        while name in self.holds and self.left.get(self.holds[name], 0) > 0:
            name = f"{base}_{number}"
            number += 1
        self.holds[name] = value
        self.expressions[value] = name
        return name

    def _with_shared(self, step: Step, bottoms: Sequence[str], tops: list[str]) -> list[str]:
        """A layer whose parameter is another layer's, seen under another shape."""
        views = self.network._views.get(step.key)
        if not views:
            return tops
        attributes = self.writer.attributes
        own = ", ".join(
            f'"{name}": self.{attributes[view.layer]}.{view.parameter}.reshape({tuple(view.shape)})'
            for name, view in views.items()
        )
        axis = step.layer.flatten_from()
        seen = [
            f"{b}.flatten({axis})" if axis is not None and len(o.shape) != axis % len(o.shape) + 1 else b
            for b, o in zip(bottoms, step.bottoms, strict=True)
        ]
        module = self.writer.module()
        calls = seen if step.layer.per_bottom else [", ".join(seen)]
        return [f"torch.func.functional_call({module}, {{{own}}}, ({arguments},))" for arguments in calls]

    def _return(self) -> None:
        outputs = [(name, self._see(self.graph.blobs[name])) for name in self.graph.outputs]
        if len(outputs) == 1:
            self.body += laid_out(outputs[0][1], 8, "return ")
        else:
            self.body += called("return ", "", [f"{quoted(name)}: {text}" for name, text in outputs], 8, "{}")

    # ---- parameters

    def _shared(self) -> dict[str, str]:
        """Keys of the state_dict whose tensor another key owns, as attributes of this file."""
        owners: dict[int, str] = {}
        shared = {}
        for key, tensor in self.network.state_dict(keep_vars=True).items():
            module, _, rest = key.partition(".")
            attribute = f"{self.renamed.get(module, module)}.{rest}"
            owner = owners.setdefault(id(tensor), attribute)
            if owner != attribute:
                shared[attribute] = owner
        return shared

    def _init(self) -> list[str]:
        lines = list(self.writer.assignments)
        for key, owner in self.shared.items():
            line = f"self.{key} = self.{owner}"
            fits = len(line) + 8 <= WIDTH
            lines += [line] if fits else [f"self.{key} = (", f"    self.{owner}", ")"]
        for key, views in self.network._views.items():
            for name in views:
                lines += called("", f"self.{self.writer.attributes[key]}.register_parameter", [f'"{name}"', "None"], 8)
        return lines

    # ---- the file

    def text(self) -> str:
        copied = _copied(self.writer.helpers.values())
        init = self._init()
        cls = [
            f"class {self.name}(nn.Module):",
            f'    """{plain(self.graph.name) or "The net"}, as Caffe computes it in TEST phase."""',
            "",
        ]
        if init:
            cls += [
                "    def __init__(self) -> None:",
                "        super().__init__()",
                *(f"        {line}" for line in init),
                "",
            ]
        for unit, method in self.methods.items():
            cls += [f"    {line}" if line else "" for line in unit.methods(method)]
        many = len(self.graph.outputs) != 1
        arguments = [f"{name}: Tensor" for name in self.arguments]
        returns = "dict[str, Tensor]" if many else "Tensor"
        cls += [f"    {line}" for line in signature("def forward", ["self", *arguments], returns, 4)]
        cls += [f"        {line}" for line in self._shapes()]
        cls += [f"        {line}" for line in self.body]
        cls += ["", *(f"    {line}" for line in self._loader())]
        tables = []
        if self.renamed:
            tables += [
                "# Layers whose names are no Python names: key in model.safetensors, and here.",
                *called(
                    "RENAMED = ",
                    "",
                    [f"{quoted(a)}: {quoted(b)}" for a, b in self.renamed.items()],
                    0,
                    "{}",
                    explode=True,
                ),
                "",
            ]
        body = "\n".join([*tables, *([] if not tables else [""]), *cls]).rstrip() + "\n"
        helpers = "".join(f"{part}\n\n\n" for part in copied.texts)
        if helpers:
            helpers = "# fmt: off\n" + helpers.rstrip("\n") + "\n# fmt: on\n\n\n"
        first = (copied.texts or [*tables, *cls])[0]
        # As isort wants it, also where a comment stands between.
        gap = "\n\n\n" if first.startswith(("def ", "class ", "@")) else "\n\n"
        return f'"""{self._headline()}\n"""\n\n{_imports(helpers + body, copied.imports)}{gap}{helpers}{body}'

    def _headline(self) -> str:
        name = plain(self.graph.name) or "A net"
        return (
            f"{name}: a Caffe net as plain PyTorch. Written by caffeport {__version__}.\n\n"
            "Needs torch and safetensors; the weights are model.safetensors of the converted folder."
        )

    def _shapes(self) -> list[str]:
        sizes = [
            f"{name} ({', '.join('any' if n is None else str(n) for n in value.shape)})"
            for name, value in zip(self.arguments, self.inputs, strict=True)
        ]
        text = plain(f"{', '.join(sizes) or 'nothing'} to {', '.join(self.graph.outputs)}.")
        if len(text) > WIDTH - 14:
            text = f"{len(sizes)} inputs, {len(self.graph.outputs)} outputs."
        return [f'"""{text}"""']

    def _loader(self) -> list[str]:
        lines = [
            "@classmethod",
            *signature("def from_pretrained", ["cls", 'path: str = "model.safetensors"'], f'"{self.name}"', 4),
            '    """The net with the weights of a converted folder."""',
            "    net = cls()",
            "    state = load_file(path)",
        ]
        if self.renamed:
            lines += [
                "    for layer, name in RENAMED.items():",
                '        for key in [key for key in state if key.startswith(f"{layer}.")]:',
                "            state[name + key.removeprefix(layer)] = state.pop(key)",
            ]
        for key, owner in self.shared.items():
            line = f"    state[{quoted(key)}] = state[{quoted(owner)}]"
            fits = len(line) + 4 <= WIDTH
            lines += [line] if fits else [f"    state[{quoted(key)}] = state[", f"        {quoted(owner)}", "    ]"]
        return [*lines, "    net.load_state_dict(state)", "    return net.eval()"]

    # ---- proof

    def agrees(self, path: Path, seed: int = 0) -> bool:
        """Whether the file gives the network's values, bit for bit, on random inputs."""
        from .proof import random_inputs

        feeds = {name: torch.from_numpy(array) for name, array in random_inputs(self.network, seed).items()}
        module = _imported(path)
        with torch.device("meta"):
            net = getattr(module, self.name)()
        state = {}
        for key, tensor in self.network.state_dict(keep_vars=True).items():
            name, _, rest = key.partition(".")
            state[f"{self.renamed.get(name, name)}.{rest}"] = tensor.detach()
        net.load_state_dict(state, assign=True)
        if any(buffer.is_meta for buffer in net.buffers()):
            return self._agrees_built(module, state, feeds)
        return self._same(net.eval(), feeds)

    def _agrees_built(self, module: ModuleType, state: dict[str, Tensor], feeds: dict[str, Tensor]) -> bool:
        """The same for a net with constants, which a net without memory cannot hold."""
        net = getattr(module, self.name)()
        net.load_state_dict(state)
        return self._same(net.eval(), feeds)

    def _same(self, net: nn.Module, feeds: dict[str, Tensor]) -> bool:
        with torch.no_grad():
            wanted = self.network(feeds)
            given = net(*feeds.values())
        if isinstance(wanted, Tensor):
            wanted, given = {"": wanted}, {"": given}
        return all(
            a.shape == given[name].shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(given[name]))
            for name, a in wanted.items()
        )


# ---- text


def identifier(name: str, prefix: str) -> str:
    """A name as a Python identifier of plain ASCII, and none that the file uses itself."""
    text = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")[:60] or prefix
    if text[0].isdigit():
        text = f"{prefix}_{text}"
    return f"{text}_" if text in _RESERVED else text


def class_name(name: str) -> str:
    text = "".join(word[:1].upper() + word[1:] for word in re.split(r"\W+", name, flags=re.ASCII))[:60].replace("_", "")
    text = text if text[:1].isalpha() else f"Net{text}"
    return f"{text}Net" if text in _RESERVED or (text == "Net" and name) else text


def plain(text: str) -> str:
    """Foreign text for a docstring: printable ASCII, without quotes and backslashes."""
    return re.sub(r"[^ !#-&(-\[\]-~]", "?", text)[:200].strip()


def quoted(text: str) -> str:
    """A string in double quotes, as ruff writes it, unless that needs more escapes."""
    single = ascii(text)
    if single[0] == '"' or text.count('"') > text.count("'"):
        return single
    inner = single[1:-1].replace("\\'", "'").replace('"', '\\"')
    return f'"{inner}"'


def called(
    head: str, function: str, arguments: list[str], indent: int, brackets: str = "()", explode: bool = False
) -> list[str]:
    """`head function(arguments)`, on one line, or one argument a line where that is too long."""
    return laid_out(f"{function}{brackets[0]}{', '.join(arguments)}{brackets[1]}", indent, head, explode=explode)


def signature(head: str, arguments: list[str], returns: str, indent: int) -> list[str]:
    line = f"{head}({', '.join(arguments)}) -> {returns}:"
    if len(line) + indent <= WIDTH:
        return [line]
    return [f"{head}(", *(f"    {argument}," for argument in arguments), f") -> {returns}:"]


def laid_out(text: str, indent: int, head: str = "", tail: str = "", explode: bool = False) -> list[str]:
    """An expression after `head`, on one line, or its parts one a line where that is too long, as ruff lays it out.

    The comma after the last part keeps it so at any line length.
    """
    line = f"{head}{text}{tail}"
    if len(line) + indent <= WIDTH and not explode:
        return [line]
    node = ast.parse(text, mode="eval").body

    def segment(part: ast.expr) -> str:
        return ast.get_source_segment(text, part) or ""

    if isinstance(node, ast.Call) and (node.args or node.keywords):
        opening, closing = f"{segment(node.func)}(", ")"
        parts = [("", segment(arg)) for arg in node.args] + [(f"{k.arg}=", segment(k.value)) for k in node.keywords]
    elif isinstance(node, ast.Dict) and node.keys:
        opening, closing = "{", "}"
        parts = [
            (f"{segment(key)}: ", segment(value)) for key, value in zip(node.keys, node.values, strict=True) if key
        ]
    elif isinstance(node, ast.Tuple | ast.List) and node.elts:
        opening, closing = ("(", ")") if isinstance(node, ast.Tuple) else ("[", "]")
        parts = [("", segment(element)) for element in node.elts]
    else:
        return [line]
    if head.endswith(" = ") and len(head) + len(opening) + indent > WIDTH:  # not even the name and what it opens
        return [f"{head}(", *(f"    {row}" for row in laid_out(text, indent + 4, explode=explode)), ")"]
    inner = [f"    {row}" for name, part in parts for row in laid_out(part, indent + 4, name, ",")]
    return [f"{head}{opening}", *inner, f"{closing}{tail}"]


def _local_width(blob: str) -> int:
    """About as many characters as a local name for the blob has; a number may follow."""
    return min(len(identifier(blob, "blob")), LONGEST) + len("_2")


def _heads(text: str, width: int) -> bool:
    """Whether names of that width, and what opens a call, fit on one line; its arguments may follow below."""
    return width + len(" = ") + len(text.partition("(")[0]) + len("(") + 8 <= WIDTH


def _common_start(names: Sequence[str]) -> str:
    """What all of the names begin with."""
    same = [len(set(letters)) == 1 for letters in zip(*names, strict=False)]
    return names[0][: (*same, False).index(False)]


@dataclass
class Copied:
    """Texts of copied functions, classes and constants, each after what it uses; and the imports that they need."""

    texts: list[str] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)


def _copied(wanted: Iterable[Any]) -> Copied:
    copied, seen = Copied(), set()

    def add(module: ModuleType, name: str) -> None:
        if (module, name) in seen:
            return
        seen.add((module, name))
        source = inspect.getsource(module)
        tree = ast.parse(source)
        for node in tree.body:
            if name in _defines(node):
                text = ast.get_source_segment(source, node) or ""
                decorators = getattr(node, "decorator_list", [])
                text = "".join(f"@{ast.get_source_segment(source, d)}\n" for d in decorators) + text
                comment = source.splitlines()[node.end_lineno - 1][node.end_col_offset :]  # type: ignore[operator]
                for used in ast.walk(node):
                    if isinstance(used, ast.Name):
                        _resolve(module, tree, used.id)
                copied.texts.append(text + comment.rstrip())

    def _resolve(module: ModuleType, tree: ast.Module, name: str) -> None:
        for node in tree.body:
            if name in _defines(node):
                add(module, name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) != name:
                        continue
                    if isinstance(node, ast.ImportFrom) and node.level:
                        add(sys.modules[f"{modules.__name__}.{node.module}"], alias.name)
                    else:
                        copied.imports.add(_import_text(node, alias))

    for found in wanted:
        add(sys.modules[found.__module__], found.__name__)
    return copied


def _defines(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


def _import_text(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    also = f" as {alias.asname}" if alias.asname else ""
    return (
        f"from {node.module} import {alias.name}{also}"
        if isinstance(node, ast.ImportFrom)
        else f"import {alias.name}{also}"
    )


def _imports(code: str, needed: set[str]) -> str:
    """The import lines that this code needs, sorted as ruff sorts them."""
    needed = set(needed) | {
        "from torch import nn",
        "from torch import Tensor",
        "from safetensors.torch import load_file",
    }
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    if "torch" in used:
        needed.add("import torch")
    if "F" in used:
        needed.add("from torch.nn import functional as F")
    names: dict[str, set[str]] = {}
    for line in needed:
        if line.startswith("from "):
            module, _, name = line[5:].partition(" import ")
            names.setdefault(module, set()).add(name)
    lines = [line for line in needed if line.startswith("import ")]
    lines += [f"from {module} import {', '.join(sorted(found))}" for module, found in names.items()]
    third = [line for line in lines if re.match(r"(import|from) (torch|numpy|safetensors)\b", line)]
    order = [sorted(set(lines) - set(third), key=_import_order), sorted(third, key=_import_order)]
    return "\n\n".join("\n".join(part) for part in order if part)


def _import_order(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line.split()[1]


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("caffeport_generated", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: the name must end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
