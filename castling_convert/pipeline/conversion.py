"""The whole job: load -> castle -> distill -> fold -> save, one bundle at the end or nothing."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from rich.console import Console
from torch import nn

from .. import bundle
from ..analysis.macs import count_macs, count_parameters
from ..castling import LAYERS, LEAVE_THEM, Castling, castle, no_cheaper, not_paying
from ..data.loaders import some_images
from ..data.preprocessing import LABELS, Preprocessing
from ..data.spec import GENERATED, ImageData, open_data
from ..distillation import processes
from ..distillation.budget import settled
from ..distillation.device import DEVICE, accelerate_apart, make_accelerator
from ..distillation.interrupt import Limit
from ..distillation.loop import DistillResult
from ..distillation.pace import WORTH_TIMING, Pace, measure_pace
from ..distillation.state import weights_sha256
from ..distillation.tracking import TRACKER, require_tracker
from ..errors import (
    PATH,
    CastlingError,
    CheckFailed,
    DataError,
    ModelError,
    OutputError,
    RecipeError,
    Wanted,
    WeightsError,
    is_number,
    is_size,
    takes,
)
from ..evaluation.probe import looked_at
from ..families import family_of, input_size_of
from ..families.around import AroundFamily
from ..files import expanded, require_space
from ..folding import certify
from ..loading import load_model
from ..planning.hybrid import Plan, exceeds
from ..planning.sensitivity import paying_blocks
from ..recipe import A_RECIPE, Recipe, SettledRecipe
from ..tasks import Task, find_task, task_of
from ..tasks.base import said_lost
from .hybrid import carry_out_plans
from .output import alone, begun_fingerprint, check_output, resumable
from .run import Run, outputs_of

CERTIFIED_IMAGES = 4
FEW_IMAGES = 8
"""To train on, however small a batch is."""


def _is_whole(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and value >= 0


_NUMBER = Wanted(is_number, RecipeError, "a number")
_YES_OR_NO = Wanted(bool, CastlingError, "True or False")


@takes(
    model=Wanted((str, nn.Module), ModelError, "a name such as 'deit_small_patch16_224', or a timm model"),
    output=Wanted(PATH, OutputError, "a folder"),
    data=Wanted(
        PATH, DataError, "a spec, such as a folder of images (batches of your own are for castle() and distill())"
    ),
    recipe=A_RECIPE,
    layers=LAYERS,
    max_drop=_NUMBER,
    task=Wanted(str, ModelError, "a word: classify, features, segment or detect"),
    minutes=_NUMBER,
    max_minutes=_NUMBER,
    track=TRACKER,
    pretrained=_YES_OR_NO,
    weights=Wanted(PATH, WeightsError, "a .safetensors or .pth file"),
    image_size=Wanted(is_size, ModelError, "(height, width)"),
    num_classes=Wanted(_is_whole, ModelError, "a whole number"),
    model_args=Wanted(Mapping, ModelError, "a dict of what timm.create_model takes"),
    device=DEVICE,
    resume=_YES_OR_NO,
    force=_YES_OR_NO,
    console=Wanted(Console, CastlingError, "a rich Console"),
)
@alone
def convert(
    model: str | nn.Module,
    output: str | Path,
    *,
    data: str | Path | None = None,
    recipe: Recipe | str | Path | None = None,
    layers: str | None = None,
    max_drop: float | None = None,
    task: str | None = None,
    minutes: float | None = None,
    max_minutes: float | None = None,
    track: str | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
    image_size: tuple[int, int] | int | None = None,
    num_classes: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Convert a softmax ViT and write the bundle `output`.

    Several processes (see `distillation.processes`), each in this call with the same arguments, do it together, in a
    folder that all of them see: they load and train; the first one measures, writes and speaks.

    Args:
        model: a name for `loading.load_model`, or a timm model.
        data: a `--data` spec; without it the student is aligned on generated images and its accuracy
            stays unmeasured.
        recipe: one that was loaded, or what `Recipe.load` takes; see `default_recipe`.
        layers: as for `castle`, or `auto` to keep as softmax the fewest blocks that `max_drop` needs.
        max_drop: the points of top-1 that may be lost against the teacher on the validation part of
            `data`; without labels every other top class counts as lost, of features every other nearest neighbour.
        task: a name in `tasks.TASKS`; what the model is for when left out. `features` of a model with classes leaves
            its classifier out. `segment` and `detect` say what a module of your own around a backbone is for; one
            that says so itself, by its attribute `task`, needs no word.
        minutes: of training; chooses the steps of both phases, from a few that are timed, in place of the recipe's.
        max_minutes: how long this call may take until training stops, at least one step included; `output` can then be
            resumed. What comes after the last step is done all the same.
        track: `tensorboard`, to follow the run there; its files are in `output/train/tensorboard`.
        resume: go on with an interrupted run in `output`. force: replace a bundle in `output`.
        console: where progress goes; silent when left out.
        pretrained, weights, image_size, num_classes, model_args, device: as on the command line.

    Returns:
        What `summary.json` holds.

    Raises:
        CastlingError: bad input, or another process is at work on `output`; nothing is left half-written.
        Interrupted: Ctrl-C, or `max_minutes` are over; `output` can be resumed if a step was done.
        CheckFailed: folding was not exact, or more than `max_drop` was lost; the bundle is then left in
            `output/train/rejected`.
    """
    output, started = expanded(output), time.monotonic()
    data = None if data is None or str(data) == GENERATED else str(data)
    image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
    given = Recipe.of(recipe or default_recipe(data))
    layers = given.layers if layers is None else layers
    _check_options(layers, max_drop, minutes, max_minutes, data)
    require_tracker(track, output / bundle.TRAIN)
    processes.on_first(lambda: check_output(output, planned=layers == "auto", resume=resume, force=force))
    console = console if console is None or processes.is_first() else Console(quiet=True)
    if console is not None and processes.sharding() is not None:
        console.print(
            f"note: the settings of {processes.sharding()} are not used, each process holds the whole student; see "
            "examples/launch/README.md"
        )
    with accelerate_apart():
        device = str(make_accelerator(device, given.distill.precision).device)
    set_seed(given.distill.seed)  # a teacher with random weights is part of the run
    if isinstance(model, str):
        name, source = model, str(expanded(weights).resolve()) if weights else "pretrained" if pretrained else "random"
        teacher = load_model(
            model,
            pretrained=pretrained,
            weights=weights,
            image_size=image_size,
            num_classes=num_classes,
            model_args=model_args,
        )
    else:
        family_of(model)
        name, source = bundle.named_by_timm(model), "given"
        teacher = copy.deepcopy(model).eval()
    bundle.named_by_timm(teacher)  # what can't be saved is not trained
    kind = _task(teacher, task, name)
    _refuse_cut_patches(kind, teacher)
    preprocessing = Preprocessing.of(teacher)
    spec = data or GENERATED
    training = open_data(spec, preprocessing, "train", training=given.data, seed=given.distill.seed)
    validation = open_data(spec, preprocessing, "validation")
    if data is not None:
        kind.usable(validation, teacher)  # refuses what is too little to measure on
    # Castling once here says what can't be castled, and how large it gets, before anything is written.
    student = castle(teacher, given, "all" if layers == "auto" else layers)
    require_space(output, 8 * bundle.state_bytes(student))
    begun = processes.on_first(lambda: begun_fingerprint(output) if resume else None)
    if begun is not None and minutes is not None:  # it has the steps it began with, whatever they take today
        given = given.override(f"distill.steps={begun['distill']['steps']}")
    recipe = settled(given, student, teacher)
    if console is not None and given.data.sizes is None and recipe.data.sizes is not None:
        (side,) = recipe.data.sizes
        console.print(
            f"note: it learns from images of {side}x{side}, which are several times as many in the same time; "
            f"--set data.sizes=[{preprocessing.input_size[1]}] makes them as large as the model's"
        )
    few = max(FEW_IMAGES, recipe.distill.batch_size)
    if console is not None and not training.streamed and len(training) < few:
        count = "one image" if len(training) == 1 else f"{len(training)} images"
        console.print(
            f"warning: {spec} holds {count}: the student sees the same ones again and again, and what is measured on "
            "them says little"
        )
    if begun is None and (minutes is not None or (console is not None and recipe.distill.steps >= WORTH_TIMING)):
        pace = measure_pace(student, teacher, training, recipe, device)
        recipe = _paced(recipe, minutes, processes.on_first(lambda: pace), looked_at(recipe, teacher), console)
    if console is not None and begun is None and layers != "auto" and recipe.distill.steps >= WORTH_TIMING:
        dear = not_paying(family_of(teacher).layers(teacher), recipe.attention)
        castled: list[str] = student.castling.castled  # type: ignore[union-attr, assignment]
        dear = {layer: words for layer, words in dear.items() if layer in castled}
        if dear:
            console.print(f"note: {no_cheaper(dear)}; {LEAVE_THEM}")
    del student
    identity = {
        "model": f"local-dir:{expanded(name[10:]).resolve()}" if name.startswith("local-dir:") else name,
        "weights": source,
        "arguments": {key: str(value) for key, value in (model_args or {}).items()},
        "classes": getattr(teacher, "num_classes", None),
        "data": spec,
        "images": None if training.streamed else len(training),
        "input_size": list(preprocessing.input_size),
    }
    limit = Limit(started, max_minutes)
    run = Run(
        teacher=teacher, recipe=recipe, device=device, output=output, resume=resume, identity=identity,
        validation=validation, console=console, limit=limit, track=track,
    )  # fmt: skip
    with resumable(output, recipe, resume=resume, streamed=training.streamed, limit=limit):
        if layers == "auto":
            unaugmented = open_data(spec, preprocessing, "train")
            student, result, plan, validation = carry_out_plans(run, training, unaugmented, max_drop)
        else:
            (student, result), plan = run.followed().distill(training, layers), None
        return processes.on_first(lambda: _publish(run, name, student, result, plan, validation, data, max_drop))


