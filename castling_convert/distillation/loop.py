"""The distillation loop: layers alone, then the whole student, masks annealed to zero. Reads top to bottom."""

from __future__ import annotations

import copy
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from ..castling import A_MODEL, castled_layers, close_masks
from ..data.loaders import training_loader
from ..data.preprocessing import Preprocessing
from ..data.randomness import undone_randomness
from ..data.spec import ImageData, open_data
from ..errors import (
    PATH,
    DataError,
    Interrupted,
    ModelError,
    OutputError,
    RecipeError,
    Wanted,
    described,
    is_number,
    takes,
)
from ..families import family_of
from ..files import expanded, writing_errors
from ..recipe import A_RECIPE, Recipe, SettledRecipe
from ..tasks import task_of
from . import processes
from .align import CLIP, Echo, Lessons, align_step
from .budget import MOST, settled
from .calibrate import calibrate
from .device import DEVICE, accelerate_apart, make_accelerator
from .finite import explained, refuse_bad_weights, refuse_diverged
from .guard import settle_rate, some_of
from .intake import A_BATCH, Intake, refuse_other_teacher, refuse_size, refuse_unread, resized
from .interrupt import StopRequest
from .losses import Taps, attention_loss, feature_distance, tap
from .mode import to_train_
from .optimizers import align_optimizer, align_rate, falling_rate, trained_parameters, update, whole_optimizer
from .progress import Progress
from .readout import Readout
from .schedule import SHUT, Schedule
from .state import TrainState, fingerprint
from .tracking import TRACKER, require_tracker, start_tracking, tracking

Probe = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class DistillResult:
    """What a run did. `first_step` is above zero when it was resumed."""

    first_step: int
    steps: int
    seconds: float
    images_per_second: float
    losses: dict[str, float]


