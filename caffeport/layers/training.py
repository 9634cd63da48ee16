"""Types that only train or evaluate: named, so that the error says what to do."""

from collections.abc import Sequence

from ..errors import UnsupportedLayer
from ..formats.model_file import StoredBlob
from ..formats.schema import Message
from .base import Layer, register, type_name


@register(
    *(
        "MultiBoxLoss",
        "DetectionEvaluate",
        "SmoothL1Loss",
        "SmoothL1LossOHEM",
        "SoftmaxWithLossOHEM",
        "BoxAnnotatorOHEM",
    ),
    *("CtcLoss", "WarpCTCLoss", "LabelsequenceAccuracy", "L1Loss", "LpqLoss"),
    *("RegionLoss", "Yolov3", "EvalDetection", "SegAccuracy", "SegmentationEvaluate"),
    *("rpn.anchor_target_layer.AnchorTargetLayer", "rpn.proposal_target_layer.ProposalTargetLayer"),
)
class TrainingOnly(Layer):
    """Computes a loss, targets or a score for training and evaluation; not built.

    Shapes   any bottoms; not built
    Raises   UnsupportedLayer, always
    PyTorch  nothing. ONNX: nothing.
    Source   the forks' layer lists; caffe.proto of each
    """

    def __init__(self, spec: Message, key: str, stored: Sequence[StoredBlob] | None = None) -> None:
        super().__init__(spec, key, stored)
        raise UnsupportedLayer(
            f"layer {key!r} ({type_name(spec)}) only trains or evaluates (reads {', '.join(spec.bottom) or 'none'}); "
            "use the deploy net, or cut it: deploy=True, --deploy, or `caffeport convert`"
        )
