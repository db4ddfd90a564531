"""castling inspect"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .options import fewer_or_more, json_option, model_options, print_json, result_console


@click.command("inspect", epilog="Example: castling inspect --model deit_s --no-pretrained")
@model_options
@json_option
def command(
    model: str,
    weights: Path | None,
    pretrained: bool,
    image_size: tuple[int, int] | None,
    num_classes: int | None,
    model_args: tuple[str, ...],
    as_json: bool,
) -> None:
    """List every attention layer of a model: tokens, heads, and whether it can be castled; count MACs.

    The architecture alone is looked at; weights are read only for local-dir: and hf-hub: names, or when
    --weights is given.
    """
    from rich.table import Table

    from ..analysis.macs import count_macs
    from ..castle import castle, close_masks
    from ..families import family_of
    from ..fold import fold_
    from ..load import load_model, parse_model_args

    del pretrained  # what is asked here does not depend on the weights
    loaded = load_model(
        model,
        pretrained=False,
        weights=weights,
        image_size=image_size,
        num_classes=num_classes,
        model_args=parse_model_args(model_args),
    )
    family = family_of(loaded, model)
    layers = family.layers(loaded)
    macs = {"softmax": count_macs(loaded)}
    if any(layer.castable for layer in layers):
        student = castle(loaded)
        close_masks(student)
        macs["castled"] = count_macs(fold_(student))
    if as_json:
        values: list[dict[str, Any]] = [asdict(layer) | {"castable": layer.castable} for layer in layers]
        print_json({"model": model, "family": family.title, "macs": macs, "layers": values})
        return
    castable = sum(layer.castable for layer in layers)
    table = Table(
        title=f"{model}: {family.title}, {castable} of {len(layers)} layers can be castled",
        title_justify="left",
    )
    for column in ("layer", "kind", "tokens", "heads", "head dim", "can be castled"):
        table.add_column(column)
    for layer in layers:
        table.add_row(layer.name, layer.kind, str(layer.tokens), str(layer.num_heads), str(layer.head_dim),
                      "yes" if layer.castable else f"no: {layer.reason}")  # fmt: skip
    result_console().print(table)
    if "castled" in macs:
        softmax, castled = (f"{value / 1e9:.2f} G" for value in macs.values())
        click.echo(f"MACs an image: {softmax}, castled {castled} ({fewer_or_more(*macs.values())})")
