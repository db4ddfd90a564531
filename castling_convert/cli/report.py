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
def command(bundle: Path, output: Path | None, latency: bool) -> None:
    """Write one self-contained HTML file about BUNDLE: accuracy, mask density and losses over the steps, errors of
    the layers, latency against tokens."""
    from ..analysis.report import write_report

    click.echo(f"wrote {write_report(bundle, output, latency=latency, console=progress_console())}")
