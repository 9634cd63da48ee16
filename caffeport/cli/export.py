"""`caffeport export`: ONNX, PyTorch source, torch.export."""

import re
import time
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .options import load_options
from .output import print_json

if TYPE_CHECKING:
    from ..network import Network
    from ..preprocess import Preprocessing


@click.command()
@load_options
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="What to write: .onnx, .py or .pt2."
)
@click.option(
    "--opset", type=click.IntRange(19, 23), default=20, show_default=True, help="Version of ONNX's operators."
)
@click.option("--batch", default="N", show_default=True, help="Batch size: a number, or a name for an open one.")
@click.option("--dynamic-spatial", is_flag=True, help="Leave height and width open.")
@click.option(
    "--outputs", metavar="BLOB,...", help="Blobs to give, by name or as layer::top; the net is cut after them."
)
@click.option("--all-blobs", is_flag=True, help="Give every blob.")
@click.option(
    "--fold", is_flag=True, help="Fold BatchNorm and Scale into the layers before them; drop Dropout and Split."
)
@click.option(
    "--with-preprocessing", is_flag=True, help="Take uint8 RGB pictures and prepare them inside of the model."
)
@click.option("--layout", type=click.Choice(["NHWC", "NCHW"]), default="NHWC", help="Of those pictures.")
@click.option(
    "--mean",
    metavar="FILE|B,G,R",
    help="Mean picture, or one value a channel, in the net's channel order; else what a converted folder holds.",
)
@click.option("--scale", type=float, default=1.0, help="Factor after the mean.")
@click.option("--rgb", is_flag=True, help="The net takes red first; else blue, as nets trained by Caffe's tools.")
@click.option("--prove/--no-prove", default=True, help="Whether to run what was written beside the network first.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(
    net: str,
    weights: str | None,
    output: Path,
    opset: int,
    batch: str,
    dynamic_spatial: bool,
    outputs: str | None,
    all_blobs: bool,
    fold: bool,
    with_preprocessing: bool,
    layout: str,
    mean: str | None,
    scale: float,
    rgb: bool,
    prove: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Write NET with WEIGHTS (or a converted folder) as an ONNX model, a Python file or a torch.export program.

    The end of the name says which. Nothing appears under that name before it was checked.
    """
    if output.suffix not in (".onnx", ".py", ".pt2"):
        raise InputError(f"{output}: the name says what to write; it must end in .onnx, .py or .pt2")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder to write {output.name} to")
    if output.suffix != ".onnx" and (with_preprocessing or outputs or all_blobs or dynamic_spatial):
        raise InputError(
            f"{output}: --with-preprocessing, --outputs, --all-blobs and --dynamic-spatial are for .onnx only"
        )
    if not with_preprocessing and (mean is not None or scale != 1.0 or rgb):
        raise InputError("--mean, --scale and --rgb belong to --with-preprocessing, which is not given")
    if not isfinite(scale):
        raise InputError(f"--scale {scale}: expected a finite number")
    if not batch.isidentifier() and not (batch.isascii() and batch.isdigit() and int(batch)):
        raise InputError(f"--batch {batch!r}: expected a number from 1 on, or a name such as N")

    from ..loading import load

    start = time.perf_counter()
    kept_mean = Path(net) / "mean.npy"  # of a converted folder
    if with_preprocessing and mean is None and kept_mean.is_file():
        mean = str(kept_mean)
    network = load(net, weights, **how)
    sizes = int(batch) if batch.isascii() and batch.isdigit() else batch
    facts: dict[str, Any]
    if output.suffix == ".py":
        from ..export.source import export_source

        made = export_source(network.folded() if fold else network, output, prove=prove)
        facts = {"class": made.name, "lines": made.lines, "outputs": network.outputs}
        told = f"class {made.name}, {made.lines} lines"
    elif output.suffix == ".pt2":
        from ..export.pt2 import export_pt2

        export_pt2(network.folded() if fold else network, output, batch=sizes)
        facts = {"outputs": network.outputs}
        told = f"{output.stat().st_size:,} bytes"
    else:
        from ..export.onnx import export_onnx

        wanted = outputs.split(",") if outputs else None
        if all_blobs:
            wanted = [name for name in network.graph.blobs if name not in network.inputs]
        done = export_onnx(
            network,
            output,
            opset=opset,
            batch=sizes,
            spatial="dynamic" if dynamic_spatial else None,
            outputs=wanted,
            preprocess=_preprocessing(network, mean, scale, not rgb) if with_preprocessing else None,
            layout=layout,
            fold=fold,
            prove=prove,
        )
        for note in done.notes:
            click.echo(f"note: {note}", err=True)
        verdict = None if done.report is None else done.report.verdict
        if verdict and not as_json:
            click.echo(f"onnxruntime beside the network: {verdict}")
        facts = {"opset": done.opset, "nodes": done.nodes, "inputs": done.inputs, "outputs": done.outputs}
        facts |= {"notes": done.notes, "verdict": verdict}
        told = f"{done.nodes} nodes, opset {done.opset}, {output.stat().st_size:,} bytes"
    if as_json:
        seconds = round(time.perf_counter() - start, 3)
        print_json({"path": str(output), "bytes": output.stat().st_size, **facts, "seconds": seconds})
    else:
        click.echo(f"{click.format_filename(output)}: {told}")


def _preprocessing(network: "Network", mean: str | None, scale: float, bgr: bool) -> "Preprocessing":
    """From the options; a mean picture larger than the net's input is cropped to it."""
    from ..formats import read_mean
    from ..preprocess import Preprocessing

    if mean is None:
        return Preprocessing(scale=scale, bgr=bgr)
    words = [word.strip() for word in mean.split(",")]
    if all(re.fullmatch(r"-?\d+(\.\d*)?", word) for word in words):
        return Preprocessing(tuple(map(float, words)), scale, bgr=bgr)
    picture = read_mean(mean).array
    own = next((shape[2:] for shape in network.inputs.values() if len(shape) == 4), ())
    crop = (own[0], own[1]) if len(own) == 2 and own[0] and own[1] and picture.shape[1:] not in ((), own) else None
    return Preprocessing(picture, scale, crop, bgr)