def _publish(
    run: Run,
    name: str,
    student: nn.Module,
    result: DistillResult,
    plan: Plan | None,
    validation: ImageData,
    data: str | None,
    max_drop: float | None,
) -> dict[str, Any]:
    """Measure and fold what was trained, and write its bundle; returns its summary.

    Raises:
        CheckFailed: it is not good enough to be published.
    """
    teacher, recipe, output, identity = run.teacher, run.recipe, run.output, run.identity
    castling: Castling = student.castling  # type: ignore[assignment]
    if plan is not None:
        student.castling = castling = plan.explain(castling, paying_blocks(teacher, recipe.attention)[1])  # type: ignore[assignment]
    accuracy, drop, lost = _accuracy(teacher, student, data, validation)
    images = some_images(validation, CERTIFIED_IMAGES)
    trained = student.to("cpu")
    deploy, certificate = certify(trained, images)
    teacher.to("cpu")
    summary = {
        "model": name,
        "task": task_of(teacher).name,
        "identity": {**identity, "layers": castling.choice, "teacher_weights": weights_sha256(teacher)},
        "recipe": recipe.name,
        "distill": asdict(result),
        "accuracy": accuracy,
        "plan": plan.to_dict() if plan is not None else None,
        "fold": certificate.to_dict(),
        "layers": castling.to_dict()["layers"],
        "macs": {"teacher": count_macs(teacher), "castled": count_macs(deploy)},
        "parameters": {"teacher": count_parameters(teacher), "castled": count_parameters(deploy)},
        "pretrained_weights": identity["weights"] != "random",
        "device": run.device,
    }
    metrics = output / bundle.TRAIN / bundle.METRICS
    keep: dict[str, Any] = {"recipe": recipe, "summary": summary, "metrics": metrics, "tracked": output}
    if max_drop is not None and drop is not None and exceeds(drop, max_drop):
        rejected = output / bundle.REJECTED
        bundle.save(deploy, rejected, **keep, force=True)
        hint = "castle fewer layers with --layers auto, " if plan is None else ""
        raise CheckFailed(
            f"the castled model {lost}, --max-drop {max_drop:g} is allowed; it is in {rejected}, not published: train "
            f"longer with --steps and --force, {hint}or allow more and add --resume"
        )
    bundle.save(deploy, output, **keep, trained=trained, force=True)
    return bundle.read_summary(output)


