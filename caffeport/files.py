"""Files that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A path to write to, in a folder of its own; when the block ends well, all files there move beside `path`.

    An error, a full disk or an interrupt leaves nothing behind. Raises InputError where nothing can be written.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield folder / path.name
        # The file of that name comes last: whatever it refers to is there before it.
        for made in sorted(folder.iterdir(), key=lambda made: made.name == path.name):
            os.replace(made, path.with_name(made.name))
    except OSError as error:
        raise InputError(f"{path}: writing failed: {error.strerror or error}; nothing was left behind") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
