"""The command line: each command parses, calls the public API and prints. A command's file is imported when it is used.

Exit status: 0, 1 when a verification ran and failed, 2 for bad input or usage, 130 when interrupted (Ctrl-C).
"""

import errno
import io
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from .. import __version__
from ..errors import CaffeportError

COMMANDS = {  # name: (module:function, one line of help), so that --help need not import the commands
    "inspect": ("inspect:inspect", "What a Caffe file holds: layers, shapes, parameters, work."),
    "run": ("run:run", "Run a net on arrays and write all its blobs."),
    "convert": ("convert:convert", "Convert a net into a folder that PyTorch loads."),
    "export": ("export:export", "Write a net as an ONNX model, as PyTorch source or as a torch.export program."),
    "verify": ("verify:verify", "Compare a net with what Caffe computed, layer by layer."),
    "dump-script": ("verify:dump_script", "Print a script that records a reference inside any pycaffe."),
    "layers": ("layers:layers", "All supported layer types, or the documentation of one."),
}

INTERRUPTED = 128 + signal.SIGINT  # as shells count


class Refused(click.ClickException):
    """Bad input: a message on stderr and exit status 2."""

    exit_code = 2


class CommandGroup(click.Group):
    """A group that knows its commands by COMMANDS and imports each on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name that the locale cannot write is written in escapes
                stream.reconfigure(errors="backslashreplace")
        with _warnings_on_stderr():
            try:
                return super().invoke(ctx)
            except CaffeportError as error:
                raise Refused(str(error)) from error
            except KeyboardInterrupt:
                click.echo("interrupted", err=True)
                ctx.exit(INTERRUPTED)
            except OSError as error:
                if error.errno == errno.EPIPE:  # the reader of our output has left, which click ends quietly
                    raise
                raise Refused(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error


def import_torch() -> None:
    """Import torch, in which Ctrl-C ends the process at once: an exception on the way would abort it, core dumped."""
    if threading.current_thread() is not threading.main_thread():  # nobody else gets or handles signals
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        import torch  # noqa: F401
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Print what the package logs as warnings while a command runs."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            click.echo(f"{record.levelname.lower()}: {record.getMessage()}", err=True)

    logger, handler = logging.getLogger("caffeport"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@click.command(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Turn Caffe models into PyTorch modules that compute the same numbers."""
