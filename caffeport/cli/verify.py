"""`caffeport verify` and `caffeport dump-script`."""

import sys
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from . import import_torch
from .options import deploy_option, load_options
from .output import print_json, print_table, visible, write_text

if TYPE_CHECKING:
    from ..verification import Report
    from ..verification.report import LayerResult


@click.command()
@load_options
@deploy_option
@click.option(
    "--reference",
    required=True,
    metavar="NPZ|caffe:PYTHON|opencv|onnx:FILE",
    help="What to compare with: an .npz file of arrays by layer::top or blob name (see dump-script), or "
    "who is to compute them now.",
)
@click.option(
    "--inputs", "arrays", metavar="NPZ", help="An .npz file with the inputs, where the reference does not hold them."
)
@click.option(
    "--device", default="cpu", show_default=True, help="Where the layers under test run: cpu, cuda, cuda:1, ..."
)
@click.option(
    "--precision",
    "precisions",
    default="ieee",
    show_default=True,
    help="ieee, tf32, bf16 or fp16, with commas between. The first is judged; all give a line of the precision table.",
)
@click.option(
    "--limits",
    default="16,32",
    show_default=True,
    help="Largest ratios to float32's noise that pass: of rms, of the largest error.",
)
@click.option("--fail-fast", is_flag=True, help="Stop at the first layer that fails.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as one HTML page.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write the report as JSON; - prints it.",
)
def verify(
    net: str, weights: str | None, reference: str, arrays: str | None, device: str, precisions: str, limits: str,
    fail_fast: bool,
    html: Path | None, json_file: Path | None, **how: Any,
) -> None:  # fmt: skip
    """Compare NET, or a converted folder, with what Caffe computed, layer by layer. Exit status 1 if a layer fails."""
    try:
        rms, largest = map(float, limits.split(","))
    except ValueError:
        rms = largest = nan
    if not (0 < rms < inf and 0 < largest < inf):
        raise InputError(f"--limits {limits!r}: expected two numbers above 0, such as 16,32")
    for path in (html, json_file):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path.parent}: no such folder to write {path.name} to")

    import_torch()
    from ..loading import load
    from ..verification import Limits, Reference
    from ..verification import verify as compare

    network = load(net, weights, **how)
    inputs = None
    if arrays is not None:
        with Reference.open(arrays) as held:
            inputs = held.inputs(network.graph)
    report = compare(
        network, reference, inputs=inputs, device=device, precisions=[word.strip() for word in precisions.split(",")],
        fail_fast=fail_fast, limits=Limits(rms, largest),
    )  # fmt: skip
    if html is not None:
        write_text(html, report.to_html())
    if json_file is not None and str(json_file) == "-":
        print_json(report.to_dict())
    else:
        if json_file is not None:
            write_text(json_file, report.to_json() + "\n")
        print_report(report)
    if not report.passed:
        sys.exit(1)


def print_report(report: "Report") -> None:
    """One line a layer; the failing ones in full; a summary."""
    numbers = {"ratio", "largest", "bits", "net"}
    head = ("", "layer", "type", "shape", "judged", "ratio", "largest", "bits", "net")
    print_table(head, [_line(report, row) for row in report.layers], numbers)
    for row in report.failures:
        click.echo("\n" + _in_full(row))
    for entry in report.weights:
        for tensor, how in entry.differs.items():
            click.echo(f"\n{visible(entry.layer)}: {tensor} is not what the file's arrays give: {how}")
    for cause in report.causes:
        effect = (
            "" if cause.after == cause.before else f" (ratio {cause.before:.3g}; supposing this, {cause.after:.3g})"
        )
        click.echo(f"probable cause: {cause.what}{effect}")
    for problem in report.wiring:
        click.echo(f"wiring: {problem}")
    if len(report.precisions) > len(report.outputs):
        click.echo()
        rows = [
            [p.precision + (" (emulated)" if p.emulated else ""), visible(p.output), f"{p.ratio:.3g}",
            f"{p.largest_error:.3g}",
             "" if p.top1 is None else f"{p.top1:.0%}"]
            for p in report.precisions
        ]  # fmt: skip
        print_table(
            ("precision", "output", "ratio", "largest error", "best class agrees"), rows, {"ratio", "largest error"}
        )
    for note in report.notes:
        click.echo(f"note: {note}")
    _summary(report)


