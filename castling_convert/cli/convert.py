"""castling convert"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..distillation import launched
from .launch import launch
from .options import PATH, data_help, json_option, model_options, print_json, progress_console


@click.command(
    "convert",
    epilog="Example: castling convert --model vit_t --no-pretrained --image-size 64 --steps 4 "
    "--set distill.batch_size=4 --output castled/try",
)
@model_options
@click.option("--data", help=data_help + " Without it generated images are used.")
@click.option("--recipe", help="A shipped recipe, or a YAML file [default: castling; datafree without --data].")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe key; repeatable.")
@click.option(
    "--layers",
    help="all, auto, or block numbers and module names, such as 0-7,9 or 'blocks.*.attn' [default: the recipe's].",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="Points of top-1 (of mIoU, of mAP, of nearest neighbours of features) that may be lost; more, and nothing is "
    "published. With --layers auto the budget.",
)
@click.option(
    "--task",
    help="classify, features, segment or detect [default: what the model is for]. features leaves a classifier out.",
)
@click.option(
    "--train",
    type=click.Choice(["head"]),
    help="Train the head of a segmenter or detector, too, which is kept as it is.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Training steps [default: enough for the recipe's images].")
@click.option("--minutes", type=float, metavar="N", help="Choose the steps so that training takes about as long.")
@click.option(
    "--max-minutes", type=float, metavar="N", help="Save and stop after as long, exit code 130; go on with --resume."
)
@click.option("--track", metavar="NAME", help="Follow the run in tensorboard: files in OUTPUT/train/tensorboard.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed [default: the recipe's].")
@click.option("--device", help="cpu, cuda, cuda:1, mps [default: the best there is].")
@click.option(
    "--launch",
    "processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train in N processes of this machine, one for each GPU; each learns from its part of every batch.",
)
@click.option("--output", "-o", type=PATH, help="The bundle's folder [default: castled/MODEL].")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run in the output folder.")
@click.option("--force", is_flag=True, help="Replace a bundle in the output folder.")
@json_option
def command(
    model: str,
    output: Path | None,
    data: str | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    steps: int | None,
    seed: int | None,
    model_args: tuple[str, ...],
    as_json: bool,
    processes: int | None,
    train: str | None,
    **options: Any,
) -> int | None:
    """Castle a softmax ViT, distil it until its masks are closed, fold it, write a bundle."""
    if (processes or 1) > 1 and launched.count() == 1:
        return launch(processes or 1, sys.argv[1:])
    from ..errors import RecipeError
    from ..loading import parse_model_args
    from ..pipeline.conversion import convert, default_recipe
    from ..recipe import Recipe
    from .summary import print_summary

    if processes is not None and processes != launched.count():
        raise RecipeError(f"--launch {processes} in one of {launched.count()} launched processes; leave it out")
    if steps is not None and options["minutes"] is not None:
        raise RecipeError("--steps and --minutes both say how long to train; give one of them")
    extra = [f"distill.{key}={value}" for key, value in (("steps", steps), ("seed", seed)) if value is not None]
    extra += ["distill.optimizer.train=head"] if train == "head" else []
    output = output or Path("castled") / default_name(model)
    summary = convert(
        model,
        output,
        data=data,
        recipe=Recipe.load(recipe or default_recipe(data), (*overrides, *extra)),
        model_args=parse_model_args(model_args),
        console=progress_console(),
        **options,
    )
    if not launched.is_first():
        return None
    if as_json:
        print_json(summary)
    else:
        print_summary(summary, output)
        click.echo(f"next: castling export {output} --format onnx")
    return None


def default_name(model: str) -> str:
    """A folder name for a model name; the last part of a path or hub name."""
    return model.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]
