"""`verify`: a net, a reference, a Report."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, ReferenceMismatch, ShapeError
from ..graph import Value
from ..layers import Shape, text
from ..network import Feed, Network
from .arithmetic import Arithmetic, deterministic, under_test
from .compare import Comparison, Walk
from .judge import Growth, Limits, growth, sample
from .picture import Gallery
from .reference import Reference, Stored, match, unknown
from .report import LayerResult, OutputResult, PrecisionResult, Report, agreement
from .weights import check_weights
from .whole import Values, Whole, run_whole


def verify(
    network: Network,
    reference: Reference | str | os.PathLike[str] | Mapping[str, Any],
    *,
    inputs: Mapping[str, Feed] | None = None,
    device: str | torch.device = "cpu",
    precisions: Sequence[str] = ("ieee",),
    fail_fast: bool = False,
    limits: Limits | None = None,
) -> Report:
    """Compare a net with arrays that Caffe, or something else, computed from the same inputs.

    reference   an .npz file or a mapping of arrays by `layer::top` or blob name; "caffe:PYTHON" runs Caffe in that
                Python; "opencv" runs OpenCV; "onnx:FILE" runs onnxruntime on that export of the net
    inputs      arrays by blob name; None: those that the reference holds
    device      where the layers under test run
    precisions  of those layers: "ieee", "tf32", "bf16", "fp16"; the first is judged, each gives a line of the
                precision table
    fail_fast   stop at the first layer that fails; layers are run on the reference's bottoms only, not from the inputs
                on as well, so that memory holds the blobs of two layers (a segment's in three arithmetics at once);
                there is no precision table then
    limits      the largest ratios that pass

    Raises InputError and ReferenceMismatch where the arrays are not this net's. A layer that differs is a result, not
    an error.
    """
    if not precisions or isinstance(precisions, str) or not isinstance(precisions, Sequence):
        raise InputError("precisions: give a list with at least one of ieee, tf32, bf16, fp16")
    if not isinstance(inputs, Mapping | None):
        raise InputError(f"inputs: give a mapping of arrays by blob name; got {type(inputs).__name__}")
    arithmetics = [under_test(device, precision) for precision in precisions]
    limits = limits or Limits()
    if not isinstance(limits, Limits) or not (limits.rms >= 0 and limits.largest >= 0):
        raise InputError(f"limits: give Limits of two numbers that are not negative; got {limits!r}")
    with _opened(network, reference, inputs) as source, deterministic(), torch.inference_mode():
        fed, shapes = _inputs(network, source, inputs)
        stored = match(source, network.graph, shapes)
        notes = _notes(network, source, stored, inputs, fed)
        weights = check_weights(network)
        wrong = {entry.layer for entry in weights if entry.differs}
        rows: list[LayerResult] = []
        excused = False
        gallery = Gallery()
        whole = None if fail_fast else Whole(network, fed, stored, shapes, arithmetics[0])

        def add(comparison: Comparison) -> bool:
            nonlocal excused
            row = _row(comparison, source, shapes)
            excused = excused or (bool(row.fault) and row.agrees(limits) is False)
            rows.append(replace(row, growth=None) if excused else row)  # what follows a fault differs from the input on
            return not fail_fast or (row.agrees(limits) is not False and row.layer not in wrong)

        Walk(network, source, stored, fed, shapes, arithmetics[0], gallery, whole, limits).run(add)
        stopped = len({row.layer for row in rows}) < len(network.graph.steps)
        if whole is not None and whole.failed and not any(row.problem for row in rows):
            notes.append(f"the net cannot be run from its inputs: {whole.failed}")
        report = Report(
            network=network.graph.name or "(unnamed net)",
            reference=source.origin,
            layers=tuple(gallery.hang(rows)),
            weights=tuple(weights),
            wiring=() if stopped else tuple(_wiring(network, source, stored)),
            notes=tuple(notes),
            environment=_environment(arithmetics[0]),
            limits=limits,
            stopped=stopped,
        )
        if not stopped:
            outputs, table = _outputs(network, source, fed, whole, arithmetics)
            report = replace(report, outputs=() if excused else tuple(outputs), precisions=tuple(table))
        if report.first_failure is not None:
            from .diagnose import diagnose

            causes = diagnose(network, source, stored, fed, report, arithmetics[0])
            report = replace(report, causes=tuple(causes))
    return report


def _opened(network: Network, reference: Any, inputs: Mapping[str, Feed] | None) -> Reference:
    from .sources import from_caffe, from_onnx, from_opencv

    if isinstance(reference, str) and reference.startswith("caffe:"):
        return from_caffe(network, reference.removeprefix("caffe:"), inputs)
    if isinstance(reference, str) and reference.startswith("onnx:"):
        return from_onnx(network, reference.removeprefix("onnx:"), inputs)
    if reference == "opencv":
        return from_opencv(network, inputs)
    return Reference.open(reference)


def _inputs(
    network: Network, source: Reference, inputs: Mapping[str, Feed] | None
) -> tuple[Values, dict[Value, Shape]]:
    """What to feed, float32 on the CPU, and the shapes of all values that follow from it."""
    held = source.inputs(network.graph)
    given = {**held, **(inputs or {})}
    missing = [value.blob for value in network.graph.needed if value.blob not in given]
    if missing:
        raise ReferenceMismatch(
            f"{source.origin}: does not hold the net's input {', '.join(map(repr, missing))}; "
            "a reference keeps it as in::BLOB; or give it apart (inputs= or --inputs)"
        )
    try:
        slots = network._feed((given,), {})
    except ShapeError as error:
        shown = ", ".join(f"{name!r} of {text(np.shape(array))}" for name, array in given.items())
        whose = "the given inputs" if inputs else source.origin
        raise ShapeError(f"{whose}: the net cannot run on {shown}: {error}") from error
    fed = {
        value: slots[value.slot].detach().cpu().float()
        for value in network.graph.inputs
        if slots[value.slot] is not None
    }
    empty = [value.blob for value, array in fed.items() if not array.numel()]
    if empty:
        raise ReferenceMismatch(f"{source.origin}: input {', '.join(map(repr, empty))} has no values to compare with")
    return fed, network.graph.shapes({value: tuple(array.shape) for value, array in fed.items()})


def _notes(network: Network, source: Reference, stored: Mapping[Value, Stored], inputs: Any, fed: Values) -> list[str]:
    notes = list(source.notes)
    strangers = unknown(source, network.graph)
    if strangers:
        shown = ", ".join(map(repr, strangers[:6])) + (f" and {len(strangers) - 6} more" if len(strangers) > 6 else "")
        notes.append(f"{len(strangers)} arrays of the reference are no blob of this net: {shown}")
    parts = {at.items for at in stored.values() if at.items is not None}
    if parts:
        some = sum(at.items is not None for at in stored.values())
        notes.append(
            f"{some} arrays of the reference hold only the first {', '.join(map(str, sorted(parts)))} of "
            f"the batch; those items were compared"
        )
    short = {at.key: source.short[at.key] for at in stored.values() if at.key in source.short}
    if short:
        notes.append(
            f"{len(short)} arrays of the reference are of type {', '.join(sorted(set(short.values())))}, such as "
            f"{next(iter(short))!r}: they hold other digits than Caffe's float32, so that right layers may fail"
        )
    if inputs:
        held = source.inputs(network.graph)
        for value in fed:
            if value.blob in inputs and value.blob in held:
                theirs = torch.from_numpy(held[value.blob]).reshape(-1)
                if theirs.shape != fed[value].reshape(-1).shape or not torch.equal(theirs, fed[value].reshape(-1)):
                    notes.append(f"the given input {value.blob!r} is not the one that the reference holds")
    return notes


def _row(comparison: Comparison, source: Reference, shapes: Mapping[Value, Shape]) -> LayerResult:
    step, top = comparison.step, comparison.top
    found = comparison.judgement is not None or comparison.problem
    return LayerResult(
        layer=step.key,
        type=step.layer.spec.type,
        top=top.blob if top else "",
        shape=tuple(n or 0 for n in shapes.get(top, ())) if top else (),
        judged=("alone" if comparison.alone or comparison.problem else "segment") if found else "no",
        segment=comparison.segment if found and not comparison.alone else (),
        reason=comparison.reason,
        problem=comparison.problem,
        fault=source.faults.get(step.key, ""),
        exact=step.layer.exact(),
        floor=step.layer.noise_floor,
        items=comparison.items,
        judgement=comparison.judgement,
        growth=comparison.growth,
        bottoms=tuple(dict.fromkeys(_writer(operand.value) for operand in step.bottoms)),
    )


def _writer(value: Value) -> str:
    """The layer that wrote a value; the blob's own name for an input."""
    return value.key.removesuffix(f"::{value.blob}")


def _wiring(network: Network, source: Reference, stored: Mapping[Value, Stored]) -> list[str]:
    """Blobs that end with other numbers in the reference than those of the layer which, by our wiring, wrote them
    last.
    """
    problems = []
    for blob, operand in network.graph.blobs.items():
        at = stored.get(operand.value)
        if blob not in source.shapes or at is None or at.key == blob:
            continue
        if not source.alike(blob, at.key):
            problems.append(
                f"blob {blob!r} ends with other numbers than {operand.value.key!r}, which should be the "
                f"last to write it"
            )
    return problems


def _outputs(
    network: Network, source: Reference, fed: Values, whole: Whole | None, arithmetics: Sequence[Arithmetic]
) -> tuple[list[OutputResult], list[PrecisionResult]]:
    """The net's outputs in each arithmetic beside float64; in the first beside the reference only, without `whole`."""
    if whole is None:
        ours = _run(network, fed, arithmetics[0])
        return [_output(name, ours[name].float().cpu(), None, source) for name in network.outputs], []
    results: list[OutputResult] = []
    table: list[PrecisionResult] = []
    truth, yard, usual = whole.outputs()
    if not truth:
        return results, table  # a layer cannot run, which is told where it stands
    for arithmetic in arithmetics:
        ours = usual if arithmetic.usual and usual is not None else _run(network, fed, arithmetic)
        for name, y64 in truth.items():
            d32 = ours[name].float().cpu()
            if not d32.shape == y64.shape == yard[name].shape:
                continue
            beside = growth(sample(d32), sample(y64), sample(yard[name]))
            error = d32.double().sub_(y64).abs_()
            classes = _classes(y64)
            top1 = None if classes is None else agreement(_classes(d32) or [], classes, 1)
            largest = float(error.max()) if error.numel() else 0.0
            emulated = arithmetic.tf32 and arithmetic.device.type != "cuda"
            table.append(
                PrecisionResult(
                    arithmetic.name, str(arithmetic.device), name, beside.ratio, beside.error, largest, top1, emulated
                )
            )
            if arithmetic is arithmetics[0]:
                results.append(_output(name, d32, beside, source))
    return results, table


def _output(name: str, d32: Tensor, beside: Growth | None, source: Reference) -> OutputResult:
    if name not in source.shapes or source.shapes[name] != tuple(d32.shape):
        return OutputResult(name, beside)
    ref = torch.from_numpy(source.read(name))
    ours, theirs = _classes(d32), _classes(ref)
    if ours is None or theirs is None:
        score = d32.numel() == d32.shape[0] >= 3 if d32.dim() else False
        return OutputResult(name, beside, rank=_rank_correlation(d32.reshape(-1), ref.reshape(-1)) if score else None)
    return OutputResult(name, beside, agreement(ours, theirs, 1), agreement(ours, theirs, 5))


def _classes(x: Tensor) -> list[list[float]] | None:
    """(N, C) or (N, C, 1, 1) with at least two classes as rows; None for any other shape."""
    if x.dim() < 2 or x.shape[1] < 2 or x.numel() != x.shape[0] * x.shape[1]:
        return None
    rows: list[list[float]] = x.reshape(x.shape[:2]).tolist()
    return rows


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    from scipy.stats import rankdata

    x, y = rankdata(a.numpy()), rankdata(b.numpy())
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float(np.array_equal(x, y))
    return float(np.corrcoef(x, y)[0, 1])


def _run(network: Network, fed: Values, arithmetic: Arithmetic) -> dict[str, Tensor]:
    """The outputs; on a CPU in float32 as the user gets them, else a layer at a time."""
    if not arithmetic.usual:
        return run_whole(network, fed, arithmetic)
    found = network({value.blob: array for value, array in fed.items()})
    return found if isinstance(found, dict) else {network.outputs[0]: found}


def _environment(arithmetic: Arithmetic) -> dict[str, str]:
    from .. import __version__

    place = str(arithmetic.device)
    if arithmetic.device.type == "cuda":
        place += f" ({torch.cuda.get_device_name(arithmetic.device)})"
    return {
        "caffeport": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": place,
        "precision": arithmetic.name,
        "threads": str(torch.get_num_threads()),
    }


__all__ = ["verify"]
