import signal
import subprocess
import sys

import pytest

from caffeport import __version__
from caffeport.cli import COMMANDS, import_torch


def test_help_lists_every_command(caffeport):
    result = caffeport("--help")
    assert result.exit_code == 0
    for name, (_, line) in COMMANDS.items():
        assert f"  {name}" in result.stdout
        assert line in " ".join(result.stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_has_help(caffeport, name):
    result = caffeport(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {name}")


def test_version(caffeport):
    assert __version__ in caffeport("--version").stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        pytest.param([], "Usage: main", id="no command"),
        pytest.param(["inspct"], "No such command 'inspct'", id="unknown command"),
        pytest.param(["inspect"], "Missing argument 'NET'", id="no net"),
        pytest.param(["inspect", "x.prototxt", "--input", "data"], "expected a blob's name", id="shape without name"),
        pytest.param(["inspect", "x.prototxt", "--input", "data=1,-3"], "expected a blob's name", id="negative size"),
        pytest.param(["inspect", "x.prototxt", "--input", "data=1,²"], "expected a blob's name", id="no ASCII digit"),
        pytest.param(["inspect", "x.prototxt", "--phase", "SPRING"], "'SPRING' is not one of", id="phase"),
    ],
)
def test_wrong_usage_ends_with_2(caffeport, arguments, message):
    result = caffeport(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_bad_input_ends_with_2_and_its_message(caffeport, tmp_path):
    result = caffeport("inspect", tmp_path / "absent.prototxt")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and "absent.prototxt" in result.stderr


def test_an_interrupted_command_ends_with_130(caffeport, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("caffeport.cli.inspect.looks_like_mean", interrupt)
    result = caffeport("inspect", "net.prototxt")
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_an_interrupt_while_torch_is_imported_ends_the_process(tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from caffeport.cli import import_torch; import_torch()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_interrupts_are_handled_again_after_that_import():
    before = signal.getsignal(signal.SIGINT)
    import_torch()
    assert signal.getsignal(signal.SIGINT) is before


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "caffeport", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"caffeport, version {__version__}\n"
