"""The layer classes' docstrings as data: what `caffeport layers` and the README's support table show."""

import inspect
import re
from dataclasses import dataclass
from functools import cached_property

from .base import TYPES, Layer

_HEADINGS = ("Shapes", "Params", "Blobs", "Raises", "Also", "PyTorch", "Source")
_HEADING = re.compile(rf"^({'|'.join(_HEADINGS)}) +(?=\S)")


@dataclass(frozen=True)
class Documentation:
    """What one class says about a layer type.

    layer_type  Caffe's name of the type
    variant     which fork's layer of that name, "" where there is only one
    cls         the class that describes it
    """

    layer_type: str
    variant: str
    cls: type[Layer]

    @cached_property
    def text(self) -> str:
        return inspect.getdoc(self.cls) or ""

    @property
    def summary(self) -> str:
        """The first line."""
        return self.text.partition("\n")[0]

    @cached_property
    def sections(self) -> dict[str, str]:
        """The text under each heading, unwrapped to one line."""
        sections: dict[str, list[str]] = {}
        current: list[str] = []
        for line in self.text.splitlines():
            if heading := _HEADING.match(line):
                current = sections.setdefault(heading[1], [])
                line = line[heading.end() :]
            current.append(line.strip())
        return {name: " ".join(filter(None, lines)) for name, lines in sections.items()}

    @property
    def difference(self) -> str:
        """How PyTorch's layer differs, or that it does not; without the part on ONNX."""
        return self.sections.get("PyTorch", "").partition(" ONNX:")[0]

    @property
    def onnx(self) -> str:
        """What the layer is in ONNX."""
        return self.sections.get("PyTorch", "").partition(" ONNX: ")[2].removesuffix(".")

    @property
    def family(self) -> str:
        """The file that describes it, such as "pooling"."""
        return self.cls.__module__.rpartition(".")[2]

    def to_dict(self) -> dict[str, object]:
        return {
            "type": self.layer_type,
            "variant": self.variant,
            "family": self.family,
            "summary": self.summary,
            "sections": self.sections,
        }


def documentation() -> list[Documentation]:
    """Every registered type, by name; a type that means several layers comes once for each."""
    return [Documentation(type_, cls.variant, cls) for type_, classes in sorted(TYPES.items()) for _, cls in classes]


def support_table() -> str:
    """All types as a Markdown table: the one in the README."""
    rows = ["| Type | What it does | In PyTorch | In ONNX |", "| --- | --- | --- | --- |"]
    for entry in documentation():
        name = f"`{entry.layer_type}`" + (f" ({entry.variant})" if entry.variant else "")
        cells = (name, entry.summary, entry.difference, entry.onnx)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
