"""castling evaluate"""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, data_help, json_option, print_json, print_table, progress_console

ERROR = "standard_error"
COLUMNS = {
    "top1": "top-1", "top5": "top-5", "agreement": "agreement with teacher",
    "miou": "mIoU", "pixels": "right pixels", "map": "mAP", "map50": "mAP at 0.5",
    "cosine": "cosine with teacher", "neighbours": "same nearest neighbour", ERROR: "standard error of the difference",
}  # fmt: skip
"""Of what the tasks measure."""


def _shown(column: str, value: float | None) -> str:
    form = {"cosine": "{:.4f}", ERROR: "{:.2f} points"}.get(column, "{:.2f} %")
    return "-" if value is None else form.format(value)


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
    """Top-1 and top-5 of teacher and castled model side by side, and how often they agree; mIoU of a segmenter, mAP of
    a detector; of a model without classes, how alike its features are to the teacher's."""
    from rich.table import Table

    from ..evaluation.evaluate import evaluate

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
    columns = [name for name in next(iter(results.values())).to_dict() if name not in ("images", ERROR)]
    if any(result.to_dict().get(ERROR) is not None for result in results.values()):
        columns.append(ERROR)
    for column in ("model", *(COLUMNS.get(name, name) for name in columns)):
        table.add_column(column)
    for name, result in results.items():
        values = result.to_dict()
        table.add_row(name, *(_shown(column, values[column]) for column in columns))
    print_table(table)
    for note in notes:
        click.echo(note)
