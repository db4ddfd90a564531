"""castling models"""

from __future__ import annotations

import fnmatch

import click

from .options import json_option, print_json


@click.command("models", epilog="Example: castling models '*dinov2*'")
@click.argument("pattern", default="*")
@json_option
def command(pattern: str, as_json: bool) -> None:
    """List the aliases and the timm names that can be castled; PATTERN may hold * and ?."""
    from ..errors import ModelError, did_you_mean
    from ..families import castable_names
    from ..loading import ALIASES

    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    castable = set(castable_names())
    aliases = {
        alias: name
        for alias, name in ALIASES.items()
        if name in castable and (fnmatch.fnmatch(alias, glob) or fnmatch.fnmatch(name, glob))
    }
    names = sorted(fnmatch.filter(castable, glob))
    if not names and not aliases:
        raise ModelError(f"no model that can be castled matches '{pattern}'{did_you_mean(pattern, castable)}")
    if as_json:
        print_json({"aliases": aliases, "models": names})
        return
    for alias, name in aliases.items():
        click.echo(f"{alias:<12} {name}")
    if aliases:
        click.echo()
    for name in names:
        click.echo(name)
    click.echo(
        f"\n{len(names)} timm models can be castled; hf-hub: and local-dir: names of the same kinds too",
        err=True,
    )
