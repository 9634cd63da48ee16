"""Which fork of Caffe a binary layer is from, and its fields in our numbering.

Forks gave the same field numbers to different parameters, so a number means something only together with
the layer's type, and inside some messages only together with the fork. Here each field of a layer goes
to its number in proto/caffe.proto, before protobuf parses it; what does not belong to the type is left out.
Source: field numbers of some twenty published caffe.proto files. Text files go by names and need none of this.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from caffeport.errors import FormatError

from .model_file import StoredBlob
from .schema import LayerParameter, Message, V1LayerParameter
from .wire import FIXED32, FIXED64, LENGTH, VARINT, Field, encode_field, encode_varint
from .wire import fields as walk

FIRST_PRIVATE = 20001


@dataclass
class RawLayer:
    """A layer as it stands in a binary file.

    type       V2's string, or V1's number
    fields     all but the blobs
    blob_fork  the fork whose form its blobs have, None for BVLC's
    """

    name: str
    type: str | int
    span: tuple[int, int]
    fields: list[Field] = field(default_factory=list)
    blobs: list[StoredBlob] = field(default_factory=list)
    blob_fork: str | None = None

    def __str__(self) -> str:
        type_ = V1LayerParameter.LayerType.Name(self.type) if self.type in _V1_TYPES else self.type
        return f"layer {self.name!r} ({type_})"


# Parameters of LayerParameter whose number is not the same, or not free, in all forks: field, types, numbers.
_OWNED = [
    ("embed_param", ("Embed",), (137,)),
    ("tile_param", ("Tile",), (138,)),
    ("elu_param", ("ELU",), (140,)),
    ("bias_param", ("Bias",), (141, 161)),
    ("scale_param", ("Scale",), (142, 160)),
    ("input_param", ("Input",), (143,)),
    ("crop_param", ("Crop",), (144,)),
    ("parameter_param", ("Parameter",), (145,)),
    ("recurrent_param", ("LSTM", "RNN"), (146, 151)),
    ("swish_param", ("Swish",), (147,)),
    ("clip_param", ("Clip",), (148,)),
    ("bn_param", ("BN",), (45, 137, 152)),
    ("upsample_param", ("Upsample",), (137, 150)),
    ("unpooling_param", ("Unpooling",), (44,)),
    ("interp_param", ("Interp",), (143, 217)),
    ("norm_param", ("Normalize",), (204, 206)),
    ("permute_param", ("Permute",), (154, 202)),
    ("prior_box_param", ("PriorBox", "PriorBoxClustered"), (203, 212)),
    ("detection_output_param", ("DetectionOutput",), (204, 211)),
    ("multibox_loss_param", ("MultiBoxLoss",), (201,)),
    ("roi_pooling_param", ("ROIPooling",), (147, 150, 154, 208, 8266711)),
    ("psroi_pooling_param", ("PSROIPooling",), (149, 153, 207, 10001)),
    ("proposal_param", ("Proposal",), (201, 202, 8266713)),
    ("smooth_l1_loss_param", ("SmoothL1Loss", "SmoothL1LossOHEM"), (148, 8266712)),
    ("relu6_param", ("ReLU6",), (208, 211, 216, 2060, 100000)),
    ("shuffle_channel_param", ("ShuffleChannel",), (159, 164)),
    ("reorg_param", ("Reorg",), (149, 159, 303)),
    ("reorg_yolo_param", ("ReorgYolo",), (215,)),
    ("region_yolo_param", ("RegionYolo",), (214,)),
    ("yolo_detection_output_param", ("YoloDetectionOutput",), (601,)),
    ("yolov3_detection_output_param", ("Yolov3DetectionOutput",), (602,)),
    ("grn_param", ("GRN",), (213,)),
    ("crop_center_param", ("CropCenter",), (149,)),
    ("reverse_param", ("Reverse",), (204,)),
    ("continuation_indicator_param", ("ContinuationIndicator",), (201,)),
    ("ctc_loss_param", ("CtcLoss",), (200,)),
    ("labelsequence_accuracy_param", ("LabelsequenceAccuracy",), (203,)),
]
_V2_OWNED = {(type_, number): name for name, types, numbers in _OWNED for type_ in types for number in numbers}
_V2_SHARED = frozenset([*range(1, 12), *range(100, 137), 139, 142])  # these mean the same everywhere

_V1_OWNED = {
    (40, 43): "reverse_param",
    (41, 43): "interp_param",
    (42, 44): "unpooling_param",
    (42, 45): "padding_param",
    (43, 45): "bn_param",
    (61, 61): "relu6_param",
}
_V1_SHARED = frozenset([*range(1, 43), 1001, 1002])
_V1_TYPES = frozenset(V1LayerParameter.DESCRIPTOR.enum_types_by_name["LayerType"].values_by_number)
_C3D_TYPES = {
    25: "ELTWISE_PRODUCT",
    30: "CONVOLUTION3D",
    31: "POOLING3D",
    32: "VOLUME_DATA",
    33: "VIDEO_DATA",
    34: "DECONVOLUTION3D",
    35: "VIDEO_SEGMENTATION_DATA",
    36: "VOXEL_SOFTMAX",
    37: "VOXEL_SOFTMAX_LOSS",
    38: "VIDEO_WITH_VOXEL_TRUTH_DATA",
    39: "VOXEL_CUSTOM_LOSS",
    40: "DOWN_SAMPLING",
}

# Fields that forks number alike but mean otherwise: (fork, or None for any; our field, or None to leave it out).
# The first entry whose fork and wire type fit is taken; where none fits, the field is left out with a warning.
_Meanings = tuple[tuple[str | None, str | None], ...]
_CONTESTED: dict[str, dict[int, _Meanings]] = {
    "ConvolutionParameter": {
        6: (("c3d", "kernel_depth"), (None, "stride")),
        7: (("c3d", "stride"), (None, "weight_filler")),
        8: (("c3d", "temporal_stride"), (None, "bias_filler")),
        9: (("c3d", "weight_filler"), (None, "pad_h")),
        10: (("c3d", "bias_filler"), (None, "pad_w")),
        11: (("c3d", None), (None, "kernel_h")),  # filter_group: how C3D saved memory
        12: (("c3d", "temporal_pad"), (None, "kernel_w")),
        16: (("yjxiong", "dilation"), (None, "axis")),
        17: (("deeplab1", "hole"), ("yjxiong", "dilation_h"), (None, "force_nd_im2col")),
        18: (("deeplab1", "hole_h"), ("yjxiong", "dilation_w"), (None, "dilation")),
        19: (("deeplab1", "hole_w"), ("intel", "relu"), ("nvcaffe", None)),
        20: ((None, "negative_slope"), (None, "conv_algos_override")),
        21: ((None, "conv_algorithm"),),
        23: ((None, "coeff"),),
    },
    "PoolingParameter": {
        5: (("c3d", "kernel_depth"), (None, "kernel_h")),
        6: (("c3d", "temporal_stride"), (None, "kernel_w")),
        13: (("yolo9000", "ceil_mode"), ("intel", "avg_include_pad"), (None, "round_mode")),
        14: ((None, "axis"),),
        15: ((None, "pad_3d"),),
        16: ((None, "kernel_size_3d"),),
        17: ((None, "stride_3d"),),
        40: ((None, "torch_pooling"),),
    },
    "BatchNormParameter": {
        4: (("intel", None), (None, "update_global_stats")),
        5: ((None, "scale_filler"), (None, "use_weight_bias")),
        6: ((None, "bias_filler"), (None, "bias_term")),
        7: ((None, "filler"), (None, "scale_bias")),
        8: ((None, "bias_filler"),),
        9: ((None, "stats_batch_size"),),
        10: ((None, "relu"),),
        15: ((None, None),),  # NVIDIA's engine
    },
    "BNParameter": {
        1: (("pspnet", "slope_filler"), ("yjxiong", "slope_filler"), (None, "scale_filler")),
        2: (("pspnet", "bias_filler"), ("yjxiong", "bias_filler"), (None, "shift_filler")),
        3: ((None, "momentum"), (None, "bn_mode")),
    },
    "DropoutParameter": {
        2: (
            *((fork, "scale_train") for fork in ("faster-rcnn", "r-fcn", "microsoft")),
            ("segnet", "sample_weights_test"),
            ("nvcaffe", None),
        ),
        3: ((None, "random_seed"),),
    },
    "InnerProductParameter": {7: ((None, None),), 8: ((None, "relu"),), 9: ((None, "negative_slope"),)},
    "ELUParameter": {2: ((None, "lambda"),)},
    "ReductionParameter": {4: ((None, "k"),)},
    "ReLUParameter": {3: ((None, "fuse"),)},
    "ReshapeParameter": {4: ((None, "pixelshuffler"),)},
    "LossParameter": {
        3: (("segnet", "weight_by_label_freqs"), (None, "normalization")),
        4: (("segnet", "class_weighting"), ("nvcaffe", "label_smoothing"), (None, "pre_fixed_normalizer"), (None, None)),
        5: ((None, "label_smoothing"), (None, None)),
    },
    "ProposalParameter": {
        2: (("proposal-cpp", "anchor_base_size"), (None, "base_size")),
        3: (("proposal-cpp", "anchor_scale"), (None, "min_size")),
        4: (("proposal-cpp", "anchor_ratio"), (None, "ratio")),
        5: (("proposal-cpp", "max_rois"), (None, "scale")),
        9: ((None, "output_actual_rois_num"),),
    },
    # From 8 on these are for training, but for the sizes.
    "TransformationParameter": {
        8: ((None, "resize_param"), (None, None)),
        9: (("pspnet", "crop_width"), (None, None)),
        10: (("pspnet", "crop_height"), (None, None)),
        11: (("ssd", "crop_h"), (None, None)),
        12: (("ssd", "crop_w"), (None, None)),
        208: ((None, "resize_param"),),
        211: ((None, "crop_h"),),
        212: ((None, "crop_w"),),
    },
}
_BASED_ON_SSD = frozenset(["ssd", "intel", "yolo9000", "mobilenet-yolo"])

# What tells a fork in a binary file: a type with the number that only this fork gives its parameters.
_EVIDENCE = {
    "segnet": [("BN", 45), ("Upsample", 137)],
    "pspnet": [("BN", 152), ("Interp", 143)],
    "yjxiong": [("BN", 137), ("ROIPooling", 150), ("Scale", 160), ("Bias", 161)],
    "r-fcn": [("PSROIPooling", 10001)],
    "faster-rcnn": [("ROIPooling", 8266711), ("SmoothL1Loss", 8266712), ("Proposal", 8266713)],
    "microsoft": [("ROIPooling", 147), ("PSROIPooling", 149)],
    "intel": [("ROIPooling", 154), ("PSROIPooling", 153), ("Reorg", 159)],
    "yolo9000": [("Reorg", 303), ("RegionLoss", 302)],
    "mobilenet-yolo": [
        *(("Reorg", 149), ("Upsample", 150), ("YoloDetectionOutput", 601), ("Yolov3DetectionOutput", 602)),
        *(("RegionLoss", 600), ("Yolov3", 603), ("YoloSeg", 604), ("ReLU6", 211)),
    ],
    "training-toolbox": [
        *(("Permute", 154), ("PriorBox", 212), ("PriorBoxClustered", 212), ("DetectionOutput", 211)),
        *(("Normalize", 204), ("PSROIPooling", 207), ("ROIPooling", 208), ("Interp", 217), ("ReLU6", 216)),
        *(("GRN", 213), ("RegionYolo", 214), ("ReorgYolo", 215)),
    ],
    "ssd": [("Permute", 202), ("PriorBox", 203), ("DetectionOutput", 204), ("Normalize", 206), ("MultiBoxLoss", 201)],
    "kendryte": [("Reverse", 204), ("ContinuationIndicator", 201), ("CtcLoss", 200), ("LabelsequenceAccuracy", 203)],
    "shufflenet": [("ShuffleChannel", 164)],
    "waifu2x": [("CropCenter", 149)],
}
_FORKS_BY_NUMBER = {pair: fork for fork, pairs in _EVIDENCE.items() for pair in pairs}

# What tells a fork in a net of any form: types that BVLC Caffe does not have.
_FORKS_BY_TYPE = {
    "Unpooling": "deconvnet",
    "CONVOLUTION3D": "c3d",
    "POOLING3D": "c3d",
    "ROIPooling": "faster-rcnn",
    "SmoothL1Loss": "faster-rcnn",
    "Proposal": "faster-rcnn",
    "PSROIPooling": "r-fcn",
    "Interp": "pspnet",
    **dict.fromkeys(("PriorBox", "DetectionOutput", "Normalize", "Permute", "MultiBoxLoss", "AnnotatedData"), "ssd"),
    **dict.fromkeys(("Reorg", "YoloDetectionOutput", "Yolov3DetectionOutput", "Yolov3", "RegionLoss"), "mobilenet-yolo"),
    **dict.fromkeys(("GRN", "RegionYolo", "ReorgYolo", "PriorBoxClustered"), "training-toolbox"),
    "ConvolutionDepthwise": "training-toolbox",
    **dict.fromkeys(("Reverse", "ContinuationIndicator", "CtcLoss", "LabelsequenceAccuracy"), "kendryte"),
    "ShuffleChannel": "shufflenet",
    "Axpy": "senet",
    "CropCenter": "waifu2x",
}


def fork_of(net: Message) -> str | None:
    """The fork whose layer types or parameters a net in V2 form has; None for plain BVLC Caffe.

    A guess for people: many forks took over layers of others. The rarest sign wins, SSD's comes last.
    """
    votes: Counter[str] = Counter()
    for layer in net.layer:
        if layer.type == "BN":
            named = {field_.name for field_, _ in layer.bn_param.ListFields()}
            if named & {"slope_filler", "bias_filler", "momentum", "eps", "frozen"}:
                votes["pspnet"] += 1
            elif named & {"scale_filler", "shift_filler", "bn_mode"}:
                votes["segnet"] += 1
        elif layer.type == "Upsample":
            votes["segnet" if len(layer.bottom) == 2 else "mobilenet-yolo"] += 1
        elif layer.type in _FORKS_BY_TYPE:
            votes[_FORKS_BY_TYPE[layer.type]] += 1
        elif layer.convolution_param.HasField("hole"):
            votes["deeplab1"] += 1
    if "deconvnet" in votes:  # its BN is SegNet's
        return "deconvnet"
    return _winner(votes)


def fork_of_layers(buffer: memoryview, layers: Iterable[RawLayer]) -> str | None:
    """The fork that wrote these layers, by field numbers; None where nothing but BVLC Caffe's is seen."""
    layers = list(layers)
    for layer in layers:
        if layer.blob_fork is not None:
            return layer.blob_fork
    votes: Counter[str] = Counter()
    for layer in layers:
        if isinstance(layer.type, int):
            continue
        for field_ in layer.fields:
            if 145 <= field_.number <= 150 and field_.wire == VARINT:
                votes["nvcaffe"] += 1  # forward_type to cudnn_math_override: numbers, where others have messages
            elif field_.number == 149 and layer.type not in ("Reorg", "PSROIPooling", "CropCenter"):
                votes["intel"] += _is_text(buffer, field_)
            elif (layer.type, field_.number) in _FORKS_BY_NUMBER:
                votes[_FORKS_BY_NUMBER[layer.type, field_.number]] += 1
            elif field_.number == 106 and _dilates_by_16(buffer, field_, layer):
                votes["yjxiong"] += 1
    return _winner(votes) or _v1_fork(buffer, [layer for layer in layers if isinstance(layer.type, int)])


