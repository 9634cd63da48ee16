"""The layer contract and the registry.

A layer class *describes* one Caffe layer type: its shape rule, its learned arrays, the PyTorch module that computes it.
It imports no torch until `module` is called, so that `caffeport inspect` and the shape rules need none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from ..errors import ShapeError, UnsupportedLayer
from ..formats.model_file import StoredBlob
from ..formats.schema import Message, message_class

if TYPE_CHECKING:
    from torch import nn

    from ..export.graph import OnnxGraph, OnnxValue
    from ..export.source import SourceWriter

Array = np.ndarray[Any, Any]
Shape = tuple[int | None, ...]  # None: known only at run time
UNKNOWN: Shape = (None,) * 33  # an input whose number of axes the file does not tell; Caffe's blobs have 32 at most
FLOAT, INT64, BOOL, DOUBLE = 1, 7, 9, 11  # ONNX's numbers of element types, for Cast


class Size(int):
    """A number of values along an axis, where a plain int would be the number of an axis."""


FillerParameter = message_class("FillerParameter")


def constant(value: float) -> Message:
    """A filler that gives `value` everywhere."""
    return FillerParameter(type="constant", value=value)


@dataclass(frozen=True)
class Blob:
    """One learned array of a layer.

    name    its key in the module's state_dict, such as "weight"
    shape   Caffe's shape, row-major
    filler  FillerParameter for a net without weights; Caffe's default is constant 0
    """

    name: str
    shape: tuple[int, ...]
    filler: Message = field(default_factory=lambda: constant(0.0))


@dataclass(frozen=True)
class Quirk:
    """A place where Caffe differs from the obvious PyTorch or ONNX layer, and what caffeport does about it."""

    layer: str
    what: str
    handled: str


class OpenShape(ShapeError):
    """A layer cannot be built while its bottom's shape is open; the graph adds which input to give."""


