"""Who may import whom (CONTRIBUTING.md, "The road"), read from the source; and what importing the package loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "caffeport"
FILES = sorted(PACKAGE.rglob("*.py"))
MAY_IMPORT = {  # part of the package -> parts that it may import, beside itself
    "errors": set(),
    "files": {"errors"},
    "folder": {"errors"},
    "formats": {"errors"},
    "modules": set(),
    "layers": {"errors", "formats", "modules"},
    "graph": {"errors", "formats", "layers"},
    "alignment": {"errors", "layers", "graph"},
    "surgery": {"errors", "formats", "layers", "graph"},
    "description": {"errors", "folder", "formats", "layers", "graph", "alignment", "surgery"},
    "preprocess": {"errors", "formats"},
    "matching": {"errors", "formats", "layers", "graph", "surgery", "description"},
    "fillers": {"errors", "formats", "layers"},
    "plan": {"errors", "graph"},
    "network": {"errors", "formats", "layers", "graph", "plan", "description", "folding"},
    "folding": {"layers", "modules", "graph", "plan", "network"},
}
WITHOUT_TORCH = (
    *("__init__", "__main__", "alignment", "cli", "description", "errors", "files", "fillers", "folder", "formats"),
    *("graph", "layers", "matching", "preprocess", "surgery"),
)


def part(path: Path) -> str:
    """The file's part of the package: the name of its top folder or file."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, at_import: bool = False) -> Iterator[str]:
    """Dotted names of all modules that a file imports, but for those that only type checkers read.

    at_import  only those that are loaded when the file itself is imported, so none inside of functions
    """
    package = path.relative_to(ROOT).parent.parts
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), at_import):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` imports modules, if x is one; `from .x import y` imports x.
            yield from ([name] if node.module else [f"{name}.{alias.name}" for alias in node.names])


def _nodes(tree: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if at_import and isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        yield node
        yield from _nodes(node, at_import)


def parts_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("caffeport.")} - {part(path)}


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_part_imports_only_what_lies_before_it(name):
    files = [path for path in FILES if part(path) == name]
    assert files, f"the package has no part {name!r}: mend MAY_IMPORT"
    wrong = {str(path.relative_to(ROOT)): extra for path in files if (extra := parts_imported(path) - MAY_IMPORT[name])}
    assert not wrong


def test_nobody_imports_the_command_line():
    users = {part(path) for path in FILES if "cli" in parts_imported(path)}
    assert users <= {"__main__"}


def test_describing_needs_no_torch():
    users = {
        str(path.relative_to(ROOT))
        for path in FILES
        if part(path) in WITHOUT_TORCH and any(name.split(".")[0] == "torch" for name in imports(path, at_import=True))
    }
    assert not users


@pytest.mark.parametrize(
    "modules", ["caffeport", "caffeport.cli", "caffeport.formats, caffeport.layers, caffeport.graph"]
)
def test_importing_loads_nothing_heavy(modules):
    code = f"import sys, {modules}; print({{'torch', 'onnx', 'scipy', 'h5py'}} & sys.modules.keys() or 'nothing')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "nothing"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["inspect", "--help"], ["layers"]])
def test_help_and_lists_load_no_torch(arguments):
    code = f"""
import sys
from caffeport.cli import main
main({arguments!r}, standalone_mode=False)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