@takes(
    student=Wanted(nn.Module, ModelError, "a student, made by castle()"),
    teacher=A_MODEL,
    recipe=A_RECIPE,
    device=DEVICE,
    workdir=Wanted(PATH, OutputError, "the path of a folder"),
    probes=Wanted(
        lambda value: is_number(value) and isinstance(value, int) and value > 0,
        RecipeError,
        "a whole number above zero",
    ),
    max_minutes=Wanted(is_number, RecipeError, "a number"),
    track=TRACKER,
)
@accelerate_apart()
def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Any,
    recipe: Recipe | str = "castling",
    *,
    device: str | None = None,
    workdir: str | Path | None = None,
    resume: bool = False,
    identity: dict[str, Any] | None = None,
    progress: Progress | None = None,
    probe: Probe | None = None,
    probes: int = 20,
    start: int = 0,
    until: int | None = None,
    max_minutes: float | None = None,
    track: str | None = None,
) -> DistillResult:
    """Train `student` in place to match `teacher`, closing every mask on the way. Labels are not used.

    A model without classes (`num_classes=0`) is matched by its features and its layers alone. Several processes, each
    in this call, do together what one does: see `processes`.

    0. What has a closed form (a head's gain) is fitted to the teacher's softmax on the first batch.
    1. Align, for `distill.align.share` of the steps: every castled layer, mask closed, learns the output of the
       teacher's layer from its input, `distill.align.echo` times of every batch. Layers are independent here, and
       nothing is propagated through depth.
    2. Anneal: the whole student, masks closing by the schedule, matches the teacher's logits, its last features and
       each layer's attention output. Its rate is lowered first until a few steps of it do no harm.
    3. Finish with all masks exactly closed; the softmax branch is no longer computed.
    4. The classifier is fitted to the last features of the student (`distill.refit`).

    Args:
        student: from `castle`. Left in eval mode on its device, masks closed.
        teacher: the original softmax model; not changed.
        data: a `--data` spec, an `ImageData` opened for training, or an iterable of batches: [B, C, H, W]
            tensors or arrays, or tuples that start so. Of several processes each reads its part of every batch of a
            spec or an `ImageData`, and takes it from whole batches of an iterable.
        device: such as `cpu` or `cuda`; the best one there is when left out.
        workdir: where `metrics.jsonl` and the resumable state go; nothing is written when left out. One that every
            process sees; the first one writes.
        resume: go on from the state in `workdir`. A loader of your own is read from its beginning again; a data set
            goes on where it was, unless it is a stream.
        identity: what else must be the same for a run to be resumed, such as the model's name.
        probe: called with the student, masks closed and in eval mode, on the way; what it returns is recorded in
            `metrics.jsonl`. In the first process alone.
        probes: how often at most, the last step included.
        start: begin after this step of the recipe's, as if the ones before had been done on this student.
        until: end after this one; the last when left out. Two phases of a run, done one by one.
        max_minutes: stop after so long, at least one step included, and save the state.
        track: a name in `tracking.TRACKERS`; what it writes goes to a folder of that name in `workdir`.

    Raises:
        ModelError: the student is not castled, the teacher is not what it was castled from, or the device is not here.
        DataError: the data can't be read, is not what the model takes, ran out before the last step, or is a stream in
            a run that is resumed.
        Interrupted: `max_minutes` are over.
        KeyboardInterrupt: on Ctrl-C, SIGTERM or SIGHUP, after the step was finished and the state saved.
    """
    given = Recipe.of(recipe)
    if workdir is not None:
        workdir = expanded(workdir)
        with writing_errors(workdir):
            if processes.is_first():
                workdir.mkdir(parents=True, exist_ok=True)
    names = [name for name, _ in castled_layers(student)]
    if not names:
        raise ModelError("the student has no castled layers in training form; make it with castle()")
    if task_of(teacher).output == "features" and not (given.distill.loss.attention or given.distill.loss.features):
        raise ModelError(
            "the model has no classes, and the recipe matches nothing but logits; give distill.loss.features or "
            "distill.loss.attention a weight"
        )
    refuse_other_teacher(student, teacher)
    for size in given.data.sizes or ():
        refuse_size(teacher, size)
        refuse_size(student, size)
    tracked = require_tracker(track, workdir)
    deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
    refuse_bad_weights(teacher)
    data = _opened(data, student, given)
    set_seed((given.distill.seed + processes.index()) % 2**32)
    accelerator = make_accelerator(device, given.distill.precision, tracked)
    of_batches = None if isinstance(data, ImageData) else getattr(data, "batch_size", None) or MOST
    recipe = settled(given, student, teacher, of_batches)
    config = recipe.distill
    processes.refuse_unequal_parts(config.batch_size)
    schedule = Schedule.of(config, next(castled_layers(student))[1].grid.tokens, len(names))
    trained = {id(parameter) for parameter in trained_parameters(student, config.optimizer)}
    for parameter in student.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    optimizers = [align_optimizer(student, teacher, config.align), whole_optimizer(student, config)]
    aligned = schedule.align_until
    rates = [
        align_rate(aligned),
        falling_rate(config.steps - aligned, config.optimizer.warmup, config.optimizer.decay),
    ]
    schedulers: list[Any] = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer, rate in zip(optimizers, rates, strict=True)
    ]
    readout = Readout(student)
    progress = progress or Progress(workdir)
    state = TrainState(accelerator, workdir, fingerprint(recipe, teacher, identity) if workdir else {})

    if config.refit:
        accelerator.register_for_checkpointing(readout)
    student, *optimizers = accelerator.prepare(to_train_(student), *optimizers)
    processes.same_weights(student)
    # The steps say themselves what is autocast; what is probed, folded and used later is the real float32 model.
    plain = accelerator.unwrap_model(student, keep_fp32_wrapper=False)
    plain.__dict__.pop("forward", None)
    schedulers = [accelerator.prepare(scheduler) for scheduler in schedulers]
    teacher = copy.deepcopy(teacher).to(accelerator.device).eval()  # the caller's stays as it is
    first = state.load() if resume else start
    start_tracking(accelerator, track if processes.is_first() else None, first)
    end = config.steps if until is None else until
    if resume and first < end and isinstance(data, ImageData) and data.streamed:
        raise DataError(
            f"{data.spec} is streamed, and a run on a stream can't be resumed exactly; start over with --force, or "
            "give the images as a folder"
        )
    echo = Echo.of(config, accelerator.unwrap_model(student), aligned)
    count = echo.first_batch(config.steps)
    intake = Intake(teacher)
    batches = _batches(data, recipe, echo.first_batch(first), count, accelerator, intake)

    started, losses, seen = time.monotonic(), {}, 0
    saved = started
    with (
        progress.running(config.steps, first),
        opened_to(teacher if config.mask.branch == "teacher" else None, student),
        _taking(recipe.data.sizes, teacher, plain),
        tap(teacher, names) as softmax,
        tap(student, names) as castled,
        readout.listening(),
        tracking(accelerator) as log,
        StopRequest() as stop,
    ):

        def whole_loss(images: Tensor) -> Whole:
            with accelerator.autocast():
                return distill_loss(student, teacher, images, castled, softmax, recipe)

        def learn(loss: Tensor) -> None:
            accelerator.backward(loss)
            update(accelerator, optimizers[1], [student], config.optimizer.clip_grad)

        lessons = Lessons(teacher, softmax, echo, accelerator)
        if first == 0:
            with progress.aside():
                head = next(batches)
                plain = accelerator.unwrap_model(student)
                refuse_unread(plain, head[:1])
                calibrate(plain, teacher, processes.gathered(head))
            batches = itertools.chain([head], batches)
        for step in range(first, end):
            aligning = step < aligned
            optimizer, scheduler = (optimizers[0], schedulers[0]) if aligning else (optimizers[1], schedulers[1])
            masks = [SHUT if aligning else schedule.mask(step, index) for index in range(len(names))]
            if step == aligned:  # what the first phase held is let go: activations, and two numbers for every weight
                lessons.held.clear()
                optimizers[0].optimizer.state.clear()
            if step == aligned and config.optimizer.guard:
                close_masks(student)
                with progress.aside():
                    some, batches = _ahead(data, batches, recipe, echo.batches, count, accelerator, intake)
                    settle_rate(
                        student, whole_loss, some, optimizer.optimizer, learn, scheduler.scheduler, progress.say
                    )  # fmt: skip
            for (_, layer), mask in zip(castled_layers(student), masks, strict=True):
                layer.set_mask(*mask)
            if aligning:
                lesson, images = lessons.at(step, batches), lessons.images
                progress.set_aside(lessons.early)
                size = lesson.images
                loss, parts, layers = align_step(student, lesson, accelerator)
            else:
                images = next(batches)
                size = images.shape[0]
                loss, parts, layers, output, expected = whole_loss(images)
                accelerator.backward(loss)
            density = {name: layer.density for name, layer in castled_layers(student)}
            whole, *means = processes.mean_of(loss, parts, layers, density)
            if not torch.isfinite(whole):
                faulty = next((name for name, error in layers.items() if not error.isfinite()), names[0])
                alone = (faulty, lesson.inputs[faulty]) if aligning else None
                with accelerator.autocast():
                    error = explained(loss, parts, step, config, teacher, student, images, alone)
                raise processes.first_of(None if torch.isfinite(loss) else error) or error
            if aligning:
                update(accelerator, optimizer, [layer for _, layer in castled_layers(student)], CLIP)
            else:
                update(accelerator, optimizer, [student], config.optimizer.clip_grad)
            rate = optimizer.param_groups[0]["lr"]
            scheduler.step()
            if not aligning and all(mask.closed for mask in masks):
                readout.keep(output, expected)
            size *= processes.count()
            seen += size
            losses, layer_losses, density = ({name: value.item() for name, value in part.items()} for part in means)
            probed = probe is not None and processes.is_first() and _is_probed(step, config.steps, probes)
            metrics = {
                "losses": {"total": whole.item()} | losses,
                "layer_losses": layer_losses,
                "lr": rate,
                "threshold": min(mask.threshold for mask in masks),
                "density": density,
                **({"probe": _probed(probe, accelerator.unwrap_model(student))} if probed else {}),
            }
            phase = "align" if aligning else "closed" if all(mask.closed for mask in masks) else "anneal"
            progress.step(step=step + 1, phase=phase, images=size, **metrics)
            log(step + 1, metrics)
            last = step + 1 == end
            over = time.monotonic() >= deadline
            overdue = time.monotonic() - saved >= 60 * config.checkpoint_minutes
            # All of several processes do the same after the same step.
            stopping, over, overdue = processes.any_of(stop.requested, over, overdue)
            if last or stopping or over or overdue or (step + 1) % config.checkpoint_every == 0:
                refuse_diverged(student, step + 1, config)  # the checkpoint before stays
                state.save(step + 1)  # the last one too: what comes after training can fail as well
                saved = time.monotonic()
            if last:  # that was the last chance to hear of it
                (stopping,) = processes.any_of(stop.requested)
            if stopping:
                raise KeyboardInterrupt
            if not last and over:
                raise Interrupted(f"stopped after step {step + 1} of {config.steps}: {max_minutes:g} minutes are over")
    close_masks(student)
    accelerator.unwrap_model(student).eval()
    left = None
    if config.refit and end == config.steps:
        left = processes.on_first(lambda: readout.fit(config.loss.temperature))
        processes.same_weights(student)
    if left is not None:
        progress.say(f"classifier fitted to the last features: divergence {1 - left:.0%} lower on images set aside")
    seconds = time.monotonic() - started
    return DistillResult(first, end, seconds, seen / max(seconds, 1e-9), losses)