def _task(teacher: Any, name: str | None, model: str) -> Task:
    """The task of that name, or the one that the teacher is for; ModelError for one that it can't be for."""
    if name is None:
        return task_of(teacher)
    task = find_task(name)
    if task.output == "features" and task_of(teacher).output == "logits":
        teacher.reset_classifier(0)
    if name in LABELS and isinstance(family_of(teacher), AroundFamily) and not hasattr(teacher, "task"):
        teacher.task = name
    if not task.matches(teacher):
        other = task_of(teacher).name
        raise ModelError(
            f"{model} has no classes to {name}; leave out --task, or give --num-classes"
            if name == "classify" and other == "features"
            else f"{model} is to {other}, not to {name}; leave out --task, or give a model that is: docs/dense.md"
        )
    return task


def _refuse_cut_patches(task: Task, teacher: nn.Module) -> None:
    """Raise ModelError where a patch does not fit into images any more, and what a head says lies beside its place."""
    size, patch = input_size_of(teacher)[1:], family_of(teacher).patch_size(teacher)
    if task.name in LABELS and any(side % step for side, step in zip(size, patch, strict=True)):
        near = "x".join(str(max(step, round(side / step) * step)) for side, step in zip(size, patch, strict=True))
        raise ModelError(
            f"images of {size[0]}x{size[1]} are no multiple of the patch, {patch[0]}x{patch[1]}; give "
            f"--image-size {near}"
        )


