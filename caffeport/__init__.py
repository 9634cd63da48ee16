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
    from .loading import load
    from .network import Network

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
    "load",
]

_LAZY = {"load": "loading", "Network": "network"}  # what needs torch is imported on first use


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value
