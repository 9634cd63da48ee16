"""Layers of nets that read clips, (N, C, L, H, W): C3D's and P3D's own forms of convolution and pooling."""

from collections.abc import Sequence

from ..errors import ShapeError, UnsupportedLayer
from ..formats.model_file import StoredBlob
from ..formats.schema import Message
from ..modules.geometry import pooled_size
from .base import Array, Blob, Layer, Shape, register, text
from .convolution import Convolution, Convolutional, Deconvolution
from .pooling import MAX, Pooling


def is_v1(layer: Layer) -> bool:
    """Whether a layer is C3D v1.0's, whose types are V1's; v1.1 has V2 types and parameter messages of its own."""
    return bool(layer.spec.type.isupper())


class _Clips(Convolutional):
    """What C3D's convolutions share: one size for height and width, another for the length."""

    bottom_count = (1, 1)
    top_count = (1, 1)

    def __init__(self, spec: Message, key: str, stored: Sequence[StoredBlob] | None = None) -> None:
        super().__init__(spec, key, stored)
        if not is_v1(self):
            self.param = spec.convolution3d_param

    def window(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        p = self.param
        if rank != 3:
            raise ShapeError(f"{self}: wants (N, C, L, H, W), bottom {self.spec.bottom[0]!r} has {rank + 2} axes")
        if not p.kernel_depth or not p.temporal_stride:
            raise ShapeError(f"{self}: kernel_depth and temporal_stride must be given and at least 1")
        kernel, stride, pad, dilation = super().window(2)
        return (p.kernel_depth, *kernel), (p.temporal_stride, *stride), (p.temporal_pad, *pad), (1, *dilation)


@register("CONVOLUTION3D", "Convolution3D")
class Convolution3D(_Clips, Convolution):
    """Cross-correlation of clips with zero padding, of C3D v1.0 and v1.1.

    Shapes   bottom (N, C, L, H, W) -> top (N, num_output, l, h, w), sizes as Convolution
    Params   num_output; kernel_depth, temporal_stride 1, temporal_pad 0 along L; kernel_size, stride 1, pad 0 along H
             and W; group 1; bias_term true; filter_group, which only saves memory
    Blobs    weight (num_output, C / group, depth, kernel, kernel), bias (num_output), kept as (1, 1, 1, 1, num_output)
    Raises   ShapeError: as Convolution; not 5 axes
    PyTorch  nn.Conv3d, equal. ONNX: Conv, equal.
    Source   facebookarchive/C3D, src/caffe/layers/convolution3d_layer.cpp
    """

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        return _stored_form(self, super().blobs(bottoms))

    def weights(self, blobs: dict[str, Array]) -> dict[str, Array]:
        return _flat_bias(blobs)


@register("DECONVOLUTION3D", "Deconvolution3D")
class Deconvolution3D(_Clips, Deconvolution):
    """Transposed convolution of clips, of C3D.

    Shapes   bottom (N, C, L, H, W) -> top (N, num_output, l, h, w), stride (i-1) + kernel - 2 pad each
    Params   as Convolution3D; no groups
    Blobs    weight (C, num_output, depth, kernel, kernel), bias (num_output), kept as (1, 1, 1, 1, num_output)
    Raises   ShapeError: as Convolution3D
    PyTorch  nn.ConvTranspose3d, equal. ONNX: ConvTranspose, equal.
    Source   facebookarchive/C3D, src/caffe/layers/deconvolution3d_layer.cpp
    """

    def groups(self, bottoms: list[Shape]) -> int:
        return 1  # the fork does not look at it

    def blobs(self, bottoms: list[Shape]) -> list[Blob]:
        return _stored_form(self, super().blobs(bottoms))

    def weights(self, blobs: dict[str, Array]) -> dict[str, Array]:
        return _flat_bias(blobs)


def _stored_form(layer: Layer, blobs: list[Blob]) -> list[Blob]:
    """v1.1 keeps a bias as (1, 1, 1, 1, N). v1.0 does so too, but its files are aligned at the end as all old ones."""
    if is_v1(layer):
        return blobs
    return [Blob(b.name, (1, 1, 1, 1, *b.shape), b.filler) if b.name == "bias" else b for b in blobs]


def _flat_bias(blobs: dict[str, Array]) -> dict[str, Array]:
    return {name: array.reshape(-1) if name == "bias" else array for name, array in blobs.items()}


@register("POOLING3D", "Pooling3D")
class Pooling3D(Pooling):
    """Largest or average value of each window of a clip, of C3D v1.0 and v1.1 and of P3D.

    Shapes   bottom (N, C, L, H, W) -> top (N, C, l, h, w); all three sizes round up
    Params   pool MAX | AVE; kernel_size, stride 1, pad 0 along H and W, in P3D also as _h and _w. Along L:
             kernel_depth, temporal_stride 1, no padding in C3D; kernel_l, stride_l 1, pad_l 0 in P3D. global_pooling
             in P3D
    Raises   ShapeError: not 5 axes; a second top (P3D's mask); MAX with pad in C3D; as Pooling. UnsupportedLayer: an
             average of C3D whose last window would start in the padding
    PyTorch  nn.MaxPool3d where it agrees, own module elsewhere. ONNX: MaxPool, AveragePool.
    Source   facebookarchive/C3D, src/caffe/layers/pool3d_layer.cpp; ZhaofanQiu/pseudo-3d-residual-networks,
             caffe_add_layers/src/pooling3d_layer.cpp
    """

    top_count = (1, 1)
    rank = 3

    def __init__(self, spec: Message, key: str, stored: Sequence[StoredBlob] | None = None) -> None:
        super().__init__(spec, key, stored)
        if not is_v1(self):
            self.param = spec.pooling3d_param

    @property
    def is_p3d(self) -> bool:
        p = self.param
        return p.global_pooling or any(p.HasField(name) for name in ("kernel_l", "stride_l", "pad_l"))

    def given(self, rank: int) -> list[tuple[int, ...]]:
        p = self.param
        length = (p.kernel_l, p.stride_l, p.pad_l) if self.is_p3d else (p.kernel_depth, p.temporal_stride, 0)
        return [(along, *plane) for along, plane in zip(length, super().given(rank - 1), strict=True)]

    def tops(self, bottoms: list[Shape]) -> list[Shape]:
        shapes = super().tops(bottoms)
        kernel, stride, pad = self.window(self.rank)
        if self.is_p3d or not any(pad):
            return shapes
        if self.param.pool == MAX:
            raise ShapeError(f"{self}: pad {text(pad)} in MAX pooling, which C3D refuses")
        axes = zip(bottoms[0][2:], kernel, stride, pad, strict=True)
        unclipped = [None if i is None else pooled_size(i, k, s, p, clip=False) for i, k, s, p in axes]
        if shapes[0][2:] != tuple(unclipped):
            raise UnsupportedLayer(f"{self}: a window of C3D's average starts in the padding; use another input size")
        return shapes