def our_fields(buffer: memoryview, layer: RawLayer, fork: str | None) -> Iterator[tuple[Field, bytes, list[str]]]:
    """The fields of `layer` as ours: the field in the file, its bytes in our numbering, and what was left out, in words.

    A field that this type does not own gives no bytes.
    """
    v1 = isinstance(layer.type, int)
    descriptor = (V1LayerParameter if v1 else LayerParameter).DESCRIPTOR
    owned: dict[tuple[Any, int], str] = _V1_OWNED if v1 else _V2_OWNED
    shared = _V1_SHARED if v1 else _V2_SHARED
    for field_ in layer.fields:
        name = owned.get((layer.type, field_.number))
        target = descriptor.fields_by_name[name] if name else descriptor.fields_by_number.get(field_.number)
        if v1 and field_.number == 5 and field_.wire == VARINT:
            yield field_, _v1_type(field_, fork), []
        elif target is None or not (name or field_.number in shared):
            matters = _matters(buffer, layer, field_)
            yield field_, b"", [f"field {field_.number} is not one of this type's"] if matters else []
        elif target.message_type is None or field_.wire != LENGTH:
            yield field_, bytes(buffer[field_.tag : field_.end]), []
        else:
            try:
                content, left_out = _rewrite(buffer, field_, target.message_type, fork)
            except FormatError as error:
                yield field_, b"", [f"{target.name} is damaged ({error})"]
            else:
                yield field_, encode_field(target.number, LENGTH, content), left_out


