"""Options that several commands share."""

from collections.abc import Callable
from typing import Any

import click


class InputShape(click.ParamType[tuple[str, tuple[int | None, ...]]]):
    """`data=10,3,227,227` as ("data", (10, 3, 227, 227)); a `?` leaves that dimension open."""

    name = "NAME=N,C,H,W"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int | None, ...]]:
        name, equals, sizes = str(value).rpartition("=")
        words = [word.strip() for word in sizes.split(",")] if sizes.strip() else []
        if not name or not equals or any(word != "?" and not (word.isascii() and word.isdigit()) for word in words):
            self.fail(f"{value!r}: expected a blob's name and its dimensions, such as data=10,3,227,227", param, ctx)
        return name, tuple(None if word == "?" else int(word) for word in words)


def _shapes(ctx: click.Context, param: click.Parameter, value: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return dict(value)


def net_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """NET, WEIGHTS and how to read them: arguments of `caffeport.load` under its own names."""
    for decorate in reversed(
        (
            click.argument("net"),
            click.argument("weights", required=False),
            click.option(
                "--input",
                "inputs",
                type=InputShape(),
                multiple=True,
                callback=_shapes,
                help="Shape of an input that the net does not tell; ? leaves a dimension open. Repeatable.",
            ),
            click.option(
                "--phase",
                type=click.Choice(["TRAIN", "TEST"], case_sensitive=False),
                default="TEST",
                show_default=True,
                help="Phase that the net's include and exclude rules are asked for.",
            ),
            click.option("--level", type=int, default=0, help="Level for those rules."),
            click.option("--stage", "stages", multiple=True, help="Stage for those rules. Repeatable."),
            click.option(
                "--reshape",
                multiple=True,
                metavar="[FROM=]LAYER",
                help="Give LAYER the values of the file's layer FROM in their order, whatever the shape. Repeatable.",
            ),
            click.option(
                "--crop",
                type=click.Choice(["caffe", "aligned"]),
                default="caffe",
                show_default=True,
                help="Crop layers without crop_param: offset 0, as in Caffe 1.0, or as old FCN forks derived it.",
            ),
            click.option("--salvage", is_flag=True, help="Take the whole layers of a file that ends early."),
        )
    ):
        command = decorate(command)
    return command


deploy_option = click.option(
    "--deploy", is_flag=True, help="Cut from a training net what only training needs, as `convert` does."
)


def load_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What more `caffeport.load` takes, where a net is built and not only described."""
    for decorate in (
        click.option("--allow-nonfinite", is_flag=True, help="Accept NaN and Inf among the weights."),
        click.option(
            "--strict/--no-strict",
            default=True,
            help="Whether a layer that the weights file lacks is an error; else it keeps Caffe's filler.",
        ),
    ):
        command = decorate(command)
    return net_options(command)