def _probed(probe: Any, student: nn.Module) -> dict[str, float]:
    """What the probe measures with every mask closed. The next step opens them again, as far as they are."""
    close_masks(student.eval())
    values = probe(student)
    to_train_(student)
    return values


def _is_probed(step: int, steps: int, times: int) -> bool:
    """So many times in a run at most, the last step included."""
    return (step + 1) % math.ceil(steps / times) == 0 or step + 1 == steps


@contextmanager
def opened_to(teacher: nn.Module | None, student: nn.Module) -> Iterator[None]:
    """While open, what the masks of `student` open to are copies of the layers of `teacher`, where there is one."""
    layers = dict(castled_layers(student))
    try:
        if teacher is not None:
            for name, layer in layers.items():
                layer.open_to(copy.deepcopy(teacher.get_submodule(name)).requires_grad_(False))
        yield
    finally:
        for layer in layers.values():
            layer.open_to(None)


class Whole(NamedTuple):
    """One step's loss of the whole student, its parts, the attention loss of each tapped layer, and what the student
    and its teacher return."""

    loss: Tensor
    parts: dict[str, Tensor]
    layers: dict[str, Tensor]
    output: Tensor
    expected: Tensor


def distill_loss(
    student: nn.Module, teacher: nn.Module, images: Tensor, castled: Taps, softmax: Taps, recipe: Recipe
) -> Whole:
    """Of images [B, C, H, W]."""
    weights, task = recipe.distill.loss, task_of(teacher)
    with torch.no_grad():
        expected_features = task.features(teacher, images)
        expected = task.head(teacher, expected_features)
    features = task.features(student, images)
    output = task.head(student, features)
    attention, layers = attention_loss(castled_layers(student), castled.outputs, softmax.outputs)
    used = {"attention": attention} if weights.attention else {}
    divergence = task.loss(output, expected, weights.temperature) if weights.logits else None
    if divergence is not None:
        used["logits"] = divergence
    if weights.features:
        family = family_of(teacher)
        pairs = zip(family.maps(student, features), family.maps(teacher, expected_features), strict=True)
        used["features"] = torch.stack(
            [feature_distance(tokens, wanted, prefix, task.reads_maps) for (tokens, prefix), (wanted, _) in pairs]
        ).mean()
    loss = torch.stack([getattr(weights, name) * part for name, part in used.items()]).sum()
    return Whole(loss, {name: part.detach() for name, part in used.items()}, layers, output, expected)


