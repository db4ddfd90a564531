"""Option types and helpers that several subcommands share."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..files import expanded

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class ImageSize(click.ParamType):
    """`224` or `HEIGHTxWIDTH`, as (height, width)."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(value))
        if not match or int(match[1]) < 1 or int(match[2] or 1) < 1:
            self.fail(f"'{value}' is neither a number nor HEIGHTxWIDTH, such as 224 or 384x512")
        return int(match[1]), int(match[2] or match[1])


class ImageSizes(ImageSize):
    """One size, or `MIN:OPT:MAX`; as the best (height, width), and the smallest and the largest or None."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(":")
        if len(parts) not in (1, 3):
            self.fail(f"'{value}' is neither one size nor MIN:OPT:MAX, such as 128:224:512")
        sizes = [super(ImageSizes, self).convert(part, param, ctx) for part in parts]
        return (sizes[0], None) if len(sizes) == 1 else (sizes[1], (sizes[0], sizes[2]))


class ExpandedPath(click.Path):
    """A path in which `~` is the home folder, also in `--output=~/mine`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return expanded(str(super().convert(value, param, ctx)))


PATH = ExpandedPath(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
data_help = (
    "A folder of images, digits, relations or scenes (embedded), or a timm data set NAME:ROOT such as "
    "torch/cifar10:DIR."
)

model_option = click.option(
    "--model", "-m", required=True, help="An alias (deit_s), a timm name, hf-hub: or local-dir:."
)
num_classes_option = click.option("--num-classes", type=click.IntRange(min=1), help="Size of the head.")
model_arg_option = click.option(
    "--model-arg", "model_args", multiple=True, metavar="KEY=VALUE", help="Handed to timm.create_model; repeatable."
)


def measuring_options(default_size: str, seconds: float) -> Any:
    """The options that say what is measured: of `default_size` when none is given, for `seconds` a case."""
    options = (
        click.option("--precision", "precisions", multiple=True,
                     help="fp32, fp16, bf16 or int8; repeatable [default: fp32]."),
        click.option("--image-size", "image_sizes", type=ImageSize(), multiple=True,
                     help=f"224 or HEIGHTxWIDTH; repeatable [default: {default_size}]."),
        click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]"),
        click.option("--seconds", type=click.FloatRange(min=0), default=seconds, show_default=True,
                     help="For each case."),
    )  # fmt: skip
    return lambda function: _with(function, options)


def model_options(function: Any) -> Any:
    """The options that say which model is loaded."""
    return _with(
        function,
        (
            model_option,
            click.option("--weights", type=PATH, help="Load these weights: a .safetensors or .pth file."),
            click.option("--pretrained/--no-pretrained", default=True, help="Download pretrained weights [default]."),
            click.option("--image-size", type=ImageSize(), help="224 or HEIGHTxWIDTH [default: the model's own]."),
            num_classes_option,
            model_arg_option,
        ),
    )


def _with(function: Any, options: Sequence[Any]) -> Any:
    """`function` with the options in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def progress_console() -> Console:
    """Progress goes to stderr, so that stdout holds the result alone."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def result_console() -> Console:
    """Where tables and sentences for people go; paths are printed as they are, unbroken.

    A file or a pipe has no width; rich would cut tables at 80 columns.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(soft_wrap=True, markup=False, highlight=False, width=width)


def print_table(table: Table) -> None:
    """A table for people; on a terminal too narrow for the words in it a list of what stands in each row, so that no
    word is cut."""
    console = result_console()
    cut = any("…" in piece.text for line in console.render_lines(table) for piece in line)
    if not cut or not console.is_terminal:
        console.print(table)
        return
    console.print(table.title)
    cells = (list(column.cells) for column in table.columns)
    for first, *others in zip(*cells, strict=True):
        console.print(first)
        for column, cell in zip(table.columns[1:], others, strict=True):
            if cell:
                console.print(f"  {column.header}: {cell}")


def fewer_or_more(before: int, after: int) -> str:
    """`1.05x fewer` or `1.01x more`."""
    return f"{before / after:.2f}x fewer" if after <= before else f"{after / before:.2f}x more"


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
