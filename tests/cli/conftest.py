"""Runs the command line in the test's own process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from caffeport.cli import main
from tests.agreement import arrays
from tests.conftest import DIGITS

NET = str(DIGITS / "deploy.prototxt")
WEIGHTS = str(DIGITS / "digits.caffemodel")


@pytest.fixture
def caffeport() -> Callable[..., Result]:
    """`caffeport("inspect", path)` gives exit_code, stdout and stderr; an exception that escapes fails the test."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)

    return run


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """An .npz file with the eight pictures of reference.npz."""
    path = tmp_path / "in.npz"
    np.savez(path, data=arrays(DIGITS / "reference.npz")["in::data"])
    return path