def _rewrite(buffer: memoryview, outer: Field, message: Any, fork: str | None) -> tuple[bytes, list[str]]:
    """The sub-message in field `outer`, of our type `message`, with its contested fields in our numbering."""
    contested = _CONTESTED.get(message.name)
    if contested is None:
        return bytes(buffer[outer.start : outer.end]), []
    inner = list(walk(buffer, outer.start, outer.end))
    proposal = message.name == "ProposalParameter"
    if proposal and any(f.number in (4, 5) and f.wire == VARINT for f in inner):
        fork = "proposal-cpp"
    parts: list[bytes] = []
    left_out: list[str] = []
    for field_ in inner:
        meanings = contested.get(field_.number)
        if meanings is None:
            if field_.number < FIRST_PRIVATE and field_.number in message.fields_by_number:
                meanings = ((None, message.fields_by_number[field_.number].name),)
            else:
                continue
        for owner, name in meanings:
            if owner not in (None, fork) and not (owner == "ssd" and fork in _BASED_ON_SSD):
                continue
            if name is None:
                break
            target = message.fields_by_name[name]
            if field_.wire in _wires(target):
                parts.append(encode_field(target.number, field_.wire, buffer[field_.start : field_.end]))
                break
            if proposal and field_.wire == FIXED32 and VARINT in _wires(target):
                parts.append(encode_field(target.number, VARINT, _whole(buffer, field_)))
                break
        else:
            left_out.append(f"field {field_.number} of {message.name} means different things in different forks")
    return b"".join(parts), left_out


