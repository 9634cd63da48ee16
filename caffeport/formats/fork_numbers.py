"""Field numbers that forks of Caffe use for their own parameters, as tables for forks.py.

Numbers are facts of the file format, collected from some twenty published caffe.proto files. Forks are called:
ssd (weiliu89/caffe), segnet (alexgkendall/caffe-segnet), deconvnet (HyeonwooNoh/caffe), deeplab1 (DeepLab v1), pspnet
(hszhao/PSPNet, DeepLab v2), faster-rcnn (rbgirshick/caffe-fast-rcnn, PVANET), r-fcn (daijifeng001/caffe-rfcn),
microsoft (Microsoft/caffe), yjxiong (yjxiong/caffe), nvcaffe (NVIDIA/caffe), intel (intel/caffe), yolo9000
(choasup/caffe-yolo9000), mobilenet-yolo (eric612/MobileNet-YOLO), training-toolbox
(openvinotoolkit/training_toolbox_caffe), kendryte (kendryte/caffe), shufflenet (farmingyard/ShuffleNet), senet
(hujie-frank/SENet), waifu2x (lltcggie/caffe), c3d (facebookarchive/C3D, v1.0), c3d-1.1 (the same, v1.1), p3d
(ZhaofanQiu/pseudo-3d-residual-networks).
"""

from .schema import V1LayerParameter

# Parameters of LayerParameter whose number is not the same, or not free, in all forks: field, types, numbers.
OWNED = [
    ("convolution3d_param", ("Convolution3D", "Deconvolution3D"), (6661,)),
    ("pooling3d_param", ("Pooling3D",), (6662,)),
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
V2_OWNED = {(type_, number): name for name, types, numbers in OWNED for type_ in types for number in numbers}
V2_SHARED = frozenset([*range(1, 12), *range(100, 137), 139, 142])  # these mean the same everywhere

V1_OWNED = {
    (40, 43): "reverse_param",
    (41, 43): "interp_param",
    (42, 44): "unpooling_param",
    (42, 45): "padding_param",
    (43, 45): "bn_param",
    (61, 61): "relu6_param",
}
V1_SHARED = frozenset([*range(1, 43), 1001, 1002])
V1_TYPES = frozenset(V1LayerParameter.DESCRIPTOR.enum_types_by_name["LayerType"].values_by_number)
C3D_TYPES = {
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
Meanings = tuple[tuple[str | None, str | None], ...]
CONTESTED: dict[str, dict[int, Meanings]] = {
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
        4: (
            ("segnet", "class_weighting"),
            ("nvcaffe", "label_smoothing"),
            (None, "pre_fixed_normalizer"),
            (None, None),
        ),
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
BASED_ON_SSD = frozenset(["ssd", "intel", "yolo9000", "mobilenet-yolo"])

# What tells a fork in a binary file: a type with the number that only this fork gives its parameters.
EVIDENCE = {
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
    "c3d-1.1": [("Convolution3D", 6661), ("Deconvolution3D", 6661), ("Pooling3D", 6662)],
    "waifu2x": [("CropCenter", 149)],
}
FORKS_BY_NUMBER = {pair: fork for fork, pairs in EVIDENCE.items() for pair in pairs}

# What tells a fork in a net of any form: types that BVLC Caffe does not have.
FORKS_BY_TYPE = {
    "Unpooling": "deconvnet",
    **dict.fromkeys(("CONVOLUTION3D", "DECONVOLUTION3D", "POOLING3D"), "c3d"),
    **dict.fromkeys(("Convolution3D", "Deconvolution3D"), "c3d-1.1"),
    "Pooling3D": "p3d",
    "ROIPooling": "faster-rcnn",
    "SmoothL1Loss": "faster-rcnn",
    "Proposal": "faster-rcnn",
    "PSROIPooling": "r-fcn",
    "Interp": "pspnet",
    **dict.fromkeys(("PriorBox", "DetectionOutput", "Normalize", "Permute", "MultiBoxLoss", "AnnotatedData"), "ssd"),
    **dict.fromkeys(
        ("Reorg", "YoloDetectionOutput", "Yolov3DetectionOutput", "Yolov3", "RegionLoss"), "mobilenet-yolo"
    ),
    **dict.fromkeys(("GRN", "RegionYolo", "ReorgYolo", "PriorBoxClustered"), "training-toolbox"),
    "ConvolutionDepthwise": "training-toolbox",
    **dict.fromkeys(("Reverse", "ContinuationIndicator", "CtcLoss", "LabelsequenceAccuracy"), "kendryte"),
    "ShuffleChannel": "shufflenet",
    "Axpy": "senet",
    "CropCenter": "waifu2x",
}