def _paced(
    recipe: SettledRecipe, minutes: float | None, pace: Pace, looked: float, console: Console | None
) -> SettledRecipe:
    """The recipe with as many steps as `minutes` hold, and a line that says how long it will take."""
    if minutes is not None:
        recipe = recipe.override(f"distill.steps={pace.steps(minutes, recipe.distill, looked)}")
    if console is not None:
        console.print(pace.explain(recipe.distill, looked))
    return recipe


def default_recipe(data: str | None) -> str:
    """The shipped recipe for a conversion with or without data."""
    return "datafree" if data in (None, GENERATED) else "castling"


def _check_options(
    layers: str, max_drop: float | None, minutes: float | None, max_minutes: float | None, data: str | None
) -> None:
    if max_minutes is not None and not (math.isfinite(max_minutes) and max_minutes > 0):
        raise RecipeError(f"--max-minutes is after how long to stop and has to be above zero, not {max_minutes:g}")
    if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
        raise RecipeError(f"--minutes is how long to train and has to be above zero, not {minutes:g}")
    if max_drop is not None and not (math.isfinite(max_drop) and max_drop >= 0):
        raise RecipeError(f"--max-drop is in points lost and can't be negative or endless, not {max_drop:g}")
    if max_drop is not None and data is None:
        raise DataError("--max-drop needs --data: on generated images no accuracy can be measured")
    if layers == "auto" and max_drop is None:
        raise RecipeError("--layers auto needs a budget: add --max-drop POINTS, such as --max-drop 0.5")


def _accuracy(
    teacher: Any, student: nn.Module, data: str | None, validation: ImageData
) -> tuple[dict[str, Any], float | None, str]:
    """What the task measures where there are real images, else a plain `unmeasured`; the points lost, and in words."""
    if data is None:
        return {"measured": False, "why": "aligned on generated images: no --data was given"}, None, ""
    task = task_of(teacher)
    opened, unmeasured = task.usable(validation, teacher)
    results = task.measure(outputs_of(teacher, student), opened)
    unmeasured = unmeasured or task.nothing_found(results)
    accuracy = {
        "measured": unmeasured is None,
        "why": unmeasured,
        "held_out": opened.held_out,
        **task.account(results),
    }
    points = task.lost(results["teacher"], results["castled"])
    return accuracy, points, said_lost(points, results["castled"])
