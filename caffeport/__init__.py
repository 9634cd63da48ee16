"""Old Caffe models as plain PyTorch modules, with Caffe's exact semantics.

import caffeport
network = caffeport.load("deploy.prototxt", "net.caffemodel")
prob = network(x)                            # or network.blobs({"data": x}) for every value on the way
"""

from typing import TYPE_CHECKING, Any

from .errors import (
    CaffeportError,
    CaffeportWarning,
    FormatError,
    InputError,
    ReferenceMismatch,
    ShapeError,
    UnsupportedLayer,
    WeightsError,
)

if TYPE_CHECKING:
    from .export.onnx import export_onnx
    from .export.pt2 import export_pt2
    from .export.source import export_source
    from .loading import load
    from .network import Network
    from .verification import verify

__version__ = "0.1.0"

__all__ = [
    "CaffeportError",
    "CaffeportWarning",
    "FormatError",
    "InputError",
    "Network",
    "ReferenceMismatch",
    "ShapeError",
    "UnsupportedLayer",
    "WeightsError",
    "__version__",
    "export_onnx",
    "export_pt2",
    "export_source",
    "load",
    "verify",
]

_LAZY = {  # what needs torch is imported on first use
    "Network": "network",
    "export_onnx": "export.onnx",
    "export_pt2": "export.pt2",
    "export_source": "export.source",
    "load": "loading",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value
