"""`caffeport layers`: the support table, and the documentation of one type."""

from difflib import get_close_matches
from typing import NoReturn

import click

from ..layers.documentation import Documentation, documentation, support_table
from .output import print_json, print_table


@click.command()
@click.argument("type_", metavar="[TYPE]", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--markdown", is_flag=True, help="The support table as Markdown, as in the README.")
def layers(type_: str | None, as_json: bool, markdown: bool) -> None:
    """All supported layer types, or the documentation of TYPE."""
    entries = documentation()
    if type_ is not None:
        entries = [entry for entry in entries if entry.layer_type.lower() == type_.lower()] or _refuse(type_)
    if as_json:
        print_json([entry.to_dict() for entry in entries])
    elif type_ is not None:
        click.echo("\n\n".join(f"{_title(entry)}: {entry.text}" for entry in entries))
    elif markdown:
        click.echo(support_table(), nl=False)
    else:
        print_table(["type", "what it does"], [[_title(entry), entry.summary] for entry in entries])


def _title(entry: Documentation) -> str:
    return f"{entry.layer_type} ({entry.variant})" if entry.variant else entry.layer_type


def _refuse(type_: str) -> NoReturn:
    near = get_close_matches(type_, {entry.layer_type for entry in documentation()}, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; `caffeport layers` lists all"
    raise click.BadParameter(f"no layer type {type_!r}{hint}", param_hint="TYPE")
