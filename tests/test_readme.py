"""The README's support table is that of the layers' docstrings. Run as a program, this renews it (`make readme`)."""

import re
from pathlib import Path

import pytest

from caffeport.layers import Layer
from caffeport.layers.documentation import documentation, support_table
from caffeport.layers.training import TrainingOnly

README = Path(__file__).resolve().parents[1] / "README.md"
TABLE = re.compile(r"(?<=<!-- support table -->\n).*?(?=<!-- end of support table -->)", re.DOTALL)


def with_table(readme: str) -> str:
    renewed, count = TABLE.subn(lambda _: f"\n{support_table()}\n", readme)
    assert count == 1, "the README has no place for the support table"
    return renewed


def test_the_support_table_is_current():
    readme = README.read_text(encoding="utf-8")
    assert readme == with_table(readme), "run `make readme`"


@pytest.mark.parametrize("entry", documentation(), ids=lambda entry: f"{entry.layer_type} {entry.variant}".strip())
def test_every_layer_says_what_it_computes_and_where_that_is_written(entry):
    assert entry.summary.endswith("."), entry.cls
    assert {"Shapes", "PyTorch", "Source"} <= entry.sections.keys(), entry.cls


@pytest.mark.parametrize("entry", documentation(), ids=lambda entry: f"{entry.layer_type} {entry.variant}".strip())
def test_the_onnx_column_is_true(entry):
    writes_onnx = bool(entry.cls.operator) or entry.cls.onnx is not Layer.onnx
    if entry.onnx == "none":
        assert not writes_onnx, entry.cls
    elif not entry.cls.is_input and entry.cls is not TrainingOnly:
        assert writes_onnx, entry.cls


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