def _whole(buffer: memoryview, float_field: Field) -> bytes:
    """The varint of a whole number that some forks store as a float."""
    (value,) = struct.unpack("<f", buffer[float_field.start : float_field.end])
    return encode_varint(int(value) if 0 <= value < 2**31 else 0)


def _wires(target: Any) -> tuple[int, ...]:
    """The wire types in which a field of our schema may come."""
    if target.cpp_type in (target.CPPTYPE_STRING, target.CPPTYPE_MESSAGE):
        return (LENGTH,)
    wire = {target.CPPTYPE_FLOAT: FIXED32, target.CPPTYPE_DOUBLE: FIXED64}.get(target.cpp_type, VARINT)
    return (wire, LENGTH) if target.is_repeated else (wire,)


def _v1_fork(buffer: memoryview, layers: list[RawLayer]) -> str | None:
    """The fork whose V1 types these are."""
    for layer in layers:
        numbers = {field_.number for field_ in layer.fields}
        if layer.type in (30, 31) and numbers & {10, 19}:  # BVLC's ARGMAX and THRESHOLD do not convolve or pool
            return "c3d"
        if (layer.type == 41 and 43 in numbers) or (layer.type == 39 and 10 not in numbers and not layer.blobs):
            return "deeplab1"
        if any(_has_holes(buffer, field_) for field_ in layer.fields if field_.number == 10):
            return "deeplab1"
        if (layer.type == 42 and 44 in numbers) or (layer.type == 43 and 45 in numbers and len(layer.blobs) == 2):
            return "deconvnet"
        if layer.type == 40 and 43 in numbers:
            return "kendryte"
    return None


