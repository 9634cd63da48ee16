"""`caffeport export`: ONNX, PyTorch source, torch.export."""

import re
import time
import warnings
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from . import import_torch
from .options import deploy_option, load_options
from .output import print_json

if TYPE_CHECKING:
    from ..network import Network
    from ..preprocess import Preprocessing


@click.command()
@load_options
@deploy_option
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
@click.option(
    "--layout",
    type=click.Choice(["NHWC", "NCHW"]),
    default="NHWC",
    show_default=True,
    help="Order of those pictures' axes.",
)
@click.option(
    "--mean",
    metavar="FILE|B,G,R",
    help="What to subtract: a mean picture (.binaryproto, .npy, .mat), or one value a channel, 0 to 255, in the net's "
    "channel order; 0 for nothing.  [default: as the data layer's transform_param or the converted folder says]",
)
@click.option("--scale", type=float, help="Factor after that.  [default: as transform_param says, or 1]")
@click.option(
    "--centre-crop/--no-centre-crop",
    default=None,
    help="Take larger pictures, and of each the middle that has the net's size.  [default: as transform_param says, "
    "or where the mean picture is larger]",
)
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
    scale: float | None,
    centre_crop: bool | None,
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
    if not with_preprocessing and (rgb or any(how is not None for how in (mean, scale, centre_crop))):
        raise InputError("--mean, --scale, --centre-crop and --rgb belong to --with-preprocessing, which is not given")
    if scale is not None and not isfinite(scale):
        raise InputError(f"--scale {scale}: expected a finite number")
    if not batch.isidentifier() and not (batch.isascii() and batch.isdigit() and int(batch)):
        raise InputError(f"--batch {batch!r}: expected a number from 1 on, or a name such as N")

    import_torch()
    from ..loading import load

    start = time.perf_counter()
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

        with warnings.catch_warnings():
            # Of weights that lie channels last, as folded ones do; they are written and read rightly.
            warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
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
            preprocess=_preprocessing(network, mean, scale, centre_crop, rgb) if with_preprocessing else None,
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
        facts |= {"notes": done.notes, "preprocessing": done.preprocessing, "verdict": verdict}
        if done.preprocessing and not as_json:
            click.echo("preprocessing: " + ", ".join(f"{name} {value}" for name, value in done.preprocessing.items()))
        told = f"{done.nodes} nodes, opset {done.opset}, {output.stat().st_size:,} bytes"
    if as_json:
        seconds = round(time.perf_counter() - start, 3)
        print_json({"path": str(output), "bytes": output.stat().st_size, **facts, "seconds": seconds})
    else:
        click.echo(f"{click.format_filename(output)}: {told}")


def _preprocessing(
    network: "Network", mean: str | None, scale: float | None, centre_crop: bool | None, rgb: bool
) -> "Preprocessing":
    """As the net's files say, but for what the options do."""
    from ..formats import read_mean
    from ..preprocess import Preprocessing, input_size

    given: dict[str, Any] = {}
    if mean is not None:
        words = [word.strip() for word in mean.split(",")]
        values = all(re.fullmatch(r"-?\d+(\.\d*)?", word) for word in words)
        given["mean"] = tuple(map(float, words)) if values else read_mean(mean).array
    if scale is not None:
        given["scale"] = scale
    if centre_crop is not None:
        given["crop"] = input_size(network) if centre_crop else None
        if centre_crop and given["crop"] is None:
            raise InputError("--centre-crop: the net does not say its input's size; give it: --input data=N,C,H,W")
    if rgb:
        given["bgr"] = False
    return Preprocessing.of_net(network, **given)
