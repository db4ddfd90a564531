"""castling analyze"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import (
    json_option,
    measuring_options,
    model_arg_option,
    model_option,
    num_classes_option,
    print_json,
    print_table,
    progress_console,
)

if TYPE_CHECKING:
    from ..analysis.analyze import Analysis


@click.command(
    "analyze",
    epilog="Example: castling analyze --model deit_t --image-size 224 --runtime torch --seconds 0.5",
)
@model_option
@click.option("--runtime", "runtimes", multiple=True,
              help="onnx, torch or openvino; repeatable [default: all that have the precisions].")  # fmt: skip
@measuring_options("the model's own", seconds=2.0)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--recipe", default="castling", show_default=True, help="Whose attention and layers are meant.")
@num_classes_option
@model_arg_option
@json_option
def command(
    model: str,
    image_sizes: tuple[tuple[int, int], ...],
    runtimes: tuple[str, ...],
    precisions: tuple[str, ...],
    batch: int,
    threads: int | None,
    seconds: float,
    recipe: str,
    num_classes: int | None,
    model_args: tuple[str, ...],
    as_json: bool,
) -> None:
    """Predict what castling gains on this machine, before anything is trained.

    Measured with random weights, which latency does not depend on: every kind of attention layer and the whole
    model, softmax against castled, as castling bench does it; and from how many tokens on castling is faster.
    """
    from ..analysis.analyze import analyze
    from ..bench.runtimes import RUNTIMES
    from ..exporting import FORMATS
    from ..loading import load_model, parse_model_args
    from ..recipe import Recipe

    precisions = precisions or ("fp32",)
    available = tuple(
        name for name in RUNTIMES
        if set(precisions) <= set(FORMATS[name].precisions) and FORMATS[name].exporter.missing() is None
    )  # fmt: skip
    available = available or tuple(RUNTIMES)  # none has them all: the refusal names one
    loaded = load_model(model, pretrained=False, num_classes=num_classes, model_args=parse_model_args(model_args))
    found = analyze(
        model,
        loaded,
        recipe=Recipe.load(recipe),
        image_sizes=image_sizes,
        runtimes=runtimes or available,
        precisions=precisions,
        batch=batch,
        threads=threads,
        seconds=seconds,
        console=progress_console(),
    )
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: Analysis) -> None:
    from rich.table import Table

    from ..bench.cases import CASTLED

    table = Table(title=f"{found.model}, attention layers, {found.threads} threads, batch 1", title_justify="left")
    for column in ("image", "tokens", "layers", "heads", "M MACs: softmax, castled", "holds, MB: softmax, castled"):
        table.add_column(column)
    runtimes = list(found.layers[0].latency)
    for runtime in runtimes:
        table.add_column(f"{runtime} fp32, ms: softmax, castled")
    for layer in found.layers:
        height, width = layer.image_size
        costs = layer.softmax, layer.castled
        latencies = (layer.latency[runtime] for runtime in runtimes)
        table.add_row(
            f"{height}x{width}", str(layer.tokens), str(len(layer.names)), f"{layer.num_heads} of {layer.head_dim}",
            ", ".join(f"{cost.macs / 1e6:.0f}" for cost in costs),
            ", ".join(f"{4 * cost.values / 1e6:.1f}" for cost in costs),
            *(f"{one.softmax:.2f}, {one.castled:.2f} ({one.ratio:.2f}x)" for one in latencies),
        )  # fmt: skip
    print_table(table)
    click.echo("holds: float32 numbers between q, k, v and the output; a fused softmax kernel holds a part at a time")
    for one in found.break_even:
        click.echo(f"break-even in {one.runtime}: {one}")
    click.echo()
    models = Table(title="whole model, predicted from random weights", title_justify="left")
    for column in ("case", "tokens", "softmax, ms", "castled, ms", "ratio [95 %]"):
        models.add_column(column)
    for result in found.cases:
        medians = (result.latency[name].median for name in (result.baseline, CASTLED))
        times = (f"{median:.1f}" for median in medians)
        models.add_row(str(result.case), str(result.tokens), *times, str(result.ratio))
    print_table(models)
    for advice in found.advice:
        click.echo(advice.sentence)
    click.echo(f"a conversion by recipe {found.recipe} trains for about {found.minutes:.0f} min on this machine")
