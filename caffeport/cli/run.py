"""`caffeport run`: a net's blobs for given arrays."""

from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from . import import_torch
from .options import deploy_option, load_options
from .output import print_json, write_npz


@click.command()
@load_options
@deploy_option
@click.option("--inputs", "arrays", required=True, metavar="NPZ", help="An .npz file with one array for each input.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .npz file to write.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1, ...")
@click.option("--until", metavar="BLOB", help="Run only what this blob needs.")
@click.option("--json", "as_json", is_flag=True, help="Print the blobs' shapes as JSON.")
def run(
    net: str,
    weights: str | None,
    arrays: str,
    output: Path,
    device: str,
    until: str | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Run NET on the arrays of an .npz file and write every blob to another.

    The file written holds `layer::top`, what each layer wrote right after it ran, and each blob by its name as it is at
    the end; float32. It appears whole or not at all.
    """
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder to write {output.name} to")
    if output.is_dir():
        raise InputError(f"{output}: is a folder; expected the name of an .npz file")

    import_torch()
    import torch

    from ..loading import load
    from ..verification import Reference

    with Reference.open(arrays) as held:  # of a whole reference, only what was fed
        fed = [key for key in held.shapes if key.startswith("in::")] or held.shapes
        feeds = {key.removeprefix("in::"): held.read(key) for key in fed}
    target = _device(device)
    network = load(net, weights, **how).to(target)
    if until is not None:
        network = network.truncate(until)
    with torch.inference_mode():
        blobs = {name: tensor.cpu().numpy() for name, tensor in network.blobs(feeds).items()}
    write_npz(output, blobs)
    shapes = {name: list(blob.shape) for name, blob in blobs.items()}
    if as_json:
        print_json(shapes)
    else:
        click.echo(f"{click.format_filename(output)}: {len(shapes)} blobs, {output.stat().st_size:,} bytes")


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} is not to be had here: {str(error).partition(chr(10))[0]}") from error
    return device
