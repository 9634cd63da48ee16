"""From pictures to a net's input: what Caffe's data transformer does in TEST phase. Needs no torch.

    prepare = Preprocessing(mean=(104, 117, 123), crop=(227, 227))
    x = prepare(pictures)                   # (N, H, W, 3) uint8 RGB, all of the size that the net was trained to crop
    prob = network(torch.from_numpy(x))

Resizing is the caller's: Caffe's own tools did it in several ways.
Source: BVLC Caffe 1.0, src/caffe/data_transformer.cpp.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError
from .formats import MeanImage
from .formats.schema import Message

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Preprocessing:
    """Picture to input: x = (pixel - mean) * scale, in the net's channel order, cropped to the middle.

    mean        one value, one per channel, or (C, H, W) of the uncropped picture; in the net's channel order, 0 to 255
    scale       factor after the mean
    crop        rows and columns to keep, around the middle; None: all
    bgr         whether the net wants blue first, as Caffe's tools read pictures
    transposed  for nets that were trained from MATLAB on pictures whose axes nobody swapped: the input is
                (N, C, W, H), columns first, and so are the mean and `crop`
    """

    mean: float | tuple[float, ...] | Array = 0.0
    scale: float = 1.0
    crop: tuple[int, int] | None = None
    bgr: bool = True
    transposed: bool = False

    @classmethod
    def of(cls, param: Message, mean: MeanImage | None = None, **how: Any) -> "Preprocessing":
        """As a data layer's TransformationParameter says; `mean` is what its mean_file holds, `how` what else is set.

        Raises InputError where the layer names a mean_file that is not given, or has both kinds of mean.
        """
        values = tuple(param.mean_value)
        if values and (mean is not None or param.mean_file):
            raise InputError("transform_param: mean_value and a mean image; Caffe takes only one of them")
        if param.mean_file and mean is None:
            raise InputError(f"transform_param: mean_file is {param.mean_file!r}: give that file as the mean")
        crop = (param.crop_size,) * 2 if param.crop_size else None
        return cls(mean=mean.array if mean is not None else values or 0.0, scale=param.scale, crop=crop, **how)

    def __call__(self, pictures: Array) -> Array:
        """(H, W, 3) or (N, H, W, 3), uint8 RGB, to (N, 3, h, w) float32; (H, W) or (N, H, W, 1), grey, to (N, 1, h, w).

        Raises InputError for other shapes and types, and where the mean or the crop does not fit.
        """
        x = pictures[..., None] if pictures.ndim == 2 else pictures
        x = x[None] if x.ndim == 3 else x
        if x.ndim != 4 or x.shape[3] not in (1, 3) or pictures.dtype != np.uint8:
            raise InputError(
                f"pictures of shape {pictures.shape} and type {pictures.dtype}: expected uint8 and (H, W, 3), "
                "(N, H, W, 3), (H, W) or (N, H, W, 1)"
            )
        x = x[..., ::-1] if self.bgr else x
        x = x.transpose((0, 3, 2, 1) if self.transposed else (0, 3, 1, 2))
        return np.ascontiguousarray(self._cropped(x.astype(np.float32) - self._mean(x.shape)) * np.float32(self.scale))

    def _mean(self, shape: tuple[int, ...]) -> Array:
        """The mean, to subtract from pictures of `shape`, (N, C, H, W)."""
        mean = np.asarray(self.mean, np.float32)
        if mean.ndim == 1 and mean.size in (1, shape[1]):
            return mean.reshape(1, -1, 1, 1)
        if mean.ndim not in (0, 1) and mean.shape != shape[1:]:
            raise InputError(
                f"a mean of shape {mean.shape} for pictures that are {shape[1:]}: give pictures of the mean's size "
                "(Caffe subtracts it before it crops), or one value per channel: mean.mean((1, 2))"
            )
        if mean.ndim == 1:
            raise InputError(f"a mean of {mean.size} values for {shape[1]} channels")
        return mean

    def _cropped(self, x: Array) -> Array:
        if self.crop is None:
            return x
        (height, width), (tall, wide) = x.shape[2:], self.crop
        if tall > height or wide > width:
            raise InputError(f"a crop of {tall} x {wide} from pictures of {height} x {width}")
        top, left = (height - tall) // 2, (width - wide) // 2
        return x[:, :, top : top + tall, left : left + wide]
