"""`caffeport convert`: from Caffe's files to a folder that PyTorch loads."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import import_torch
from .options import load_options
from .output import print_json

if TYPE_CHECKING:
    from ..store import Converted


@click.command()
@load_options
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--mean", metavar="FILE", help="Mean image to keep beside the weights: .binaryproto, .npy or .mat.")
@click.option(
    "--reference",
    metavar="NPZ|caffe:PYTHON|opencv|onnx:FILE",
    help="Verify first, as `caffeport verify` does, and write only what passes, with the report.",
)
@click.option("--onnx/--no-onnx", default=True, show_default=True, help="Write model.onnx too.")
@click.option("--source", is_flag=True, help="Write model.py too, the net as plain PyTorch.")
@click.option("--force", is_flag=True, help="Replace a folder that caffeport wrote before.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def convert(
    net: str, weights: str | None, folder: Path, mean: str | None, force: bool, as_json: bool, **how: Any
) -> None:
    """Convert NET and WEIGHTS into a folder for `caffeport.load`; NET alone may be a .caffemodel.

    What only training needs is cut. The folder appears whole or not at all.
    """
    if sys.stderr.isatty():
        click.echo(f"converting {click.format_filename(net)} ...", err=True)
    import_torch()
    from ..store import convert as convert_files

    done = convert_files(net, weights, folder, mean=mean, force=force, **how)
    if as_json:
        print_json(done.to_dict())
    else:
        _print_done(done)
    if done.report is not None and not done.report.passed:
        sys.exit(1)


def _print_done(done: "Converted") -> None:
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    for name, size in done.sizes.items():
        click.echo(f"{click.format_filename(done.folder / name)}: {size:,} bytes")
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in done.seconds.items())
    if done.report is not None:
        click.echo(f"verification {done.report.verdict}")
    if not done.sizes:
        click.echo("nothing was written; `caffeport verify` shows the whole report")
        return
    click.echo(f"{sum(done.sizes.values()):,} bytes in {sum(done.seconds.values()):.2f} s ({stages})")
