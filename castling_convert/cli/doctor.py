"""castling doctor"""

from __future__ import annotations

import click

from .options import json_option, print_json


@click.command("doctor", epilog="Example: castling doctor")
@json_option
def command(as_json: bool) -> None:
    """Versions, devices, runtimes, and what each export format needs and whether it is there."""
    from ..doctor import examine

    report = examine()
    if as_json:
        print_json(report)
        return
    for title, rows in report.items():
        click.echo(f"{title}:")
        for name, value in rows.items():
            click.echo(f"  {name:<18} {value}")
