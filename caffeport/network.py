"""A Caffe net as a plain nn.Module."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .description import Description
from .errors import InputError, ShapeError
from .graph import Graph, Operand, Step, Value
from .layers import Quirk, Shape, text
from .plan import View, apply, call_of, converted, plan, see, shared_with

Feed = Tensor | np.ndarray[Any, Any]


class Network(nn.Module):
    """A Caffe net in TEST phase: one submodule for each layer, named as the layer is.

    `network(x)` or `network(data=x)` gives the output (a dict by blob name where there are several);
    `network.blobs({"data": x})` gives every value on the way. Made by `caffeport.load`.
    """

    graph: Graph
    names: dict[str, str]
    source_files: tuple[str, ...] = ()  # where it was read from
    description: Description | None = None  # the files that it was made from
    hashes: Mapping[str, Any] = {}  # of a converted folder: sha256 of each tensor, by its key in state_dict
    mean_file: Path | None = None  # of a converted folder: its mean picture

    def __init__(
        self, graph: Graph, modules: Mapping[str, nn.Module], views: Mapping[str, Mapping[str, View]] | None = None
    ) -> None:
        """`modules` holds the module of each step, by layer key, and of the owners of views.

        `views` those parameters that are another layer's, reshaped; the owner need not be a step of a truncated net.
        """
        super().__init__()
        self.graph = graph
        self._views = dict(views or {})
        owners = [view.layer for step in graph.steps for view in self._views.get(step.key, {}).values()]
        self.names = module_names(dict.fromkeys([*(step.key for step in graph.steps), *owners]))
        for key, name in self.names.items():
            self.add_module(name, modules[key])
        self._checked: set[tuple[tuple[int, Shape], ...]] = set()
        self._plan = plan(graph, self.names, self._views)
        # Made here, since torch.compile of torch 2.6 to 2.8 cannot trace a set of Values.
        self._needed = graph.needed
        self._labels = {value.key for value in graph.labels}
        self.eval()

    # ---- what the net is

    @property
    def inputs(self) -> dict[str, Shape]:
        """Blobs to feed, in order, with their declared shapes (None: open)."""
        return {value.blob: value.shape for value in self.graph.inputs}

    @property
    def outputs(self) -> list[str]:
        """Blobs that no layer reads, sorted by name as in Caffe."""
        return list(self.graph.outputs)

    def quirks(self) -> list[Quirk]:
        """Every place where this net, at its declared sizes, needs semantics that the obvious layer lacks."""
        return self.graph.quirks()

    def truncate(self, blob: str) -> "Network":
        """The net up to `blob` (a blob's name: its value at the end; or "layer::top"), sharing this net's modules.

        Raises InputError if there is no such blob.
        """
        if blob in self.graph.blobs:
            target = self.graph.blobs[blob]
        else:
            written = [top for step in self.graph.steps for top in step.tops if top.key == blob]
            if not written:
                raise InputError(f"the net has no blob {blob!r}; it has {_listing(self.graph.blobs)}")
            target = Operand(written[0])
        needed = _needed(self.graph, [target])
        steps = [step for step in self.graph.steps if any(top in needed for top in step.tops)]
        graph = Graph(
            name=self.graph.name,
            inputs=[value for value in self.graph.inputs if value in needed],
            labels=self.graph.labels,
            data_layers=self.graph.data_layers,
            steps=steps,
            blobs=_last_blobs(self.graph, steps, blob, target),
            outputs=[blob],
            slots=self.graph.slots,
            truncated=True,
        )
        modules: dict[str, Any] = {key: self._modules[name] for key, name in self.names.items()}
        result = Network(graph, modules, self._views)
        result.mean_file = self.mean_file
        return result

    def folded(self) -> "Network":
        """A faster network of the same function, with fewer layers; its weights are no longer the file's."""
        from .folding import folded

        return folded(self)

    # ---- running it

    def forward(self, *args: Feed | Mapping[str, Feed], **kwargs: Feed) -> Tensor | dict[str, Tensor]:
        """Run the net on its inputs, given in order or by blob name; they may have other batch and spatial sizes than
        declared.

        Raises InputError for missing or unknown inputs and ShapeError, with the layer, where shapes do not fit.
        """
        values = self._feed(args, kwargs)
        modules = self._modules
        for run, _, free in self._plan:
            run(modules, values)
            for slot in free:
                values[slot] = None
        outputs = {name: see(self.graph.blobs[name], values) for name in self.graph.outputs}
        return outputs if len(outputs) != 1 else next(iter(outputs.values()))

    def blobs(self, *args: Feed | Mapping[str, Feed], **kwargs: Feed) -> dict[str, Tensor]:
        """Run the net and give every value: `layer::top` as the layer wrote it, and each blob name as it is at the end.

        A plain name is the blob's value at the end, after its in-place layers; "conv1::conv1" the one before an
        in-place ReLU. Labels may be left out: then the losses, scores and sinks that read them are not run.

        Besides inputs, any inner value may be fed, and the net starts there; what lies before it is not run:

            pool1 = network.blobs({"data": x})["pool1"]
            prob = network.blobs({"pool1": pool1 * mask})["prob"]

        The autograd graph is kept where gradients are on, so that Grad-CAM needs no hooks:

            blobs = network.blobs({"data": x})
            (grad,) = torch.autograd.grad(blobs["fc8"][0, label], blobs["conv5"])
            heat = (grad.mean((2, 3), keepdim=True) * blobs["conv5"]).sum(1).relu()

        and deep dream is `blobs["inception_4c/output"].norm().backward()` for an x with requires_grad.
        """
        values = self._feed(args, kwargs, inner=True)
        given = {slot: value for slot, value in enumerate(values) if value is not None}
        for step in self.graph.steps:
            ready = all(values[value.slot] is not None for value in step.reads)
            if ready and not (step.tops and all(top.slot in given for top in step.tops)):
                call_of(step, self.names, self._views)(self._modules, values)
                for top in step.tops:
                    values[top.slot] = given.get(top.slot, values[top.slot])
        every = {value.key: values[value.slot] for value in self.graph.inputs}
        every |= {top.key: values[top.slot] for step in self.graph.steps for top in step.tops}
        blobs = self.graph.blobs.items()
        every |= {
            name: see(o, values) for name, o in blobs if all(values[value.slot] is not None for value in o.values)
        }
        return {name: value for name, value in every.items() if value is not None}

    def run_step(
        self,
        step: Step,
        bottoms: Sequence[Tensor],
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        module: nn.Module | None = None,
    ) -> tuple[Tensor, ...]:
        """One layer alone: its tops for these bottoms, computed in `dtype` on `device`.

        The layer's numbers are converted for this call only, so that a net larger than the device can run a layer at a
        time. `module` stands in for the layer's own.
        """
        shared = shared_with(step, self.names, self._views)
        modules: dict[str, Any] = self._modules
        owners = {owner: converted(modules[owner], dtype, device) for _, owner, _ in shared}
        own = converted(module or modules[self.names[step.key]], dtype, device)
        return apply(step, own, [x.to(device, dtype) for x in bottoms], owners, shared)

    def _feed(self, args: tuple[Any, ...], kwargs: Mapping[str, Feed], inner: bool = False) -> list[Any]:
        """Values by slot, with what is fed in place. `inner` lets the caller feed values that layers write."""
        graph = self.graph
        if len(args) == 1 and isinstance(args[0], Mapping):
            kwargs = {**args[0], **kwargs}
            args = ()
        fed = {**dict(zip((value.blob for value in graph.inputs), args, strict=False)), **kwargs}
        places = {value.blob: value for value in graph.inputs}
        if inner:
            places = (
                {top.key: top for step in graph.steps for top in step.tops}
                | {name: operand.value for name, operand in graph.blobs.items()}
                | {value.key: value for value in graph.inputs}
                | places
            )
        unknown = [name for name in fed if name not in places]
        started = any(places[name] not in graph.inputs for name in fed if name in places)
        spared = graph.judged if inner else ()
        missing = [
            value.blob
            for value in self._needed
            if value.blob not in fed and value.key not in fed and not started and value not in spared
        ]
        if missing or unknown or len(args) > len(graph.inputs):
            raise InputError(
                f"the net takes {_listing(self.inputs)}"
                + (f"; not given: {_listing(missing)}" if missing else "")
                + (f"; not an input: {_listing(unknown)}" if unknown else "")
                + (self._written(unknown) if inner else "")
                + (f"; {len(args)} arrays were given" if len(args) > len(graph.inputs) else "")
            )
        values: list[Any] = [None] * graph.slots
        like = self._like()
        shapes: list[tuple[Value, Shape]] = []
        for name, array in fed.items():
            value, x = places[name], _tensor(name, array, like)
            label = value.key in self._labels
            shapes.append((value, (x.shape[0], 1, 1, 1) if label and x.dim() else tuple(x.shape)))
            values[value.slot] = x.reshape(-1, 1, 1, 1) if label else x
        if not torch.compiler.is_compiling():
            self._check(dict(shapes))
        return values

    def _like(self) -> Tensor | None:
        """A tensor of the net's device and floating type."""
        for tensor in chain(self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor
        return None

    def _written(self, names: Sequence[str]) -> str:
        """What those of `names` that are layers write, for an error; "" where none is one."""
        tops = {step.key: [top.key for top in step.tops] for step in self.graph.steps}
        layers = [f"; {name!r} is a layer, which writes {_listing(tops[name])}" for name in names if name in tops]
        return "".join(layers[:3])

    def _check(self, shapes: dict[Value, Shape]) -> None:
        """Once for each new set of shapes: does every layer accept what it would get?"""
        seen = tuple((value.slot, shape) for value, shape in shapes.items())
        if seen in self._checked:
            return
        for value, shape in shapes.items():
            if len(shape) != len(value.shape) and value not in self.graph.labels:
                raise ShapeError(
                    f"blob {value.blob!r}: got shape {text(shape)}, the net declares {text(value.shape)}; "
                    f"another number of axes has to be given when the net is loaded (inputs={{...}} or --input)"
                )
        self.graph.shapes(shapes)
        if len(self._checked) < 1000:
            self._checked.add(seen)


def _needed(graph: Graph, targets: Iterable[Operand]) -> set[Value]:
    needed = {value for operand in targets for value in operand.values}
    for step in reversed(graph.steps):
        if any(top in needed for top in step.tops):
            needed.update(step.reads)
    return needed


def _last_blobs(graph: Graph, steps: list[Step], name: str, target: Operand) -> dict[str, Operand]:
    blobs = {value.blob: Operand(value) for value in graph.inputs}
    blobs |= {top.blob: Operand(top) for step in steps for top in step.tops}
    return blobs | {name: target}


def _tensor(name: str, array: Feed, like: Tensor | None) -> Tensor:
    """What is fed to blob `name` as a tensor of the net's device and floating type.

    Raises InputError for what is no array of real numbers.
    """
    if isinstance(array, Tensor):
        if array.is_complex() or (array.is_meta and like is not None and not like.is_meta):
            what = "complex" if array.is_complex() else "on the meta device, where tensors have no numbers"
            raise InputError(f"blob {name!r}: the tensor is {what}; expected real numbers")
        tensor = array
    else:
        try:
            given = np.asarray(array)
            if given.dtype.kind in "cmMOSU":
                raise TypeError(f"its elements are of type {given.dtype}")
            tensor = torch.from_numpy(np.array(given, np.float32))
        except (TypeError, ValueError) as error:
            what = type(array).__name__
            raise InputError(f"blob {name!r}: {what!r} is no array of real numbers: {error}") from error
    return tensor if like is None else tensor.to(like.device, like.dtype)


def module_names(keys: Iterable[str]) -> dict[str, str]:
    """A module's name for each layer: its own, but for what nn.Module cannot take (dots, "", its own attributes)."""
    taken = {*dir(Network), *vars(nn.Module()), "graph", "names", "_views", "_checked", "_plan", "_needed", "_labels"}
    repeats: Counter[str] = Counter()
    names = {}
    for key in keys:
        name = plain = key.replace(".", "_") or "_"
        while name in taken:
            repeats[plain] += 1
            name = f"{plain}_{repeats[plain] if repeats[plain] > 1 else ''}"
        taken.add(name)
        names[key] = name
    return names


def _listing(names: Iterable[str], limit: int = 12) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "nothing"
