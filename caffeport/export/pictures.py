"""Preprocessing inside of an exported model: it takes pictures, and cannot be fed wrongly."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..layers.base import FLOAT
from ..preprocess import Preprocessing
from .graph import OnnxGraph, OnnxValue

Array = np.ndarray[Any, Any]
Symbolic = tuple[int | str | None, ...]


@dataclass(frozen=True)
class PictureInput:
    """A model's input for uint8 RGB pictures, `layout` "NHWC" or "NCHW", and how they become the net's input."""

    prepare: Preprocessing
    layout: str = "NHWC"

    def __post_init__(self) -> None:
        if self.layout not in ("NHWC", "NCHW"):
            raise InputError(f"preprocessing: layout {self.layout!r}; wanted is NHWC or NCHW")

    @property
    def mean(self) -> Array:
        return np.asarray(self.prepare.mean, np.float32)

    @property
    def doc(self) -> str:
        return "RGB pictures, 0 to 255, of the size that the net was trained to crop: resizing comes before"

    def closed(self, input_shape: Symbolic) -> Symbolic:
        """Shape of a net's input, with what the mean and the crop say of the sizes that the net leaves open."""
        mean = self.mean.shape
        channels = mean[0] if len(mean) == 3 or (len(mean) == 1 and mean[0] > 1) else None
        said = (None, channels, *(self.prepare.crop or (mean[1:] if len(mean) == 3 else (None, None))))
        return tuple(n if isinstance(n, int) else known or n for n, known in zip(input_shape, said, strict=True))

    def shape(self, input_shape: Symbolic) -> Symbolic:
        """Shape of the pictures for a net's input (N, C, h, w).

        Before a crop any size will do that is not smaller, unless the mean is a picture.
        """
        n, channels, *own = input_shape
        crop, mean = self.prepare.crop, self.mean
        if isinstance(channels, str):
            raise InputError(
                "preprocessing: the net does not say how many channels its input has; give its shape: "
                "inputs={'data': (N, C, H, W)} or --input data=N,C,H,W"
            )
        if channels not in (1, 3):
            raise InputError(f"preprocessing: the net's input has {channels} channels; pictures have 3, or 1")
        if crop and tuple(own) != tuple(crop):
            raise InputError(
                f"preprocessing: the crop is {_text(crop)}, the net takes {_text(own)}; "
                "--centre-crop takes the net's size, --no-centre-crop does not crop"
            )
        sizes: list[int | str | None] = own
        if mean.ndim == 3:
            sizes = list(mean.shape[1:])
            if crop is None and sizes != own:
                raise InputError(
                    f"preprocessing: the mean is {_text(sizes)}, the net takes {_text(own)}; "
                    "give a crop (--centre-crop)"
                )
            if crop and (mean.shape[1] < crop[0] or mean.shape[2] < crop[1]):
                raise InputError(f"preprocessing: the mean is {_text(sizes)}, smaller than the crop of {_text(crop)}")
        elif crop:
            sizes = ["width", "height"] if self.prepare.transposed else ["height", "width"]
        self.prepare.mean_of((channels, *sizes))
        if self.prepare.transposed:
            sizes = sizes[::-1]
        return (n, *sizes, channels) if self.layout == "NHWC" else (n, channels, *sizes)

    def onnx(self, graph: OnnxGraph, image: OnnxValue, input_shape: Symbolic) -> OnnxValue:
        """Write the preprocessing and give the net's input."""
        graph.key, graph.type = "preprocessing", "preprocessing"
        x, mean, crop = image, self.mean, self.prepare.crop
        moved = (0, 3, 1, 2) if self.layout == "NHWC" else (0, 1, 2, 3)
        if self.prepare.transposed:
            moved = (*moved[:2], moved[3], moved[2])
        if moved != (0, 1, 2, 3):
            x = graph.call("Transpose", x, perm=moved)
        if crop and mean.ndim == 3:
            first = [(size - kept) // 2 for size, kept in zip(mean.shape[1:], crop, strict=True)]
            last = [a + kept for a, kept in zip(first, crop, strict=True)]
            x = graph.call("Slice", x, graph.axes(*first), graph.axes(*last), graph.axes(2, 3))
            mean = mean[:, first[0] : last[0], first[1] : last[1]]
        elif crop:
            graph.key = f"preprocessing/crop to {_text(crop)}"
            spare = graph.call("Sub", graph.sizes(x, 2), graph.axes(*crop))
            start = graph.call("Div", spare, graph.axes(2))
            x = graph.call("Slice", x, start, graph.call("Add", start, graph.axes(*crop)), graph.axes(2, 3))
            # Slice would take what there is of a smaller picture; this fails, under that name.
            x = graph.reshape(x, (None, None, *crop), copied=(0, 1))
            graph.key = "preprocessing"
        if self.prepare.bgr and input_shape[1] == 3:
            x = graph.call("Gather", x, graph.axes(2, 1, 0), axis=1)
        x = graph.call("Cast", x, to=FLOAT)
        if mean.any():
            x = graph.call("Sub", x, graph.constant(mean.reshape(-1, 1, 1) if mean.ndim == 1 else mean))
        scale = self.prepare.scale
        return x if scale == 1 else graph.call("Mul", x, graph.constant(float(scale)))

    def apply(self, pictures: Array) -> Array:
        """The same outside of the model."""
        return self.prepare(pictures if self.layout == "NHWC" else np.ascontiguousarray(pictures.transpose(0, 2, 3, 1)))

    def random(self, shape: tuple[int, ...], seed: int = 0) -> Array:
        """Pictures of noise for a net's input of this shape."""
        tall, wide = (n + 5 for n in (self.prepare.crop or (0, 0))[:: -1 if self.prepare.transposed else 1])
        larger = {"height": tall, "width": wide}
        sizes = [n if isinstance(n, int) else larger[str(n)] for n in self.shape(shape)]
        return np.random.default_rng(seed).integers(0, 256, sizes).astype(np.uint8)

    def to_dict(self) -> dict[str, Any]:
        """As text can hold it, numbers as float32 has them; a mean picture by its shape."""
        p = self.prepare
        values = [_number(value) for value in self.mean.reshape(-1)] if self.mean.ndim < 3 else []
        return {
            "input": f"uint8 RGB {self.layout}",
            "mean": values or {"shape": self.mean.shape},
            "scale": _number(p.scale),
            "crop": p.crop,
            "bgr": p.bgr,
            "transposed": p.transposed,
        }


def _number(value: Any) -> float:
    return float(str(np.float32(value)))


def _text(sizes: Iterable[int | str | None]) -> str:
    return " x ".join(map(str, sizes))
