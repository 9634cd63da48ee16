"""The folder that `caffeport convert` writes: its files, and what it cannot be asked. `store` writes and reads it.

deploy.prototxt      the net that was built, V2 text
model.safetensors    weights, keys as in state_dict
caffeport.json       where it came from, names, inputs, preprocessing, hashes
mean.npy             the mean image, float32 (C, H, W) or (C,), where one was given
model.onnx, model.py, report.json, report.html  where they were asked for
README.md            what it is and how to use it
"""

import os
from pathlib import Path
from typing import Any

from .errors import FormatError, InputError

NET, WEIGHTS, FACTS, MEAN, README = "deploy.prototxt", "model.safetensors", "caffeport.json", "mean.npy", "README.md"
DEFAULTS = {  # of `caffeport.load`: how Caffe's files are read and built, which is over where a folder was written
    "phase": "TEST",
    "level": 0,
    "stages": (),
    "inputs": None,
    "reshape": (),
    "crop": "caffe",
    "strict": True,
    "deploy": False,
    "salvage": False,
    "seed": 0,
}


def converted_folder(net: object) -> Path | None:
    """The path of a converted folder, None for what is no folder. Raises FormatError for any other folder."""
    if not isinstance(net, str | os.PathLike) or not os.path.isdir(net):
        return None
    folder = Path(net)
    if not (folder / FACTS).exists():
        raise FormatError(
            f"{folder}: a folder without {FACTS}; expected a Caffe file, or a folder that `caffeport convert` wrote"
        )
    return folder


def refuse_arguments(folder: Path, given: dict[str, Any]) -> None:
    """Raise InputError for arguments of `caffeport.load` that say another thing than its defaults do."""
    names = [name for name, value in given.items() if (value or None) != (DEFAULTS[name] or None)]
    if names:
        raise InputError(
            f"{folder}: {', '.join(names)} cannot be asked of a converted folder, whose net is built already; "
            "load the original files so, or convert them again so"
        )
