"""castling recipes"""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, json_option, print_json


@click.group("recipes", epilog="Example: castling recipes show castling")
def command() -> None:
    """List, show, copy and validate recipes."""


@command.command("list", epilog="Example: castling recipes list")
@json_option
def list_(as_json: bool) -> None:
    """The recipes shipped with the package."""
    from ..recipe import Recipe, shipped

    found = {name: Recipe.load(path) for name, path in shipped().items()}
    if as_json:
        print_json({name: recipe.description for name, recipe in found.items()})
        return
    for name, recipe in found.items():
        first = next(iter(recipe.description.strip().splitlines()), "")
        click.echo(f"{name:<12} {first}")


@command.command("show", epilog="Example: castling recipes show castling --set distill.steps=100")
@click.argument("recipe")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key; repeatable.")
@json_option
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """RECIPE (a name or a file) with every key resolved, as YAML."""
    from ..recipe import Recipe

    loaded = Recipe.load(recipe, overrides)
    if as_json:
        print_json(loaded.model_dump(mode="json"))
    else:
        click.echo(loaded.to_yaml(), nl=False)


@command.command("copy", epilog="Example: castling recipes copy castling mine.yaml")
@click.argument("recipe")
@click.argument("file", type=PATH)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def copy(recipe: str, file: Path, force: bool) -> None:
    """Copy RECIPE to FILE, comments and all, to be changed."""
    from ..errors import OutputError
    from ..files import writing_file
    from ..recipe import find

    if file.exists() and not force:
        raise OutputError(f"{file} exists; overwrite it with --force")
    with writing_file(file) as fresh:
        fresh.write_bytes(find(recipe).read_bytes())
    click.echo(f"wrote {file}; use it with: castling convert --recipe {file}")


@command.command("validate", epilog="Example: castling recipes validate castling")
@click.argument("recipe")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key; repeatable.")
@json_option
def validate(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check RECIPE (a name or a file) and say what is wrong with it."""
    from ..recipe import Recipe

    loaded = Recipe.load(recipe, overrides)
    if as_json:
        said = {"steps": loaded.distill.steps, "images": loaded.distill.images}
        print_json({"valid": True, "recipe": recipe, "name": loaded.name, "version": loaded.version, **said})
        return
    steps, images = loaded.distill.steps, loaded.distill.images
    length = f"{images} images" if steps is None else f"{steps} steps"
    click.echo(f"{recipe} is valid: recipe {loaded.name}, version {loaded.version}, {length}")
