"""From pictures to a net's input: what Caffe's data transformer does in TEST phase. Needs no torch.

    prepare = Preprocessing(mean=(104, 117, 123), crop=(227, 227))
    prepare = Preprocessing.of_net(network)             # as its data layer's transform_param or converted folder says
    x = prepare(pictures)                   # (N, H, W, 3) uint8 RGB, all of the size that the net was trained to crop
    prob = network(torch.from_numpy(x))

Resizing is the caller's: Caffe's own tools did it in several ways.
Source: BVLC Caffe 1.0, src/caffe/data_transformer.cpp.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf import text_format

from .errors import InputError
from .formats import read_mean
from .formats.schema import Message

if TYPE_CHECKING:
    from .graph import Value
    from .network import Network

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

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.float32(self.scale)) and np.isfinite(np.asarray(self.mean, np.float32)).all()
        if not finite:
            raise InputError("preprocessing: the mean or the scale holds NaN, Inf or what float32 cannot hold")

    @classmethod
    def of(cls, param: Message, **given: Any) -> "Preprocessing":
        """As a data layer's TransformationParameter says, but for the fields that are given.

        Mirroring and the resizing of forks (resize_param) are left out.

        Raises InputError where the layer names a mean_file and no mean is given, or has both kinds of mean.
        """
        values = tuple(param.mean_value)
        if "mean" not in given and param.mean_file:
            if values:
                raise InputError(
                    "transform_param: mean_value and mean_file; Caffe takes only one of them: give the mean"
                )
            raise InputError(
                f"transform_param: mean_file is {param.mean_file!r}: give that file as the mean (--mean FILE)"
            )
        tall = param.crop_size or param.crop_h or param.crop_height  # the latter two in forks: SSD; DeepLab and PSPNet
        wide = param.crop_size or param.crop_w or param.crop_width
        own = {"mean": values or 0.0, "scale": param.scale, "crop": (tall, wide) if tall and wide else None}
        return cls(**own | given)

    @classmethod
    def of_net(cls, network: "Network", **given: Any) -> "Preprocessing":
        """As the net's own files say, but for the fields that are given.

        They say it in the transform_param of the data layer (a converted folder keeps it), and in the folder's mean
        picture. A mean picture that is larger than the net's input is cropped to it.

        Raises InputError where the files say nothing and neither a mean nor a scale is given, and as `of` does.
        """
        if network.mean_file and "mean" not in given:
            given["mean"] = read_mean(network.mean_file).array
        param = _transform_param(network)
        if param is not None:
            made = cls.of(param, **given)
        elif given.keys() & {"mean", "scale"}:
            made = cls(**given)
        else:
            raise InputError(
                "preprocessing: nothing says how a picture becomes the net's input, neither a transform_param of a "
                "data layer nor the mean of a converted folder; give the mean (--mean FILE or B,G,R; 0 for none) or "
                f"the scale (--scale){_trained_with(network)}"
            )
        mean, size = np.asarray(made.mean), input_size(network)
        if "crop" not in given and made.crop is None and size and mean.ndim == 3 and mean.shape[1:] != size:
            return replace(made, crop=size)
        return made

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
        return np.ascontiguousarray(
            self._cropped(x.astype(np.float32) - self.mean_of(x.shape[1:])) * np.float32(self.scale)
        )

    def mean_of(self, shape: tuple[int | str | None, ...]) -> Array:
        """The mean, to subtract from pictures of `shape`, (C, H, W): of that shape, (C, 1, 1), (1, 1, 1) or ().

        Raises InputError where it does not fit.
        """
        mean = np.asarray(self.mean, np.float32)
        if mean.ndim == 1 and mean.size in (1, shape[0]):
            return mean.reshape(-1, 1, 1)
        if mean.ndim == 1:
            raise InputError(f"a mean of {mean.size} values for {shape[0]} channels")
        if mean.ndim and mean.shape != shape:
            raise InputError(
                f"a mean of shape {mean.shape} for pictures that are {shape}: give pictures of the mean's size "
                "(Caffe subtracts it before it crops), or one value per channel: mean.mean((1, 2))"
            )
        return mean

    def _cropped(self, x: Array) -> Array:
        if self.crop is None:
            return x
        (height, width), (tall, wide) = x.shape[2:], self.crop
        if tall > height or wide > width:
            raise InputError(f"a crop of {tall} x {wide} from pictures of {height} x {width}")
        top, left = (height - tall) // 2, (width - wide) // 2
        return x[:, :, top : top + tall, left : left + wide]


def input_size(network: "Network") -> tuple[int, int] | None:
    """Height and width of the net's one input for pictures, where it has one and the files say them."""
    values = _picture_inputs(network)
    height, width = values[0].shape[2:] if len(values) == 1 else (None, None)
    return (height, width) if height and width else None


def _picture_inputs(network: "Network") -> "list[Value]":
    return [value for value in network.graph.needed if len(value.shape) == 4]


def _transform_param(network: "Network") -> Message | None:
    """That of the data layer that gives the pictures."""
    blobs = {value.blob for value in _picture_inputs(network)}
    layers = [layer.spec for layer in network.graph.data_layers]
    found = [spec for spec in layers if spec.HasField("transform_param") and blobs.intersection(spec.top)]
    if any(spec.transform_param != found[0].transform_param for spec in found):
        raise InputError(
            f"preprocessing: {len(found)} data layers have different transform_param: "
            + ", ".join(repr(spec.name) for spec in found)
        )
    return found[0].transform_param if found else None


def _trained_with(network: "Network") -> str:
    """What the training net inside of the weights file says, for an error."""
    for file in network.description.files if network.description else ():
        for layer in file.net.layer if file.net is not None else ():
            if layer.HasField("transform_param"):
                told = text_format.MessageToString(layer.transform_param, as_one_line=True)[:500]
                return f"; {file.path} was trained with transform_param {{ {told} }}"
    return ""