def _v1_type(field_: Field, fork: str | None) -> bytes:
    """V1's type; by name, or else in digits, where BVLC's enum lacks it (upgrade.py finds out what it means)."""
    name = _C3D_TYPES.get(field_.value) if fork == "c3d" else None
    if name is None and field_.value in _V1_TYPES:
        return encode_field(5, VARINT, encode_varint(field_.value))
    number = V1LayerParameter.DESCRIPTOR.fields_by_name["type_name"].number
    return encode_field(number, LENGTH, (name or str(field_.value)).encode())


def _has_holes(buffer: memoryview, convolution: Field) -> bool:
    """Whether a V1 convolution has DeepLab's `hole`: BVLC has a bool in field 17 and nothing in 19."""
    numbers = _integers(buffer, convolution)
    return 19 in numbers or numbers.get(17, 0) > 1


def _dilates_by_16(buffer: memoryview, convolution: Field, layer: RawLayer) -> bool:
    """Whether field 16 is yjxiong's dilation: as BVLC's axis, above 1, it would contradict a filter of four axes."""
    has_four_axes = bool(layer.blobs) and len(layer.blobs[0].shape) == 4
    return has_four_axes and 1 < _integers(buffer, convolution).get(16, 0) < 2**31


def _integers(buffer: memoryview, outer: Field) -> dict[int, int]:
    """The varints in a sub-message, by field number; none of a damaged one."""
    if outer.wire != LENGTH:
        return {}
    try:
        return {f.number: f.value for f in walk(buffer, outer.start, outer.end) if f.wire == VARINT}
    except FormatError:
        return {}


def _matters(buffer: memoryview, layer: RawLayer, field_: Field) -> bool:
    """Whether a field that we do not know may change what the layer computes.

    A number or a string is a setting of NVIDIA's or Intel's (fp16, engine); parameters are a message.
    """
    is_message = field_.wire == LENGTH and field_.end > field_.start and not _is_text(buffer, field_)
    return is_message and not str(layer.type).endswith(("Data", "Loss"))


def _is_text(buffer: memoryview, field_: Field) -> bool:
    payload = bytes(buffer[field_.start : min(field_.end, field_.start + 64)])
    return field_.wire == LENGTH and bool(payload) and payload.isascii() and payload.decode().isprintable()


def _winner(votes: Counter[str]) -> str | None:
    ssd = votes.pop("ssd", 0)
    if votes:
        return votes.most_common(1)[0][0]
    return "ssd" if ssd else None
