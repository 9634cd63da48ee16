"""The converted folder (see `folder`): written whole or not at all, and read back."""

import hashlib
import json
import mmap
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from google.protobuf import json_format, text_format
from safetensors import SafetensorError
from safetensors.torch import save_file

from . import __version__
from .description import Description, describe
from .errors import FormatError, InputError, UnsupportedLayer
from .folder import FACTS, MEAN, NET, README, WEIGHTS
from .formats import MeanImage, Readable, StoredBlob, StoredLayer, Weights, read, read_mean
from .formats.schema import Message
from .graph import Graph, Step, build
from .layers import Array
from .loading import Copier, assemble, network_of
from .network import Network, module_names
from .preprocess import Preprocessing
from .surgery import Surgery

if TYPE_CHECKING:
    from .verification import Report

FORMAT = 1
JSON_LIMIT = 64 << 20  # bytes of JSON that a reader takes in


@dataclass(frozen=True)
class Converted:
    """What `convert` did: the folder, its network, seconds by stage, bytes by file, and warnings.

    `report` is of the comparison with a reference; where that failed, nothing was written and there are no sizes.
    """

    folder: Path
    network: Network
    seconds: dict[str, float]
    sizes: dict[str, int]
    warnings: list[str] = field(default_factory=list)
    report: "Report | None" = None

    def to_dict(self) -> dict[str, Any]:
        verdict = {"verdict": self.report.verdict} if self.report else {}
        facts = {"folder": str(self.folder), "seconds": self.seconds, "bytes": self.sizes, "warnings": self.warnings}
        return facts | verdict


def convert(
    net: Readable,
    weights: Readable | None,
    folder: str | os.PathLike[str],
    *,
    mean: Readable | None = None,
    force: bool = False,
    phase: str = "TEST",
    level: int = 0,
    stages: Iterable[str] = (),
    inputs: Mapping[str, Sequence[int | None]] | None = None,
    reshape: Surgery = (),
    crop: str = "caffe",
    strict: bool = True,
    salvage: bool = False,
    allow_nonfinite: bool = False,
    reference: Any = None,
    onnx: bool = False,
    source: bool = False,
) -> Converted:
    """Convert a net and its weights into a folder for `caffeport.load`. What only training needs is cut.

    mean    a mean image (.binaryproto, .npy, .mat), kept for preprocessing; InputError where it has other channels than
            the net's pictures
    force   replace a folder that caffeport wrote before
    reference  what `caffeport.verify` takes: the net is compared first, and written, with the report, only if it passes
    onnx    write model.onnx too, proved by a run in onnxruntime; where ONNX cannot hold the net, that is a warning
    source  write model.py too, the net as plain PyTorch
    Other arguments as `caffeport.load`. The folder appears whole, under its name, or not at all.
    """
    target = Path(folder)
    _check_target(target, force)
    clock = {"start": time.perf_counter()}
    mean_image = read_mean(mean) if mean is not None else None
    description = describe(
        net,
        weights,
        phase=phase,
        level=level,
        stages=stages,
        inputs=inputs,
        reshape=reshape,
        crop=crop,
        salvage=salvage,
        deploy=True,
    )
    clock["read"] = time.perf_counter()
    network = assemble(description, strict=strict, allow_nonfinite=allow_nonfinite)
    if mean_image is not None:
        _check_channels(mean_image, network)
    clock["build"] = time.perf_counter()
    report = None
    if reference is not None:
        from .verification import verify

        report = verify(network, reference)
        clock["verify"] = time.perf_counter()
    sizes: dict[str, int] = {}
    if report is None or report.passed:
        sizes = write_folder(
            target, network, description, mean_image, force=force, report=report, onnx=onnx, source=source
        )
        clock["write"] = time.perf_counter()
    names = list(clock)
    seconds = {b: clock[b] - clock[a] for a, b in pairwise(names)}
    return Converted(target, network, seconds, sizes, description.warnings, report)


