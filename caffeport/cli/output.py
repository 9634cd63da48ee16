"""What commands print and write: tables, JSON, and files that appear whole or not at all."""

import json
import sys
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import InputError
from ..files import appearing

MAX_NAME = 60
MAX_MEMBER_NAME = 65_535 - len(".npy")  # a zip archive counts the bytes of a name in 16 bits


def print_json(value: Any) -> None:
    click.echo(json.dumps(value))


def visible(name: str) -> str:
    """A name from a file as a terminal may show it: no control characters, and not without end."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name[: MAX_NAME + 1])
    return shown if len(shown) <= MAX_NAME else shown[: MAX_NAME - 1] + "…"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = ()) -> None:
    """A table of `rows` under the titles `head`; `numbers` are the titles of columns to set flush right.

    Fits a terminal's width; elsewhere each row is one line of its full length.
    """
    on_terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in head:
        table.add_column(title, justify="right" if title in numbers else "left", no_wrap=not on_terminal)
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])  # Text: a name in brackets is no markup
    Console(highlight=False, width=None if on_terminal else 100_000).print(table)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays to an .npz file, whole or not at all.

    Raises InputError for names that a zip archive cannot hold, and where the file cannot be written.
    """
    for name in arrays:
        if "\0" in name or len(name.encode()) > MAX_MEMBER_NAME:
            raise InputError(
                f"blob {visible(name)!r}: an .npz file holds no name with NUL or over {MAX_MEMBER_NAME:,} bytes"
            )
    with appearing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises InputError where it cannot be written."""
    with appearing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