@contextmanager
def _taking(sizes: tuple[int, ...] | None, *models: nn.Module) -> Iterator[None]:
    """Let models take images of these sizes, if there are any, beside their own."""
    with ExitStack() as stack:
        for model in models if sizes else ():
            stack.enter_context(family_of(model).taking_sizes(model))
        yield


def _opened(data: Any, student: nn.Module, recipe: Recipe) -> Any:
    """The data set of a spec; anything else that batches can be taken from as it is."""
    if isinstance(data, Tensor | np.ndarray | dict) or not isinstance(data, ImageData | Iterable | os.PathLike):
        raise DataError(
            f"distill() takes as data a spec, or batches one after the other, not {described(data)}; {A_BATCH}"
        )
    if not isinstance(data, str | os.PathLike):
        return data
    return open_data(
        os.fspath(data), Preprocessing.of(student), "train", training=recipe.data, seed=recipe.distill.seed
    )


def _batches(
    data: Any, recipe: SettledRecipe, first: int, count: int, accelerator: Accelerator, intake: Intake
) -> Iterator[Tensor]:
    """Image batches on the device, without end for data that can be read again; of a data set `first` to `count`."""
    config, parted = recipe.distill, isinstance(data, ImageData)
    if isinstance(data, ImageData):
        workers = recipe.data.workers if recipe.data.workers is not None else _default_workers(accelerator)
        part = (processes.index(), processes.count())
        data = training_loader(data, config.batch_size, count, first, config.seed, workers, part)
    batches = _forever(data, accelerator, intake, parted)
    return batches if recipe.data.sizes is None else resized(batches, recipe.data.sizes, config.seed, first)


def _ahead(
    data: Any,
    batches: Iterator[Tensor],
    recipe: SettledRecipe,
    first: int,
    count: int,
    accelerator: Accelerator,
    intake: Intake,
) -> tuple[list[Tensor], Iterator[Tensor]]:
    """Some of the batches from `first` on, for the guard, and `batches` as if they had not been read.

    Data that can be read again is, so that a resumed run meets the same images and augmentations.
    """
    if isinstance(data, Iterator):
        some = some_of(batches, count - first)
        return some, itertools.chain(some, batches)
    with undone_randomness():
        return some_of(_batches(data, recipe, first, count, accelerator, intake), count - first), batches


def _forever(loader: Iterable[Any], accelerator: Accelerator, intake: Intake, parted: bool) -> Iterator[Tensor]:
    seen = False
    while True:
        empty = True
        for batch in loader:
            empty, seen = False, True
            images = intake.images(batch)
            yield (images if parted else processes.part_of(images)).to(accelerator.device, non_blocking=True)
        if empty:
            what = "ran out before the last step; pass one that can be read again" if seen else "gave no batch"
            raise DataError(f"the data {what}: at least one full batch of images is needed every time it is read")


def _default_workers(accelerator: Accelerator) -> int:
    import os

    return 0 if accelerator.device.type == "cpu" else min(8, os.cpu_count() or 1)
