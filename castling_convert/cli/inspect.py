"""castling inspect"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .options import data_help, fewer_or_more, json_option, model_options, print_json, print_table


@click.command("inspect", epilog="Example: castling inspect --model deit_s --no-pretrained")
@model_options
@click.option("--sensitivity", is_flag=True, help="Measure how much each block's softmax is needed; loads the weights.")
@click.option("--data", help="Images for --sensitivity. " + data_help)
@json_option
def command(
    model: str,
    weights: Path | None,
    pretrained: bool,
    image_size: tuple[int, int] | None,
    num_classes: int | None,
    model_args: tuple[str, ...],
    sensitivity: bool,
    data: str | None,
    as_json: bool,
) -> None:
    """List every attention layer of a model: tokens, heads, and whether it can be castled; count MACs.

    The architecture alone is looked at; weights are read only for local-dir: and hf-hub: names, when
    --weights is given, or for --sensitivity: each block castled alone by the default recipe, against the
    whole model. convert --layers auto measures the same with its own recipe and images.
    """
    from rich.table import Table

    from ..analysis.macs import count_macs
    from ..castling import LEAVE_THEM, castle, close_masks, costs, no_cheaper, not_paying
    from ..data.loaders import some_images
    from ..data.preprocessing import Preprocessing
    from ..data.spec import GENERATED, open_data
    from ..errors import DataError
    from ..families import family_of
    from ..folding import fold_
    from ..loading import load_model, parse_model_args
    from ..planning.sensitivity import images_needed, sensitivities
    from ..recipe import Recipe
    from ..tasks import task_of

    if data is not None and not sensitivity:
        raise DataError("--data is for --sensitivity; add it, or leave --data out")
    loaded = load_model(
        model,
        pretrained=pretrained and sensitivity,  # nothing else asked here depends on the weights
        weights=weights,
        image_size=image_size,
        num_classes=num_classes,
        model_args=parse_model_args(model_args),
    )
    family, attention = family_of(loaded, model), Recipe.load("castling").attention
    layers = family.layers(loaded)
    macs = {"softmax": count_macs(loaded)}
    if any(layer.castable for layer in layers):
        student = castle(loaded)
        close_masks(student)
        macs["castled"] = count_macs(fold_(student))
    measured: dict[str, Any] = {}
    unit = task_of(loaded).distance
    if sensitivity and "castled" in macs:
        chosen = open_data(data or GENERATED, Preprocessing.of(loaded), "train")
        images = some_images(chosen, images_needed(loaded))
        for entry in sensitivities(loaded, Recipe.load("castling"), images):
            click.echo(f"block {entry.block}: {entry.divergence:.3g} {unit}", err=True)
            measured |= dict.fromkeys(entry.layers, entry)
    prices = {
        layer.name: dict(zip(("softmax", "castled"), (cost.macs for cost in costs(layer, attention)), strict=True))
        for layer in layers
        if layer.castable
    }
    dear = not_paying(layers, attention)
    if as_json:
        values: list[dict[str, Any]] = [
            asdict(layer)
            | {"castable": layer.castable, "macs": prices.get(layer.name, {})}
            | _measured(measured, layer.name)
            for layer in layers
        ]
        print_json({"model": model, "family": family.title, "macs": macs, "layers": values})
        return
    castable = sum(layer.castable for layer in layers)
    table = Table(
        title=f"{model}: {family.title}, {castable} of {len(layers)} layers can be castled",
        title_justify="left",
    )
    for column in ("layer", "kind", "tokens", "heads", "head dim", "M MACs: softmax, castled", "can be castled"):
        table.add_column(column)
    for column in (f"divergence, {unit}", "agreement") if measured else ():
        table.add_column(column, justify="right")
    for layer in layers:
        tokens = str(layer.tokens) if layer.windows == 1 else f"{layer.windows} x {layer.tokens}"
        tokens += f", keys {layer.keys}" if layer.keys != layer.tokens else ""
        price = ", ".join(f"{count / 1e6:.1f}" for count in prices.get(layer.name, {}).values())
        row = [layer.name, layer.kind, tokens, str(layer.num_heads), str(layer.head_dim), price,
               "yes" if layer.castable else f"no: {layer.reason}"]  # fmt: skip
        if layer.name in measured:
            entry = measured[layer.name]
            row += [f"{entry.divergence:.3g}", f"{entry.agreement:.1f} %"]
        table.add_row(*row)
    print_table(table)
    if measured:
        click.echo(
            f"divergence and agreement: this block alone castled, not trained, against the whole model, on "
            f"{len(images)} images ({data or GENERATED}); --layers auto keeps the largest as softmax first"
        )
    if "castled" in macs:
        softmax, castled = (f"{value / 1e9:.2f} G" for value in macs.values())
        click.echo(f"MACs an image: {softmax}, castled {castled} ({fewer_or_more(*macs.values())})")
    if dear:
        click.echo(f"{no_cheaper(dear)}; {LEAVE_THEM}")


def _measured(measured: dict[str, Any], name: str) -> dict[str, Any]:
    if name not in measured:
        return {}
    return {"divergence": measured[name].divergence, "agreement": measured[name].agreement}
