"""castling demo"""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, json_option, print_json, progress_console


@click.command("demo", epilog="Example: castling demo --output castled/digits")
@click.option(
    "--output",
    "-o",
    type=PATH,
    help="The bundle's folder [default: castled/DATA].",
)
@click.option("--data", type=click.Choice(["digits", "relations"]), default="digits", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@json_option
def command(output: Path | None, data: str, seed: int, as_json: bool) -> None:
    """The whole road on embedded data: train a teacher, castle, distil, fold, export, verify.

    `digits` are scikit-learn's handwritten digits; `relations` are generated scenes that linear attention
    finds hard. Needs no download; a bundle of an earlier demo is replaced.
    """
    from ..analysis.report import write_report
    from ..demo.demo import run
    from .summary import print_summary

    output = output or Path("castled") / data
    summary, verification = run(output, data, seed, progress_console())
    report = write_report(output, console=progress_console())
    if as_json:
        print_json({"summary": summary, "verification": verification.to_dict()})
        return
    print_summary(summary, output, parity=verification.folded)
    click.echo(f"report: {report}")
    click.echo(f"try: castling evaluate {output} --data {data}")
