"""Crop layers without crop_param: the offset that the forks of their time derived from the layers between the bottoms.

Caffe 1.0 reads such a layer as offset 0. FCN, HED and their kin were made for forks in which a Crop had no parameters:
it laid the first bottom over the second so that each value sat where its window is centred. Along one spatial axis:

    convolution, pooling   top = (bottom + pad - (extent - 1) / 2) / stride;  extent = dilation (kernel - 1) + 1
    deconvolution          top = stride bottom + (extent - 1) / 2 - pad
    crop                   top = bottom - offset
    elementwise            top = bottom

Source: BVLC Caffe 1.0, python/caffe/coord_map.py, where the rule lives on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from .errors import ShapeError
from .graph import Graph, Step, Value
from .layers.convolution import Convolutional
from .layers.pooling import Pooling
from .layers.shape import Crop

# Layers that leave each value at its place in the plane.
_STAY = {
    *("AbsVal", "BN", "BNLL", "BatchNorm", "Bias", "Clip", "Concat", "Dropout", "ELU", "Eltwise", "Exp", "LRN", "Log"),
    *("MVN", "Normalize", "PReLU", "Power", "ReLU", "ReLU6", "Scale", "Sigmoid", "Slice", "Softmax", "Split", "Swish"),
    *("TanH", "Threshold"),
}


@dataclass(frozen=True)
class Line:
    """Places along one axis: there = scale * here + shift, in pixels."""

    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)

    def after(self, first: "Line") -> "Line":
        """`first`, then this."""
        return Line(self.scale * first.scale, self.scale * first.shift + self.shift)


Lines = tuple[Line, ...]  # one for each spatial axis


@dataclass(frozen=True)
class BareCrop:
    """A Crop layer without crop_param.

    offset  what its fork would have taken, for each spatial axis (pixels); None where that cannot be known
    why     the reason then
    """

    step: Step
    offset: tuple[int, ...] | None
    why: str = ""

    def __str__(self) -> str:
        offset, name = self.offset, f"{self.step.key!r} (top {self.step.tops[0].blob!r})"
        if offset is None:
            return f"{name} unknown, since {self.why}"
        return f"{name} {offset[0] if len(set(offset)) == 1 else ' x '.join(map(str, offset))}"


def bare_crops(graph: Graph, most: int | None = None) -> list[BareCrop]:
    """The first `most` Crop layers without crop_param, but for those whose offset is 0 by the old rule too."""
    writers = {top: step for step in graph.steps for top in step.tops}
    derived: dict[str, tuple[int, ...]] = {}
    found = []
    bare = [s for s in graph.steps if isinstance(s.layer, Crop) and not s.layer.spec.HasField("crop_param")]
    for step in bare[:most]:
        crop = _derive(step, writers, derived)
        derived[step.key] = crop.offset or ()
        if crop.offset is None or any(crop.offset):
            found.append(crop)
    return found


def warning(crops: Iterable[BareCrop]) -> str:
    return (
        "Crop layers without crop_param: Caffe 1.0, and so this net, takes offset 0, which may shift the maps. The old "
        "forks that such files were made for derived the offset (pixels) from the layers between the bottoms: "
        f'{", ".join(map(str, crops))}. crop="aligned" (--crop aligned) takes the derived offsets'
    )


def set_offsets(crops: Iterable[BareCrop]) -> None:
    """Write the derived offsets into the layers' crop_param. Raises ShapeError where one is not known."""
    crops = list(crops)
    unknown = [f"{crop.step.layer}: {crop.why}" for crop in crops if crop.offset is None]
    if unknown:
        raise ShapeError(
            f'crop="aligned": no offset can be derived for {"; ".join(unknown)}; '
            "write `crop_param { offset: ... }` into the net"
        )
    for crop in crops:
        crop.step.layer.spec.crop_param.offset[:] = crop.offset or ()


def _derive(step: Step, writers: dict[Value, Step], derived: dict[str, tuple[int, ...]]) -> BareCrop:
    first, second = (_origins(operand.like or operand.value, writers, derived) for operand in step.bottoms)
    common = [value for value in second if value in first]
    if not common:
        return BareCrop(step, None, "its bottoms share no origin by layers whose geometry is known")
    origin = max(common, key=lambda value: value.slot)
    lines = list(zip(first[origin], second[origin], strict=False))
    if any(a.scale != b.scale for a, b in lines):
        return BareCrop(step, None, "its bottoms have different strides")
    shifts = [a.shift - b.shift for a, b in lines]
    if any(shift.denominator != 1 or shift < 0 for shift in shifts):
        return BareCrop(step, None, f"the offset would be {', '.join(str(float(shift)) for shift in shifts)}")
    return BareCrop(step, tuple(int(shift) for shift in shifts))


def _origins(start: Value, writers: dict[Value, Step], derived: dict[str, tuple[int, ...]]) -> dict[Value, Lines]:
    """Every value that `start` comes from, with the lines from its places to those in `start`."""
    lines = {start: (Line(),) * (len(start.shape) - 2)}
    waiting = [start]
    while waiting:
        value = waiting.pop()
        step = writers.get(value)
        if step is None:
            continue
        for operand in step.bottoms[:1] if isinstance(step.layer, Crop) else step.bottoms:
            bottom = operand.like or operand.value
            own = _lines(step, bottom, value, derived)
            if own and bottom not in lines:
                lines[bottom] = tuple(a.after(b) for a, b in zip(lines[value], own, strict=True))
                waiting.append(bottom)
    return lines


def _lines(step: Step, bottom: Value, top: Value, derived: dict[str, tuple[int, ...]]) -> Lines | None:
    """From places in `bottom` to places in `top`; None where the layer's geometry is not known."""
    layer, rank = step.layer, len(bottom.shape) - 2
    if rank < 1 or len(top.shape) != len(bottom.shape):
        return None
    if isinstance(layer, Crop):
        if layer.axis(layer.param.axis, bottom.shape) != 2:
            return None
        offsets = derived.get(step.key) or layer.offsets(rank)
        return tuple(Line(shift=Fraction(-offset)) for offset in offsets)
    if isinstance(layer, Convolutional):
        if layer.geometry([bottom.shape])[0] != 1:
            return None
        kernel, stride, pad, dilation = layer.window(rank)
        transposed = layer.transposed
    elif isinstance(layer, Pooling):
        kernel, stride, pad = layer.window(rank)
        dilation, transposed = (1,) * len(kernel), False
    else:
        stays = layer.spec.type in _STAY and bottom.shape[2:] == top.shape[2:]
        return (Line(),) * rank if stays else None
    result = []
    for k, s, p, d in zip(kernel, stride, pad, dilation, strict=False):
        half = Fraction(d * (k - 1), 2)
        result.append(Line(Fraction(s), half - p) if transposed else Line(Fraction(1, s), (p - half) / s))
    return tuple(result) or None  # global pooling has no kernel
