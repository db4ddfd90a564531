"""castling report"""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, progress_console


@click.command(
    "report",
    epilog="Example, after castling demo: castling report castled/digits",
)
@click.argument("bundle", type=PATH)
@click.option("--output", "-o", type=PATH, help="The file [default: report.html inside the bundle].")
@click.option("--latency/--no-latency", default=True, help="Measure latency against tokens, too [default].")
@click.option("--images/--no-images", default=True, help="Show validation images with both answers [default].")
def command(bundle: Path, output: Path | None, latency: bool, images: bool) -> None:
    """Write one self-contained HTML file about BUNDLE: what was lost and gained in a sentence, images with the answers
    of both models, accuracy, mask density and losses over the steps, errors of the layers, latency against tokens."""
    from ..analysis.report import write_report

    click.echo(f"wrote {write_report(bundle, output, latency=latency, images=images, console=progress_console())}")
