"""Proof that an ONNX file is sound and computes what the network computes, before anybody sees it.

It runs in a child process: what the checker and onnxruntime take in memory, or break, is theirs alone.
"""

import os
import pickle
import signal
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from ..errors import ReferenceMismatch, ShapeError, UnsupportedLayer
from ..network import Network

if TYPE_CHECKING:
    from ..verification import Report
    from .onnx import OnnxModel

Array = np.ndarray[Any, Any]
T = TypeVar("T")
LARGE = 1 << 16  # bytes; larger initializers are of no use to shape inference


def prove(path: Path, model: "OnnxModel", network: Network) -> "Report":
    """Check the file, infer its shapes, run it, and compare its outputs with the network's.

    network  the model's own, or what that was before folding

    Gives the report of the comparison. Raises ShapeError where an inferred shape is not ours, UnsupportedLayer where
    onnxruntime cannot run the model, ReferenceMismatch where numbers differ by more than a reference may.
    """
    return in_child(lambda: _prove(path, model, network), alone=next(network.parameters(), torch.empty(0)).is_cpu)


def _prove(path: Path, model: "OnnxModel", network: Network) -> "Report":
    import onnx

    from ..verification import verify

    torch.set_num_threads(1)
    onnx.checker.check_model(str(path), full_check=True)
    _check_shapes(path, model.named_shapes())
    feeds = random_inputs(_part(model.network, model), shapes=model.sample_shapes())
    given: dict[str, Array] = {model.values[value].name: feeds[value.blob] for value in model.sources}
    if model.preprocess:
        blob = model.picture.blob
        del given[model.values[model.picture].name]
        given[model.image.name] = model.preprocess.random(feeds[blob].shape)
        feeds[blob] = model.preprocess.apply(given[model.image.name])
    try:
        outputs = run(path, given)
    except Exception as error:  # onnxruntime's own kinds
        raise UnsupportedLayer(f"onnxruntime cannot run the model, so no file was written: {error}") from error
    wanted = {asked: outputs[name] for asked, name in zip(model.targets, model.outputs, strict=True)}
    report = verify(_part(network, model), wanted, inputs=feeds)
    if not report.passed:
        raise ReferenceMismatch(
            f"onnxruntime does not give the network's values, so no file was written: {report.verdict}"
        )
    return report


def _part(network: Network, model: "OnnxModel") -> Network:
    """The network up to the model's outputs."""
    from .onnx import part_of

    part = part_of(network.graph, list(model.targets))
    modules = {step.key: network.get_submodule(network.names[step.key]) for step in part.steps}
    return Network(part, modules, {key: views for key, views in network._views.items() if key in modules})


def run(path: Path, feeds: Mapping[str, Array], threads: int = 1) -> dict[str, Array]:
    """The model's outputs in onnxruntime on a CPU, by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _check_shapes(path: Path, expected: Mapping[str, tuple[int | str | None, ...]]) -> None:
    """Strict inference with data propagation, without the shapes that the file states, has to find our shapes."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > LARGE:
            tensor.ClearField("raw_data")
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    for value in [*inferred.graph.value_info, *inferred.graph.output]:
        if value.name not in expected or not value.type.tensor_type.HasField("shape"):
            continue
        found = tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        ours = expected[value.name]
        agree = len(found) == len(ours) and all(
            a is None or not isinstance(b, int) or a == b for a, b in zip(found, ours, strict=True)
        )
        if not agree:
            raise ShapeError(
                f"tensor {value.name!r}: ONNX infers shape {found}, the net has {ours}; no file was written"
            )


def random_inputs(
    network: Network, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Array]:
    """Arrays to feed, by blob name: normal numbers for maps, for all else (labels, regions) numbers from 0 to 1."""
    random = np.random.default_rng(seed)
    feeds = {}
    for value in network.graph.needed:
        declared = tuple(n or (224 if axis > 1 else 1) for axis, n in enumerate(value.shape))
        shape = (shapes or {}).get(value.blob) or declared
        is_map = len(shape) == 4 and max(shape[2:]) > 1
        numbers = random.standard_normal(shape) if is_map else random.random(shape)
        feeds[value.blob] = numbers.astype(np.float32)
    return feeds


def in_child(work: Callable[[], T], alone: bool = True) -> T:
    """Do `work` in a copy of this process, which shares its memory, and give its result or raise its error.

    Where processes cannot be copied, or `alone` is False (the network is on a GPU), it is done here.
    """
    if not hasattr(os, "fork") or not alone:
        return work()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # threads do not survive a fork; the child needs none of ours
        child = os.fork()
    if not child:
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            try:
                result = (True, work())
                pipe.write(pickle.dumps(result))
            except BaseException as error:
                pipe.write(pickle.dumps((False, error)))
            finally:
                pipe.flush()
                os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if not answer:
        raise ReferenceMismatch(f"the process that proved the ONNX file ended early (status {status}): out of memory?")
    done, value = pickle.loads(answer)
    if not done:
        raise value
    return value  # type: ignore[no-any-return]