def _line(report: "Report", row: "LayerResult") -> list[str]:
    judgement, growth = row.judgement, row.growth
    agrees, grows = row.agrees(report.limits), row.grows_well(report.limits)
    sign = (
        "FAIL"
        if (agrees is False and not row.fault) or grows is False
        else "fault"
        if agrees is False
        else "ok"
        if agrees
        else "-"
    )
    judged = {"alone": "alone", "segment": f"with {len(row.segment) - 1} before", "no": row.reason}[row.judged]
    return [
        sign, visible(row.layer), row.type, "x".join(map(str, row.shape)),
        judged + (", bit for bit" if row.exact and judgement and judgement.equal else ""),
        f"{judgement.sign}{judgement.ratio:.2f}" if judgement else "",
        f"{judgement.sign}{judgement.ratio_max:.2f}" if judgement else "",
        f"{judgement.bits:.1f}" if judgement else "", f"{growth.ratio:.2f}" if growth else "",
    ]  # fmt: skip


def _in_full(row: "LayerResult") -> str:
    lines = [f"{visible(row.layer)} ({row.type}), top {visible(row.top)}: {row.problem or 'differs'}"]
    if row.judged == "segment":
        lines.append(f"  run together: {', '.join(map(visible, row.segment))}")
    if row.judgement:
        j = row.judgement
        lines.append(
            f"  ratio to float32's noise {j.ratio:.3g} (reference {j.reference:.3g}, device "
            f"{j.device:.3g}); by the largest error {j.ratio_max:.3g}"
        )
        lines.append(
            f"  relative L2 {j.relative_l2:.3g}, cosine {j.cosine:.9g}, {j.bits:.1f} bits left, {j.ulp:.3g} ULP at most"
        )
        lines.append(f"  largest error {j.largest_error:.4g} at {j.at}; NaN or Inf on one side only: {j.strange}")
        for name, m in (("ours", j.ours), ("reference", j.theirs)):
            lines.append(
                f"  {name:9} mean {m.mean:.5g}, SD {m.sd:.5g}, {m.low:.5g} to {m.high:.5g}, {m.nan} NaN, {m.inf} Inf"
            )
    if row.growth:
        lines.append(
            f"  from the input on: ratio {row.growth.ratio:.3g}, relative error {row.growth.error:.3g}, "
            f"noise {row.growth.noise:.3g}"
        )
    return "\n".join(lines)


def _summary(report: "Report") -> None:
    wrong = sum(bool(entry.differs) for entry in report.weights)
    held = (
        f"{len(report.weights) - wrong} of {len(report.weights)} layers' weights equal the file's"
        if report.weights
        else "weights not compared"
    )
    click.echo(f"\n{report.verdict}")
    click.echo(
        f"largest ratio {report.needed.rms:.3g} (limit {report.limits.rms:g}), by the largest error "
        f"{report.needed.largest:.3g} ({report.limits.largest:g}); {held}"
    )
    click.echo(f"beside {report.reference}, on {report.environment['device']}, {report.environment['precision']}")


@click.command("dump-script")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write it to this file instead of printing it.")
def dump_script(output: Path | None) -> None:
    """Print a script that records a reference inside any pycaffe, old or forked; it needs no caffeport."""
    from importlib.resources import files

    script = files("caffeport").joinpath("verification/templates/record_caffe.py.txt").read_text(encoding="utf-8")
    if output is None:
        click.echo(script, nl=False)
    else:
        write_text(output, script)