class Layer:
    """Describes one layer of a net. Subclass it and `register` the subclass for a layer type.

    Subclasses state how many bottoms and tops Caffe accepts, name the parameter message that they read (`param_field`)
    and
    write the methods below. `self.param` is the layer's own parameter message, `self.spec` its whole LayerParameter,
    `self.stored` the arrays that a weights file holds for it (None without weights).
    """

    param_field: ClassVar[str] = ""
    bottom_count: ClassVar[tuple[int, int | None]] = (1, 1)  # least and most; None: no limit
    top_count: ClassVar[tuple[int, int | None]] = (1, 1)
    is_input: ClassVar[bool] = False  # the caller feeds its tops
    is_loss: ClassVar[bool] = False  # Caffe invents a top where the file names none
    judges: ClassVar[bool] = False  # a loss, a score or a sink: what other layers compute does not depend on it
    same_shape_bottoms: ClassVar[bool] = False
    fresh: ClassVar[bool] = False  # the module's result is always new memory, so an in-place ReLU may overwrite it
    per_bottom: ClassVar[bool] = False  # the module takes one bottom and is called once for each
    overwrites: ClassVar[bool] = (
        False  # the module is a plain ReLU, which may work in place where nobody needs its bottom
    )
    in_place: ClassVar[bool] = True  # False: Caffe aborts, or computes nonsense, when top and bottom are one blob
    batch_independent: ClassVar[bool] = True
    moves: ClassVar[bool] = False  # only moves or selects values (`exact` where that depends on its parameters)
    noise_floor: ClassVar[float] = (
        0.0  # absolute difference that two right builds of Caffe may have, for `caffeport.verify`
    )
    differentiable: ClassVar[bool] = True
    passes_on: ClassVar[bool] = False  # the tops are the bottom itself: a layer that only training or wiring needs
    wraps: ClassVar[bool] = False  # in source it reads well around another call: F.relu(self.conv1(x))
    operator: ClassVar[str] = ""  # ONNX's name of the very same function, where it needs no attributes
    variant: ClassVar[str] = ""  # which fork's layer this is, where one type name means several

    def __init__(self, spec: Message, key: str, stored: Sequence[StoredBlob] | None = None) -> None:
        self.spec = spec
        self.key = key
        self.stored = stored
        self.param: Message = getattr(spec, self.param_field) if self.param_field else None

    def __str__(self) -> str:
        return f"layer {self.key!r} ({self.spec.type})"

    # ---- what a subclass writes

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        """Shapes of the tops. Checks what Caffe checks; raises ShapeError."""
        return [bottoms[0]] * len(self.spec.top)

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        """Learned arrays in Caffe's order."""
        return []

    def module(self, bottoms: list[Shape]) -> "nn.Module":
        """The PyTorch module: takes the bottoms by position, gives the top or a tuple of tops."""
        raise UnsupportedLayer(f"{self}: its class {type(self).__name__} has no module()")

    def weights(self, blobs: dict[str, Array]) -> dict[str, Array]:
        """Caffe's arrays, by Blob.name and in Blob.shape, to state_dict entries.

        The only place where numbers are rearranged.
        """
        return blobs

    def onnx(self, graph: "OnnxGraph", bottoms: "list[OnnxValue]") -> "list[OnnxValue]":
        """Write the layer into an ONNX graph and give its tops. Raises UnsupportedLayer where ONNX cannot say it."""
        if not self.operator:
            raise UnsupportedLayer(f"{self}: ONNX has no form of it")
        return [graph.call(self.operator, *bottoms)]

    def source(self, writer: "SourceWriter", bottoms: list[str]) -> list[str]:
        """The tops as Python expressions of the bottoms; a single one for several tops is a tuple."""
        module = writer.module()
        calls = bottoms if self.per_bottom else [", ".join(bottoms)]
        return [f"{module}({arguments})" for arguments in calls] if self.spec.top or self.is_loss else []

    def shares_memory(self, bottoms: list[Shape]) -> bool:
        """Whether Caffe's tops are the bottom's own memory, so that a later in-place layer changes both."""
        return False

    def flatten_from(self) -> int | None:
        """Axis from which the bottom is flattened before the module sees it (InnerProduct), or None."""
        return None

    def affine_with(self, after: "Layer") -> bool:
        """Whether `after` scales and shifts this normalisation, so that forward may compute both in one call."""
        return False

    def exact(self) -> bool:
        """Whether float32 agrees bit for bit, because values are only moved or selected."""
        return self.moves

    def serial_terms(self, bottoms: list[Shape]) -> int:
        """How many numbers Caffe adds up one after the other in float32, where torch adds in pairs and errs less."""
        return 1

    def multiply_adds(self, bottoms: list[Shape], tops: list[Shape]) -> int | None:
        """Multiply-add operations of one forward pass; None where shapes are open."""
        return 0

    def quirks(self, bottoms: list[Shape]) -> list[Quirk]:
        """Where Caffe differs from the obvious layer, for these shapes."""
        return []

    def warnings(self) -> list[str]:
        """What the owner of the files should know about this layer, in words that other layers' warnings may share."""
        return []

    # ---- what the graph calls

    def describe(self, bottoms: list[Shape]) -> list[Shape]:
        """Check the counts and return the tops' shapes."""
        self._check_count("bottom", len(self.spec.bottom), self.bottom_count)
        tops = max(len(self.spec.top), 1) if self.is_loss else len(self.spec.top)
        self._check_count("top", tops, self.top_count)
        if self.same_shape_bottoms:
            for name, shape in zip(self.spec.bottom, bottoms, strict=True):
                if not compatible(shape, bottoms[0]):
                    raise ShapeError(
                        f"{self}: bottoms must have one shape; {self.spec.bottom[0]!r} is {text(bottoms[0])}, "
                        f"{name!r} is {text(shape)}"
                    )
        return self.tops(bottoms)

    def _check_count(self, kind: str, count: int, limits: tuple[int, int | None]) -> None:
        least, most = limits
        if count < least or (most is not None and count > most):
            wanted = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
            raise ShapeError(f"{self}: has {count} {kind}s, Caffe wants {wanted}")

    # ---- helpers for subclasses

    def axis(self, axis: int, shape: Shape, *, insert: bool = False) -> int:
        """Canonical, non-negative axis; `insert` allows one past the end. Caffe aborts outside the range."""
        count = len(shape) + insert
        if not -count <= axis < count:
            raise ShapeError(f"{self}: axis {axis} is outside of a bottom of shape {text(shape)}")
        return axis % count if count else 0

    def stored_shape(self, index: int, rank: int) -> tuple[int, ...] | None:
        """Shape of stored array `index` read as `rank` axes; None if there is none or it does not fit that rank."""
        if self.stored is None or index >= len(self.stored):
            return None
        blob = self.stored[index]
        if blob.legacy and rank <= 4:
            return blob.shape[4 - rank :] if all(n == 1 for n in blob.shape[: 4 - rank]) else None
        return blob.shape if len(blob.shape) == rank else None

    def known(self, size: int | None, stored: int | None, what: str) -> int:
        """A size that the layer cannot be built without: the bottom's, or else the stored array's."""
        if size is not None:
            return size
        if stored is None:
            raise OpenShape(f"{self}: {what} is not known: the net does not say it and no weights do")
        return stored


