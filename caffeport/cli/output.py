"""What commands print and write: tables, JSON, and files that appear whole or not at all."""

import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import InputError

MAX_CELL = 60
MAX_MEMBER_NAME = 65_535 - len(".npy")  # a zip archive counts the bytes of a name in 16 bits


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def visible(name: str, limit: int | None = MAX_CELL) -> str:
    """A name from a file as a terminal may show it: without control characters, and cut at `limit`."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in (name if limit is None else name[: limit + 1]))
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def print_table(head: Mapping[str, str], rows: list[list[str]]) -> None:
    """A table of `rows`; `head` maps each column's title to its justification. Not cut to a width where nobody looks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in head.items():
        table.add_column(title, justify=justify, no_wrap=not sys.stdout.isatty())  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*[Text(visible(cell)) for cell in row])
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 10_000)
    console.print(table)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays of any name to an .npz file, whole or not at all. Raises InputError for a name that a zip cannot hold."""
    for name in arrays:
        if "\0" in name or len(name.encode()) > MAX_MEMBER_NAME:
            raise InputError(f"blob {visible(name)!r}: a name with NUL or over 65,531 bytes cannot be kept in an .npz file")
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.close()
            os.chmod(file.name, 0o666 & ~_umask())  # a temporary file is its owner's only
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
