"""castling models"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from ..errors import ModelError, OutputError, did_you_mean
from ..files import cache_folder, writing_file
from ..version import __version__
from .options import json_option, print_json


@click.command("models", epilog="Example: castling models '*dinov2*'")
@click.argument("pattern", default="*")
@click.option("--refused", is_flag=True, help="List the ones that can't be castled, each with the reason.")
@json_option
def command(pattern: str, refused: bool, as_json: bool) -> None:
    """List the aliases and the timm names that can be castled; PATTERN may hold * and ?."""
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = castable()
    if refused:
        _print_refused(pattern, {n: why for n, why in found["refused"].items() if fnmatch.fnmatch(n, glob)}, as_json)
        return
    aliases = {
        alias: name
        for alias, name in found["aliases"].items()
        if fnmatch.fnmatch(alias, glob) or fnmatch.fnmatch(name, glob)
    }
    names = fnmatch.filter(found["models"], glob)
    if not names and not aliases:
        raise ModelError(f"no model that can be castled matches '{pattern}'{did_you_mean(pattern, found['models'])}")
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


def _print_refused(pattern: str, refused: dict[str, str], as_json: bool) -> None:
    """By reason."""
    if not refused:
        raise ModelError(f"no timm model that matches '{pattern}' is refused; list those that can be without --refused")
    if as_json:
        print_json({"refused": refused})
        return
    for why in sorted(set(refused.values())):
        names = [name for name, reason in refused.items() if reason == why]
        click.echo(f"{why}:")
        click.echo("".join(f"  {name}\n" for name in names))
    click.echo(f"{len(refused)} timm models can't be castled", err=True)


def castable() -> dict[str, Any]:
    """The `models` that can be castled, sorted, the `aliases` of some, and why the others are `refused`: as the
    registries say, which needs timm and takes seconds, or as they said before and was kept in the user's cache."""
    file, registry = cache_folder() / "models.json", _registry()
    cached = _read(file)
    if cached.get("registry") == registry:
        return cached
    from ..families import castable_names, refused_names
    from ..loading import ALIASES

    names = castable_names()
    aliases = {alias: name for alias, name in ALIASES.items() if name in names}
    found = {"registry": registry, "aliases": aliases, "models": names, "refused": refused_names()}
    with suppress(OutputError, OSError), writing_file(file) as fresh:  # without a cache it takes its seconds again
        fresh.write_text(json.dumps(found), encoding="utf-8")
    return found


def _read(file: Path) -> dict[str, Any]:
    """What is kept there, if it is what `castable` has written, else nothing."""
    try:
        cached = json.loads(file.read_text(encoding="utf-8"))
        aliases, refused = cached["aliases"].items(), cached["refused"].items()
        texts = [*cached["models"], *(text for pair in (*aliases, *refused) for text in pair)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return cached if all(isinstance(text, str) for text in texts) else {}


def _registry() -> list[str]:
    """What the list depends on: both versions, and the files that know of families and aliases."""
    package = Path(__file__).parent.parent
    files = (*sorted((package / "families").glob("*.py")), package / "loading.py")
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return [version("timm"), __version__, sources]
