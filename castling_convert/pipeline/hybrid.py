"""layers=auto: plans carried out until one meets the budget."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import bundle
from ..castling import layer_states, no_cheaper
from ..data.loaders import some_images
from ..data.spec import ImageData
from ..distillation import processes
from ..distillation.loop import DistillResult
from ..distillation.state import fingerprint, refuse_changes
from ..errors import BundleError
from ..files import writing_file
from ..planning.hybrid import Plan, search, set_aside
from ..planning.sensitivity import Sensitivity, images_needed, paying_blocks, sensitivities
from ..tasks import task_of
from ..tasks.base import said_lost
from .run import Run, outputs_of

# What layers=auto plans with: of the validation part where it is held out, else of the training part.
VALIDATION_SHARE, TRAINING_SHARE = 0.5, 0.2


def carry_out_plans(
    run: Run, training: ImageData, unaugmented: ImageData, max_drop: float | None
) -> tuple[nn.Module, DistillResult, Plan, ImageData]:
    """Carry out plans until one meets the budget; `unaugmented` are the training images as they are.

    Returns:
        What was distilled, its plan, and the validation images that were not planned with.
    """
    assert max_drop is not None
    if run.validation.held_out and not run.validation.streamed:
        rest, chosen = set_aside(run.validation, VALIDATION_SHARE)
        planning, validation = run.validation.only(chosen), run.validation.only(rest)
    else:
        rest, chosen = set_aside(training, TRAINING_SHARE)
        planning, training, validation = unaugmented.only(chosen), training.only(rest), run.validation
    run = replace(run, planning=len(planning), validation=validation).followed()
    task = task_of(run.teacher)
    planning, _ = task.usable(planning, run.teacher)
    file = run.output / bundle.PLAN
    identity = fingerprint(run.recipe, run.teacher, {**run.identity, "planning": run.planning})
    alone = run.recipe.distill.aligned
    numbers, dear = paying_blocks(run.teacher, run.recipe.attention)
    if dear and run.console is not None:
        run.console.print(f"layers=auto: {no_cheaper(dear)}; they stay softmax")

    def keep(plan: Plan) -> None:
        plan.save(file)
        shutil.rmtree(run.output / bundle.STATE, ignore_errors=True)

    begun = processes.on_first(lambda: Plan.load(file) if run.resume and file.is_file() else None)
    if begun is not None:
        plan = replace(begun, max_drop=max_drop)
        refuse_changes(plan.fingerprint, identity)
        aligned = _read_layers(run.output / bundle.ALIGNED) if alone else None
    else:
        aligned = _aligned(run, training, numbers) if alone else None
        images = some_images(planning, images_needed(run.teacher))
        found = processes.on_first(lambda: _sensitivities(run, images, aligned, numbers))
        plan = Plan(
            max_drop, len(planning), task.lost_in(planning), found, fingerprint=identity, unit=task.distance
        )  # fmt: skip
        processes.on_first(lambda: keep(plan))

    def drop(outcome: tuple[nn.Module, DistillResult]) -> tuple[float, str]:
        measured = task.measure(outputs_of(run.teacher, outcome[0]), planning)
        points = task.lost(measured["teacher"], measured["castled"])
        return points, said_lost(points, measured["castled"], "planning images")

    student, result = search(
        plan,
        lambda layers: run.distill(training, layers, aligned),
        lambda outcome: processes.on_first(lambda: drop(outcome)),
        lambda plan: processes.on_first(lambda: keep(plan)),
        run.console,
    )
    return student, result, plan, validation


def _aligned(run: Run, training: ImageData, numbers: Sequence[int]) -> dict[str, Tensor]:
    """Every layer after the first phase, which is the same for all plans; also kept in the output folder."""
    if run.console is not None:
        run.console.print("layers=auto: first every layer alone, once for all plans")
    student, _ = run.distill(training, ",".join(map(str, numbers)), until=run.recipe.distill.aligned)
    states = {name: value.detach().cpu().clone() for name, value in layer_states(student).items()}

    def keep() -> None:
        with writing_file(run.output / bundle.ALIGNED) as fresh:
            save_file(states, fresh)

    processes.on_first(keep)
    return states


def _read_layers(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        raise BundleError(f"{path} is missing or damaged; start over with --force") from None


def _sensitivities(
    run: Run, images: Tensor, aligned: Mapping[str, Tensor] | None, numbers: Sequence[int]
) -> list[Sensitivity]:
    found, unit = [], task_of(run.teacher).distance
    for entry in sensitivities(run.teacher.to(run.device), run.recipe, images, aligned, numbers):
        found.append(entry)
        if run.console is not None:
            run.console.print(
                f"layers=auto: block {entry.block} castled alone diverges by {entry.divergence:.3g} {unit}"
            )
    return found
