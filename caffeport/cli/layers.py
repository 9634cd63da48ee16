"""`caffeport layers`: the support table, and the documentation of one type."""

from difflib import get_close_matches

import click

from ..layers.documentation import documentation, support_table
from .output import print_json, print_table


@click.command()
@click.argument("type_", metavar="[TYPE]", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--markdown", is_flag=True, help="The support table as Markdown, as in the README.")
def layers(type_: str | None, as_json: bool, markdown: bool) -> None:
    """All supported layer types, or the documentation of TYPE."""
    entries = documentation()
    if type_ is not None:
        entries = [entry for entry in entries if entry.type.lower() == type_.lower()] or _unknown(type_)
    if as_json:
        print_json([entry.to_dict() for entry in entries])
    elif type_ is not None:
        click.echo("\n\n".join(f"{_title(entry.type, entry.variant)}: {entry.text}" for entry in entries))
    elif markdown:
        click.echo(support_table(), nl=False)
    else:
        rows = [[_title(entry.type, entry.variant), entry.summary] for entry in entries]
        print_table({"type": "left", "what it does": "left"}, rows)


def _title(type_: str, variant: str) -> str:
    return f"{type_} ({variant})" if variant else type_


def _unknown(type_: str) -> list[object]:
    near = get_close_matches(type_, {entry.type for entry in documentation()}, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; `caffeport layers` lists all"
    raise click.BadParameter(f"no layer type {type_!r}{hint}", param_hint="TYPE")
