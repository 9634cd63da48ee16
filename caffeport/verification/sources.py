"""References that are made on the spot: by Caffe in another Python, by OpenCV, and by onnxruntime."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format

from ..errors import InputError, ReferenceMismatch
from ..formats.rules import filter_net
from ..graph import Step
from ..layers import text
from ..network import Feed, Network
from .reference import Reference

Array = np.ndarray[Any, Any]
TIME_LIMIT = 3600.0  # seconds that Caffe may take


def dump_script() -> str:
    """The script that records a reference inside any pycaffe; it needs no caffeport."""
    return files(__package__).joinpath("templates/record_caffe.py.txt").read_text(encoding="utf-8")


def drawn_inputs(network: Network, inputs: Mapping[str, Feed] | None, seed: int = 0) -> dict[str, Array]:
    """The given inputs, and the others drawn evenly from -1 to 1 at their declared shapes."""
    given = {name: np.asarray(array, np.float32) for name, array in (inputs or {}).items()}
    random = np.random.default_rng(seed)
    for value in network.graph.needed:
        if value.blob in given:
            continue
        if None in value.shape:
            raise InputError(
                f"input {value.blob!r}: its shape {text(value.shape)} is open, so give an array for it "
                f"(inputs= or --inputs)"
            )
        given[value.blob] = random.uniform(-1, 1, value.shape).astype(np.float32)  # type: ignore[arg-type]
    return given


# ---- Caffe


def from_caffe(
    network: Network, python: str, inputs: Mapping[str, Feed] | None = None, time_limit: float = TIME_LIMIT
) -> Reference:
    """Run the net's own files in the Caffe of another Python, as a process of its own: Caffe aborts on a bad net.

    Raises InputError if that Python or its Caffe cannot be started, ReferenceMismatch, with Caffe's words, if it fails.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="caffeport-"))
        place = Path(folder)
        script, fed, output = place / "record_caffe.py", place / "inputs.npz", place / "reference.npz"
        script.write_text(dump_script(), encoding="utf-8")
        arrays: dict[str, Any] = {f"in::{name}": array for name, array in drawn_inputs(network, inputs).items()}
        np.savez(fed, **arrays)
        net, weights = _caffe_files(network, place)
        command = [python, str(script), str(net), str(weights or "-"), str(output), "--inputs", str(fed)]
        quiet = {**os.environ, "GLOG_minloglevel": "1"}
        try:
            done = subprocess.run(command, capture_output=True, timeout=time_limit, check=False, env=quiet, cwd=place)
        except OSError as error:
            raise InputError(f"caffe:{python}: cannot be started: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise ReferenceMismatch(f"caffe:{python}: did not finish in {time_limit:.0f} s") from error
        if done.returncode or not output.exists():
            words = _last_words(done.stderr.decode("utf-8", "replace"))
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise ReferenceMismatch(f"caffe:{python}: ended with {how} on this net: {words}")
        reference = Reference.open(str(output))
        reference.origin = f"Caffe in {python}"
        reference.close_too = stack.pop_all()
    return reference


def _caffe_files(network: Network, place: Path) -> tuple[Path, Path | None]:
    """The user's own files where Caffe reads the same net from them; else the net that was built, in V2 text."""
    description = network.description
    if description is None:
        raise InputError(
            "Caffe and OpenCV run Caffe's own files, which a converted folder (and a net that was cut or folded) does "
            "not have: give the prototxt and the .caffemodel instead"
        )
    first, last = description.files[0], description.files[-1]
    net = place / "net.prototxt"
    own = Path(first.path)
    if (
        "text" in first.form
        and own.is_file()
        and first.net is not None
        and filter_net(first.net, phase="TEST") == description.net
    ):
        net = own.resolve()
    else:
        net.write_text(text_format.MessageToString(description.net), encoding="utf-8")
    if description.weights is None or (len(description.files) == 1 and "text" in first.form):
        return net, None
    weights = Path(last.path)
    if not weights.is_file():
        raise InputError(
            f"{last.path}: the weights were not read from a file, so Caffe cannot read them; save them first"
        )
    return net, weights.resolve()


def _last_words(stderr: str) -> str:
    """Caffe's fatal message, or else the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    fatal = [line.partition("] ")[2] or line for line in lines if line.startswith("F") and "]" in line]
    return (fatal or [line for line in lines if not line.startswith(("***", "@"))] or ["no message"])[-1]


# ---- OpenCV

_FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {  # layer type: (when, by its parameters; what OpenCV 4 does)
    "LRN": (lambda p: p.norm_region == 0 and p.k != 1, "ignores k"),
    "InnerProduct": (lambda p: p.transpose, "uses transposed weights as if they were not"),
    "Swish": (lambda p: p.beta != 1, "ignores beta"),
    "MVN": (lambda p: p.normalize_variance, "puts eps inside the root"),
    "Log": (lambda p: p.base != -1 or p.scale != 1 or p.shift != 0, "ignores base, scale and shift"),
    "Deconvolution": (lambda p: any(d != 1 for d in p.dilation), "ignores dilation"),
    "DetectionOutput": (lambda p: True, "sorts rows by score over all classes and pads them with zeros"),
    "Proposal": (lambda p: True, "pads rows with zeros and ignores min_size"),
    "PriorBox": (lambda p: True, "clips where clip is absent and keeps fractions of sizes"),
    "PriorBoxClustered": (lambda p: True, "derives the step from other sizes"),
    "Pooling": (lambda p: not (p.pad or p.pad_h or p.pad_w), "gives other values in windows that hang over the edge"),
    "Interp": (
        lambda p: p.pad_beg or p.pad_end or p.height or p.zoom_factor != 1,
        "ignores pads and takes height and width first",
    ),
    "ReLU6": (lambda p: p.negative_slope, "ignores negative_slope"),
    "Reorg": (lambda p: p.reverse, "ignores reverse"),
    "Axpy": (lambda p: True, "broadcasts in another way"),
}


def opencv_fault(step: Step) -> str:
    """What OpenCV is known to do wrong with this layer, or ""."""
    known = _FAULTS.get(step.layer.spec.type)
    if known is None or (step.layer.param is not None and not known[0](step.layer.param)):
        return ""
    return f"OpenCV {known[1]}"


def from_opencv(network: Network, inputs: Mapping[str, Feed] | None = None) -> Reference:
    """Run the net in OpenCV's dnn module, below version 5.

    Raises InputError without OpenCV, ReferenceMismatch, with OpenCV's words, where it refuses the net.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError("--reference opencv needs OpenCV below 5: pip install caffeport[opencv]") from error
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise InputError(f"OpenCV {cv2.__version__} reads no Caffe nets any more; install one below 5")
    fed = drawn_inputs(network, inputs)
    with tempfile.TemporaryDirectory(prefix="caffeport-") as folder:
        net, weights = _caffe_files(network, Path(folder))
        try:
            reader = cv2.dnn.readNetFromCaffe(str(net), *([str(weights)] if weights else []))
            reader.enableFusion(False)
            reader.enableWinograd(False)
            for name, array in fed.items():
                reader.setInput(array, name)
            steps = _asked(network, reader.getLayerNames())
            arrays = reader.forward([step.key for step in steps]) if steps else []
        except cv2.error as error:
            raise ReferenceMismatch(
                f"OpenCV {cv2.__version__} does not run this net: {str(error).strip().splitlines()[-1]}"
            ) from error
    found: dict[str, Any] = {f"in::{name}": array for name, array in fed.items()}
    found |= {step.tops[0].key: np.array(array) for step, array in zip(steps, arrays, strict=True)}
    faults = {step.key: fault for step in network.graph.steps if (fault := opencv_fault(step))}
    reference = Reference.open(found)
    reference.origin, reference.faults = f"OpenCV {cv2.__version__}", faults
    return reference


def _asked(network: Network, names: Sequence[str]) -> list[Step]:
    """The layers whose first top OpenCV can give: it addresses values by layer."""
    return [step for step in network.graph.steps if step.key in names and len(step.tops) == 1]


# ---- onnxruntime


def from_onnx(network: Network, path: str, inputs: Mapping[str, Feed] | None = None) -> Reference:
    """Run an ONNX model of this net in onnxruntime, on a CPU. Its outputs are compared: all tops, if it was exported
    with them.

    Raises InputError if there is no such file, ReferenceMismatch, with onnxruntime's words, where it does not run.
    """
    import onnxruntime

    from ..export.proof import run

    if not Path(path).is_file():
        raise InputError(f"onnx:{path}: no such file; `caffeport export` writes one")
    drawn = drawn_inputs(network, inputs)
    fed = {value.blob: drawn[value.blob] for value in network.graph.needed}
    try:
        outputs = run(Path(path), fed)
    except Exception as error:  # onnxruntime's errors have no class in common
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ReferenceMismatch(
            f"onnx:{path}: onnxruntime does not run it on this net's inputs, {', '.join(map(repr, fed))}: {words[0]}"
        ) from error
    reference = Reference.open({**{f"in::{name}": array for name, array in fed.items()}, **outputs})
    reference.origin = f"onnxruntime {onnxruntime.__version__} on {Path(path).name}"
    return reference
