"""`caffeport run`: a net's blobs for given arrays."""

import zipfile
from pathlib import Path
from typing import Any

import click
import numpy as np

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
    feeds = _read_npz(arrays)
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder to write {output.name} to")
    if output.is_dir():
        raise InputError(f"{output}: is a folder; expected the name of an .npz file")

    import_torch()
    import torch

    from ..loading import load

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


def _read_npz(path: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz file by blob name; of a reference (see `verify`), what was fed: `in::BLOB`.

    Raises InputError for anything else, and for arrays that are not of numbers.
    """
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise InputError(f"{path}: a single array (.npy); expected an .npz file with one array for each input")
            arrays = {name: loaded[name] for name in loaded.files}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, EOFError, OSError, KeyError, NotImplementedError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as an .npz file: {error}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise InputError(f"{path}: array {name!r} does not hold numbers")
    return {name.removeprefix("in::"): array for name, array in arrays.items() if name.startswith("in::")} or arrays


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} is not to be had here: {str(error).partition(chr(10))[0]}") from error
    return device
