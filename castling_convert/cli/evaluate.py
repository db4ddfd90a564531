"""castling evaluate"""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, data_help, json_option, print_json, progress_console, result_console


@click.command("evaluate", epilog="Example, after castling demo: castling evaluate castled/digits --data digits")
@click.argument("target", type=PATH, metavar="BUNDLE_OR_ARTIFACT")
@click.option("--data", required=True, help=data_help)
@click.option("--teacher", help="The original model [default: the one the bundle names].")
@click.option("--teacher-weights", type=PATH, help="Weights of the original model.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after about this many images.")
@json_option
def command(
    target: Path,
    data: str,
    teacher: str | None,
    teacher_weights: Path | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Top-1 and top-5 of teacher and castled model side by side, and how often they agree."""
    from rich.table import Table

    from ..analysis.evaluate import evaluate

    results, notes = evaluate(
        target,
        data,
        teacher=teacher,
        teacher_weights=teacher_weights,
        limit=limit,
        console=progress_console(),
    )
    if as_json:
        print_json({name: result.to_dict() for name, result in results.items()} | {"notes": notes})
        return
    images = next(iter(results.values())).images
    table = Table(title=f"{target} on {images} images of {data}", title_justify="left")
    for column in ("model", "top-1", "top-5", "agreement with teacher"):
        table.add_column(column)
    for name, result in results.items():
        shown = (
            f"{value:.2f} %" if value is not None else "-" for value in (result.top1, result.top5, result.agreement)
        )
        table.add_row(name, *shown)
    result_console().print(table)
    for note in notes:
        click.echo(note)
