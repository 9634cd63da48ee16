"""`caffeport inspect`: what a Caffe file holds. Imports no torch."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import click

from ..description import Description, describe
from ..errors import ShapeError, UnsupportedLayer
from ..folder import NET, converted_folder, refuse_arguments
from ..formats import ModelFile, read, read_mean
from ..formats.mean import looks_like_mean
from ..formats.schema import Message
from ..graph import Step
from ..layers import Shape, text
from ..matching import stored_arrays
from .options import deploy_option, net_options
from .output import print_json, print_table, visible


@dataclass(frozen=True)
class Row:
    """One layer as the table shows it; None where it is not known.

    parameters     learned values that are the layer's own, so that shared ones count once
    multiply_adds  of one forward pass at the declared sizes
    """

    name: str
    type: str
    bottoms: dict[str, Shape | None]
    tops: dict[str, Shape | None]
    parameters: int | None
    multiply_adds: int | None


@click.command()
@net_options
@deploy_option
@click.option(
    "--quirks", is_flag=True, help="Only where Caffe differs from the obvious PyTorch or ONNX layer, for this net."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def inspect(net: str, weights: str | None, quirks: bool, as_json: bool, **how: Any) -> None:
    """What NET holds, a prototxt, .caffemodel, .caffemodel.h5, mean file or converted folder; with WEIGHTS: of both."""
    folder = converted_folder(net) if weights is None else None
    if folder is not None:
        refuse_arguments(folder, {**how, "inputs": None})
        net = str(folder / NET)
    if weights is None and looks_like_mean(net):
        mean = read_mean(net)
        facts = {"file": net, "form": mean.form, "shape": list(mean.shape)}
        print_json(facts) if as_json else click.echo(f"{click.format_filename(net)}: {mean}")
        return
    file = read(net, salvage=how["salvage"])
    if file.net is None and weights is None:
        _show_arrays(file, as_json)
        return
    try:
        description = describe(net, weights, **how)
    except (ShapeError, UnsupportedLayer):
        # The file is sound. Show what it says; the error follows, and says what is in the way of building it.
        if file.net is not None and not as_json:
            click.echo(_file_line(file))
            _print_layers([_unbuilt_row(spec) for spec in file.net.layer])
        raise
    if as_json:
        print_json(_facts(description))
    elif quirks:
        _show_quirks(description)
    else:
        _show(description)
    stored_arrays(description, strict=True)  # after the table: an error that says what of the weights does not fit


def _row(step: Step) -> Row:
    layer = step.layer
    bottoms, tops = [operand.shape for operand in step.bottoms], [top.shape for top in step.tops]
    own = [prod(blob.shape) for i, blob in enumerate(step.blobs) if step.owners[i] == (step.key, i)]
    return Row(
        name=step.key,
        type=f"{layer.spec.type} ({layer.variant})" if layer.variant else layer.spec.type,
        bottoms=dict(zip(layer.spec.bottom, bottoms, strict=True)),
        tops={top.blob: top.shape for top in step.tops},
        parameters=sum(own),
        multiply_adds=layer.multiply_adds(bottoms, tops),
    )


def _unbuilt_row(spec: Message) -> Row:
    return Row(spec.name, spec.type, dict.fromkeys(spec.bottom), dict.fromkeys(spec.top), None, None)


def _facts(description: Description) -> dict[str, Any]:
    graph = description.graph
    rows = [_row(step) for step in graph.steps]
    return {
        "name": graph.name,
        "files": [_file_facts(file) for file in description.files],
        "inputs": {value.blob: value.shape for value in graph.inputs},
        "outputs": {name: graph.blobs[name].shape for name in graph.outputs},
        "layers": [asdict(row) for row in rows],
        "parameters": sum(row.parameters or 0 for row in rows),
        "multiply_adds": _total(rows),
        "quirks": [asdict(quirk) for quirk in graph.quirks()],
        "warnings": [*description.warnings, *graph.warnings],
    }


def _file_facts(file: ModelFile) -> dict[str, Any]:
    stored = file.weights
    return {
        "path": file.path,
        "form": file.form,
        "fork": file.fork,
        "stored_values": stored.count if stored else 0,
        "stored_types": dict(Counter(str(blob.array.dtype) for layer in stored or () for blob in layer.blobs)),
    }


def _total(rows: Iterable[Row]) -> int | None:
    """Multiply-adds of all layers, None if one is open."""
    counts = [row.multiply_adds for row in rows]
    return None if None in counts else sum(count for count in counts if count is not None)


def _show(description: Description) -> None:
    graph, rows = description.graph, [_row(step) for step in description.graph.steps]
    for file in description.files:
        click.echo(_file_line(file))
    for kind, blobs in (
        ("input", {value.blob: value.shape for value in graph.inputs}),
        ("output", {name: graph.blobs[name].shape for name in graph.outputs}),
    ):
        for name, shape in blobs.items():
            click.echo(f"{kind} {visible(name)}: {text(shape)}")
    _print_layers(rows)
    total = _total(rows)
    work = f"{total:,} multiply-adds" if total is not None else "multiply-adds unknown: shapes are open"
    click.echo(f"{len(rows)} layers, {sum(row.parameters or 0 for row in rows):,} parameters, {work}")
    for warning in (*description.warnings, *graph.warnings):
        click.echo(f"warning: {warning}", err=True)


def _show_quirks(description: Description) -> None:
    found = description.graph.quirks()
    for quirk in found:
        click.echo(f"{visible(quirk.layer)}: {quirk.what}\n    caffeport: {quirk.handled}")
    if not found:
        click.echo("none applies: no layer of this net differs")
        return
    places = "1 place" if len(found) == 1 else f"{len(found)} places"
    click.echo(f"{places} where Caffe's semantics differ")


def _file_line(file: ModelFile) -> str:
    facts = _file_facts(file)
    words = [file.form, *([f"of the {file.fork} fork"] if file.fork else [])]
    if facts["stored_values"]:
        types = ", ".join(f"{count} {type_}" for type_, count in facts["stored_types"].items())
        words.append(f"with {facts['stored_values']:,} stored values in {types} arrays")
    return f"{click.format_filename(file.path)}: {' '.join(words)}"


def _print_layers(rows: Iterable[Row]) -> None:
    print_table(
        ["layer", "type", "bottoms", "tops", "parameters", "multiply-adds"],
        [
            [
                visible(row.name),
                visible(row.type),
                ", ".join(map(visible, row.bottoms)),
                ", ".join(_shaped(name, shape) for name, shape in row.tops.items()),
                _number(row.parameters),
                _number(row.multiply_adds),
            ]
            for row in rows
        ],
        numbers={"parameters", "multiply-adds"},
    )


def _shaped(name: str, shape: Shape | None) -> str:
    return visible(name) if shape is None else f"{visible(name)} ({text(shape)})"


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}" if value else ""


def _show_arrays(file: ModelFile, as_json: bool) -> None:
    """A file of arrays without a net."""
    arrays = [(layer.name, [blob.shape for blob in layer.blobs]) for layer in file.weights or ()]
    if as_json:
        layers = [{"name": name, "blobs": shapes} for name, shapes in arrays]
        print_json(_file_facts(file) | {"layers": layers, "warnings": file.warnings})
        return
    click.echo(_file_line(file))
    print_table(["layer", "arrays"], [[visible(name), ", ".join(map(text, shapes))] for name, shapes in arrays])
    for warning in file.warnings:
        click.echo(f"warning: {warning}", err=True)