def write_folder(
    target: Path,
    network: Network,
    description: Description,
    mean: MeanImage | None,
    *,
    force: bool,
    report: "Report | None" = None,
    onnx: bool = False,
    source: bool = False,
) -> dict[str, int]:
    """Write the folder beside its place and rename it. Returns the size of each file in bytes."""
    _check_target(target, force)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        net = deploy_net(description)
        (partial / NET).write_text(text_format.MessageToString(net, as_utf8=True), encoding="utf-8")
        save_file(_owned_state(network), partial / WEIGHTS)
        (partial / WEIGHTS).chmod((partial / NET).stat().st_mode)  # the library makes it private
        if mean is not None:
            np.save(partial / MEAN, mean.array, allow_pickle=False)
        facts = _facts(network, description, mean)
        (partial / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if report is not None:
            (partial / "report.json").write_text(report.to_json() + "\n", encoding="utf-8")
            (partial / "report.html").write_text(report.to_html(), encoding="utf-8")
        if onnx or source:
            description.warnings += _export(network, partial, onnx, source)
        readme = _readme(target.name, network, facts, description.warnings)
        (partial / README).write_text(readme, encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        _flush(partial)
        if target.exists():
            old = target.parent / f".{target.name}.replaced-{os.getpid()}"
            target.rename(old)
            try:
                partial.rename(target)
            except OSError:
                old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(target)
    except (OSError, SafetensorError) as error:  # the latter where safetensors could not write
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{target}: cannot be written: {reason}; nothing was left behind") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sizes


def _export(network: Network, folder: Path, onnx: bool, source: bool) -> list[str]:
    """Write model.onnx and model.py where the net has such a form; what it lacks is a warning."""
    from .export.onnx import export_onnx
    from .export.source import export_source

    warnings = []
    for wanted, export, name in ((onnx, export_onnx, "model.onnx"), (source, export_source, "model.py")):
        try:
            if wanted:
                export(network, folder / name)
        except UnsupportedLayer as error:
            warnings.append(f"{name} was not written: {error}")
    return warnings


def _check_channels(mean: MeanImage, network: Network) -> None:
    """Raise InputError where no picture that the net takes can have this mean."""
    channels = {value.shape[1] for value in network.graph.needed if len(value.shape) >= 4}  # 5: clips
    if len(channels) == 1 and None not in channels:
        Preprocessing(mean.array).mean_of((*channels, *mean.shape[1:]))


def _check_target(target: Path, force: bool) -> None:
    _sweep(target)
    if not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and not (target / FACTS).exists()):
        raise InputError(f"{target}: exists and is not a folder that caffeport wrote; choose another name")
    if not force:
        raise InputError(f"{target}: exists already; --force (force=True) replaces it")


def _sweep(target: Path) -> None:
    """Remove what runs that were killed have left beside the target, and put back what they were about to replace."""
    for left in target.parent.glob(f".{glob_escape(target.name)}.*-*"):
        what, _, pid = left.name.removeprefix(f".{target.name}.").partition("-")
        if what not in ("partial", "replaced") or not pid.isdigit() or _alive(int(pid)):
            continue
        if what == "replaced" and not target.exists():
            with suppress(OSError):
                left.rename(target)
        else:
            shutil.rmtree(left, ignore_errors=True)


def glob_escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _flush(folder: Path) -> None:
    """To the disk, so that the rename never shows files that are not there yet."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _owned_state(network: Network) -> dict[str, torch.Tensor]:
    """The state_dict with each shared tensor once, under its owner's key."""
    seen: dict[int, str] = {}
    state = {}
    for key, tensor in network.state_dict(keep_vars=True).items():
        if seen.setdefault(id(tensor), key) == key:
            state[key] = tensor.detach()
    return state


def deploy_net(description: Description) -> Message:
    """The net that was built, as V2 text shows it: data layers are Input layers, rules and phases are gone."""
    net = type(description.net)()
    net.CopyFrom(description.net)
    net.ClearField("state")
    inputs = {value.blob: value.shape for value in description.graph.inputs}
    sources = {layer.key for layer in description.graph.data_layers}
    for spec in net.layer:
        for name in ("include", "exclude", "phase", "blobs"):
            spec.ClearField(name)
        if spec.name in sources and not spec.bottom:
            kept = (spec.name, list(spec.top))
            spec.Clear()
            spec.name, spec.type = kept[0], "Input"
            spec.top[:] = kept[1]
            for top in spec.top:
                spec.input_param.shape.add().dim[:] = [-1 if n is None else n for n in inputs[top]]
    written = {name for spec in net.layer for name in spec.top}
    undeclared = [name for name in inputs if name not in written]
    if undeclared:
        layers = list(net.layer)
        del net.layer[:]
        first = net.layer.add(name="input", type="Input")
        first.top[:] = undeclared
        for name in undeclared:
            first.input_param.shape.add().dim[:] = [-1 if n is None else n for n in inputs[name]]
        net.layer.extend(layers)
    return net


def _facts(network: Network, description: Description, mean: MeanImage | None) -> dict[str, Any]:
    graph = network.graph
    transforms = {
        layer.key: json_format.MessageToDict(layer.spec.transform_param, preserving_proto_field_name=True)
        for layer in graph.data_layers
        if layer.spec.HasField("transform_param")
    }
    stored = description.weights.by_name() if description.weights else {}
    return {
        "format": FORMAT,
        "name": graph.name,
        "sources": [
            {"file": _file_name(file.path), "form": file.form, "sha256": _file_sha256(file.path)}
            for file in description.files
        ],
        "inputs": {name: list(shape) for name, shape in network.inputs.items()},
        "outputs": network.outputs,
        "names": {key: name for key, name in network.names.items() if key != name},
        "preprocessing": {"transform_param": transforms, "mean": {"file": MEAN, "form": mean.form} if mean else None},
        "blobs": {
            step.key: [
                {"shape": list(blob.shape), "sha256": sha256(blob.array)}
                for blob in (stored[step.layer.spec.name].blobs if step.layer.spec.name in stored else ())
            ]
            for step in graph.steps
            if step.blobs
        },
        "tensors": {key: sha256(tensor.numpy()) for key, tensor in _owned_state(network).items()},
        "sums": _sums(network),
        "versions": {"caffeport": __version__, "torch": torch.__version__},
    }


def sha256(array: Array) -> str:
    """Hash of an array as little-endian float32 (whole numbers as they are), row-major."""
    values = array if array.dtype.kind in "iub" else array.astype("<f4", copy=False)
    return (
        hashlib.sha256(np.ascontiguousarray(values).data).hexdigest() if values.size else hashlib.sha256().hexdigest()
    )


def _sums(network: Network) -> dict[str, int]:
    """Sum of each tensor's 32-bit words, modulo 2**32, by key in state_dict.

    Any flipped bit changes it, and so does nearly all other damage. A tenth of the time of `load`'s floor, where sha256
    takes more than the whole.
    """
    words = {key: tensor.numpy().reshape(-1).view(np.uint32) for key, tensor in _owned_state(network).items()}
    return {key: int(np.add.reduce(array, dtype=np.uint32)) for key, array in words.items()}


def _file_name(path: str) -> str:
    """The last part of a path, as UTF-8 can hold it."""
    return os.fsencode(Path(path).name).decode("utf-8", "replace")


def _file_sha256(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None  # given as bytes or as an open file


def _readme(name: str, network: Network, facts: dict[str, Any], warnings: Iterable[str]) -> str:
    inputs = ", ".join(
        f"`{blob!r}` {' x '.join('any' if n is None else str(n) for n in shape)}"
        for blob, shape in network.inputs.items()
    )
    sources = ", ".join(f"{source['file']!r} ({source['form']})" for source in facts["sources"])
    return (
        f"# {name}\n\nConverted by caffeport {__version__} from {_inline(sources)}.\n\n"
        f"Inputs: {_inline(inputs)}. Outputs: {_inline(', '.join(map(repr, network.outputs)))}.\n\n"
        "```python\nimport caffeport, torch\n\n"
        f"network = caffeport.load({name!r})\n"
        "with torch.no_grad():\n"
        "    output = network(x)          # x: float32, as Caffe's input blob (often BGR, mean subtracted)\n"
        '    every = network.blobs(x)     # every blob, as "layer::top" and by blob name\n```\n\n'
        "`deploy.prototxt` is the net that was built, `model.safetensors` its weights, "
        "`caffeport.json` where it came from.\n\n"
        "Loading compares a sum of each array's bits with `caffeport.json`, and `caffeport verify` its SHA-256.\n"
        + "".join(f"\nWarning: {_inline(warning)}.\n" for warning in warnings)
    )


def _inline(text: str) -> str:
    """File and blob names are foreign text: one line, no markup."""
    return re.sub(r"[^\w .,:;/()'`?=+%#\"{}-]", "?", text)[:2000]


# ---- reading


def load_folder(folder: Path, *, allow_nonfinite: bool = False) -> Network:
    """The Network of a converted folder. Raises FormatError where the folder is not whole.

    The weights are compared with the sums in caffeport.json. Its SHA-256 take longer than all else, and `verify`
    compares them.
    """
    facts = _read_facts(folder / FACTS)
    file = read(folder / NET)
    if file.net is None:
        raise FormatError(f"{file.path}: {file.form} hold no net; expected the prototxt that caffeport wrote")
    tensors, weights = _tensors(folder / WEIGHTS)
    graph = build(file.net, _stored_shapes(facts, folder / FACTS))
    names = module_names(step.key for step in graph.steps)

    by_module: dict[str, dict[str, Array]] = {}
    for key, array in tensors.items():
        module, _, name = key.partition(".")
        by_module.setdefault(module, {})[name] = array

    def state(step: Step) -> dict[str, Array]:
        return by_module.get(names[step.key], {})

    copier = Copier(weights.release)
    network = network_of(graph, state, copier)
    hashes = facts.get("tensors")
    network.hashes = hashes if isinstance(hashes, dict) else {}
    network.mean_file = folder / MEAN if (folder / MEAN).is_file() else None
    _check_sums(network, tensors, facts, folder)
    _restore_transforms(graph, facts, folder / FACTS)
    if not allow_nonfinite:
        copier.refuse_nonfinite()
    return network


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > JSON_LIMIT or not path.is_file():
            raise FormatError(f"{path}: no file, or larger than {JSON_LIMIT} bytes; not what caffeport wrote")
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise FormatError(f"{path}: expected format {FORMAT} of a folder that caffeport wrote; convert the model again")
    return facts


def _stored_shapes(facts: dict[str, Any], path: Path) -> dict[str, StoredLayer]:
    """The shapes of Caffe's arrays, which tell forks' layers apart; without their numbers."""
    layers = {}
    try:
        for name, blobs in facts.get("blobs", {}).items():
            shapes = [tuple(int(n) for n in blob["shape"]) for blob in blobs]
            if any(n < 0 for shape in shapes for n in shape):
                raise ValueError("a dimension below 0")
            if shapes:
                empty = (StoredBlob(np.broadcast_to(np.float32(1), shape), legacy=False) for shape in shapes)
                layers[name] = StoredLayer(name, "", tuple(empty))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: 'blobs' is not as caffeport writes it ({error}); convert the model again"
        ) from error
    return layers


def _check_sums(network: Network, tensors: Iterable[str], facts: dict[str, Any], folder: Path) -> None:
    """Raise FormatError where the weights are not those that were written. `tensors`: keys that the file has."""
    wanted, found = facts.get("sums"), _sums(network)
    if not isinstance(wanted, dict):
        raise FormatError(f"{folder / FACTS}: 'sums' is not as caffeport writes it; convert the model again")
    wrong = [key for key in {**wanted, **dict.fromkeys(tensors), **found} if found.get(key) != wanted.get(key, -1)]
    if wrong:
        shown = ", ".join(map(repr, wrong[:8])) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise FormatError(
            f"{folder / WEIGHTS}: {shown}: not the numbers that {FACTS} was written for; the file was damaged or "
            "changed since; convert the model again"
        )


def _restore_transforms(graph: Graph, facts: dict[str, Any], path: Path) -> None:
    """What the data layers did to pictures, which the Input layers in their place do not say."""
    try:
        transforms = facts.get("preprocessing", {}).get("transform_param", {})
        for layer in graph.data_layers:
            if layer.key in transforms:
                json_format.ParseDict(transforms[layer.key], layer.spec.transform_param)
                layer.spec.transform_param.SetInParent()  # an empty one says: pictures as they are
    except (AttributeError, TypeError, json_format.ParseError) as error:
        raise FormatError(
            f"{path}: 'preprocessing' is not as caffeport writes it ({error}); convert the model again"
        ) from error


def _tensors(path: Path) -> tuple[dict[str, Array], Weights]:
    """Views of a safetensors file's arrays, and the map behind them. (The library itself only gives copies.)

    The format: 8 bytes with the header's length, the header as JSON, then the numbers.
    """
    if not path.is_file():
        raise FormatError(f"{path}: there is no such file; convert the model again")
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read: {error}") from error
    length = int.from_bytes(mapped[:8], "little")
    if length > min(JSON_LIMIT, len(mapped) - 8):
        raise FormatError(f"{path}: its header of {length} bytes ends beyond the file; the file is damaged")
    body = memoryview(mapped)[8 + length :]
    tensors = {}
    spans = [(0, 0)]
    try:
        header = json.loads(mapped[8 : 8 + length])
        header.pop("__metadata__", None)
        for key, entry in header.items():
            shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
            if entry["dtype"] not in ("F32", "I64") or any(n < 0 for n in shape):
                raise ValueError(f"{key!r} is {entry['dtype']} of shape {shape}")
            dtype = np.dtype("<f4" if entry["dtype"] == "F32" else "<i8")
            if not 0 <= start <= end <= len(body) or end - start != prod(shape) * dtype.itemsize:
                raise ValueError(f"{key!r} of shape {shape} lies at {start} to {end} of {len(body)} bytes")
            tensors[key] = np.frombuffer(body[start:end], dtype).reshape(shape)
            spans.append((start, end))
        spans.sort()
        if any(before[1] > after[0] for before, after in pairwise(spans)):  # a small file could fill any memory
            raise ValueError("arrays overlap")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the header is not that of a safetensors file of float32 arrays: {error}") from error
    return tensors, Weights([], mapped)