def text(shape: Shape) -> str:
    """A shape for people: "10 x 3 x ? x ?"; a scalar is "scalar"."""
    return " x ".join("?" if n is None else str(n) for n in shape) or "scalar"


def count(shape: Shape) -> int | None:
    """Number of values, or None if a dimension is open."""
    return None if None in shape else prod(n for n in shape if n is not None)


def compatible(a: Shape, b: Shape) -> bool:
    """Whether two shapes can be the same one at run time."""
    return len(a) == len(b) and all(m is None or n is None or m == n for m, n in zip(a, b, strict=True))


def merged(a: Shape, b: Shape) -> Shape:
    """Two compatible shapes as one, each dimension as known as either."""
    return tuple(n if m is None else m for m, n in zip(a, b, strict=True))


# ---- the registry

L = TypeVar("L", bound=Layer)
Condition = Callable[[Message, Sequence[StoredBlob] | None], bool]
TYPES: dict[str, list[tuple[Condition | None, type[Layer]]]] = {}


def register(*types: str, when: Condition | None = None) -> Callable[[type[L]], type[L]]:
    """Class decorator: this class describes the layers of these types.

    A `Python` layer's type is "module.layer" of its python_param, such as "rpn.proposal_layer.ProposalLayer".
    Where one type name means two layers in two forks, `when(spec, stored)` tells them apart.
    """

    def add(cls: type[L]) -> type[L]:
        for type_ in types:
            taken = TYPES.setdefault(type_, [])
            if taken and (when is None or taken[-1][0] is None):
                raise ValueError(f"layer type {type_!r} is already described by {taken[-1][1].__name__}")
            taken.append((when, cls))
        return cls

    return add


def type_name(spec: Message) -> str:
    """The name under which the layer's class is registered."""
    if spec.type == "Python":
        return f"{spec.python_param.module}.{spec.python_param.layer}"
    return str(spec.type)


def layer_class(spec: Message, stored: Sequence[StoredBlob] | None = None) -> type[Layer]:
    """The class that describes this layer. Raises UnsupportedLayer, with a near type where there is one."""
    for when, cls in TYPES.get(type_name(spec), []):
        if when is None or when(spec, stored):
            return cls
    if not spec.bottom and spec.top:
        from .data import UnknownData

        return UnknownData
    if spec.type == "Python":
        hint = f"register a class for it: @caffeport.layers.register({type_name(spec)!r})"
        raise UnsupportedLayer(
            f"layer {spec.name!r} (Python, {type_name(spec)}): its code is not part of the file; {hint}"
        )
    near = get_close_matches(spec.type, TYPES, n=1)
    hint = f"did you mean {near[0]!r}? If not, " if near else ""
    hint += f"register a class for it: @caffeport.layers.register({spec.type!r})"
    raise UnsupportedLayer(f"layer {spec.name!r} ({spec.type}): nobody describes this type; {hint}")
