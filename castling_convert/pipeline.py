"""The whole job: load -> castle -> distill -> fold -> save, one bundle at the end or nothing."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from accelerate.utils import set_seed
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import bundle
from .analysis.macs import count_macs, count_parameters
from .castling import LAYERS, Castling, adopt_layers, castle, layer_states
from .data.loaders import EVAL_BATCH, kept, some_images
from .data.preprocessing import Preprocessing
from .data.spec import GENERATED, ImageData, open_data
from .distillation import processes
from .distillation.device import DEVICE, accelerate_apart, make_accelerator
from .distillation.interrupt import Limit
from .distillation.loop import DistillResult, distill
from .distillation.pace import WORTH_TIMING, Pace, measure_pace
from .distillation.progress import Progress
from .distillation.state import fingerprint, refuse_changes, saved_fingerprint, saved_step, weights_sha256
from .distillation.tracking import TRACKER, require_tracker
from .errors import (
    PATH,
    BundleError,
    CastlingError,
    CheckFailed,
    DataError,
    Interrupted,
    ModelError,
    OutputError,
    RecipeError,
    Wanted,
    WeightsError,
    is_number,
    is_size,
    takes,
)
from .evaluation.probe import PROBED_IMAGES, Probe
from .families import family_of
from .files import expanded, locked, require_space, writing_errors, writing_file
from .folding import certify
from .loading import load_model
from .planning.hybrid import Plan, search, set_aside
from .planning.sensitivity import SENSITIVITY_IMAGES, Sensitivity, sensitivities
from .recipe import A_RECIPE, Recipe
from .tasks import Outputs, Task, find_task, task_of

CERTIFIED_IMAGES = 4
# What layers=auto plans with: of the validation part where it is held out, else of the training part.
VALIDATION_SHARE, TRAINING_SHARE = 0.5, 0.2


P = ParamSpec("P")
R = TypeVar("R")


def _alone(function: Callable[P, R]) -> Callable[P, R]:
    """For as long as it runs, no other process works on the same `output`."""
    parameters = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        output = expanded(parameters.bind(*args, **kwargs).arguments["output"])
        with ExitStack() as held:
            processes.on_first(lambda: held.enter_context(locked(output)))
            return function(*args, **kwargs)

    return run


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
    task=Wanted(str, ModelError, "a word, classify or features"),
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
@_alone
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
        model: a name for `load.load_model`, or a timm model.
        data: a `--data` spec; without it the student is aligned on generated images and its accuracy
            stays unmeasured.
        recipe: one that was loaded, or what `Recipe.load` takes; see `default_recipe`.
        layers: `all`, block numbers, or `auto` to keep as softmax the fewest blocks that `max_drop` needs.
        max_drop: the points of top-1 that may be lost against the teacher on the validation part of
            `data`; without labels every other top class counts as lost, of features every other nearest neighbour.
        task: a name in `tasks.TASKS`; what the model is for when left out. `features` of a model with classes leaves
            its classifier out.
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
    recipe = Recipe.of(recipe or default_recipe(data))
    layers = recipe.layers if layers is None else layers
    _check_options(layers, max_drop, minutes, max_minutes, data)
    require_tracker(track, output / bundle.TRAIN)
    processes.on_first(lambda: _check_output(output, planned=layers == "auto", resume=resume, force=force))
    console = console if console is None or processes.is_first() else Console(quiet=True)
    if console is not None and processes.sharding() is not None:
        console.print(
            f"note: the settings of {processes.sharding()} are not used, each process holds the whole student; see "
            "examples/launch/README.md"
        )
    with accelerate_apart():
        device = str(make_accelerator(device, recipe.distill.precision).device)
    set_seed(recipe.distill.seed)  # a teacher with random weights is part of the run
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
        name, source = str(getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__)), "given"
        teacher = copy.deepcopy(model).eval()
    kind = _task(teacher, task, name)
    preprocessing = Preprocessing.of(teacher)
    spec = data or GENERATED
    training = open_data(spec, preprocessing, "train", training=recipe.data, seed=recipe.distill.seed)
    validation = open_data(spec, preprocessing, "validation")
    if console is not None and not training.streamed and len(training) < recipe.distill.batch_size:
        count = "one image" if len(training) == 1 else f"{len(training)} images"
        console.print(
            f"warning: {spec} holds {count}, fewer than a batch of {recipe.distill.batch_size}: the student sees the "
            "same ones again and again, and what is measured on them says little"
        )
    if data is not None:
        kind.usable(validation, teacher)  # refuses what is too little to measure on
    # Castling once here says what can't be castled, and how large it gets, before anything is written.
    student = castle(teacher, recipe, "all" if layers == "auto" else layers)
    require_space(output, 8 * bundle.state_bytes(student))
    begun = processes.on_first(lambda: _begun(output) if resume else None)
    if begun is not None and minutes is not None:  # it has the steps it began with, whatever they take today
        recipe = recipe.override(f"distill.steps={begun['distill']['steps']}")
    elif begun is None and (minutes is not None or (console is not None and recipe.distill.steps >= WORTH_TIMING)):
        pace = measure_pace(student, teacher, training, recipe, device)
        recipe = _paced(recipe, minutes, processes.on_first(lambda: pace), console)
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
    run = _Run(teacher, recipe, device, output, resume, identity, validation, console, limit, track)
    with _resumable(output, recipe, resume=resume, streamed=training.streamed, limit=limit):
        if layers == "auto":
            same = open_data(spec, preprocessing, "train")  # not augmented
            student, result, plan, validation = _hybrid(run, training, same, max_drop)
        else:
            (student, result), plan = run.distill(training, layers), None
        return processes.on_first(lambda: _publish(run, name, student, result, plan, validation, data, max_drop))


def _publish(
    run: _Run,
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
        student.castling = castling = plan.explain(castling)  # type: ignore[assignment]
    accuracy, drop, judged = _accuracy(teacher, student, data, validation)
    images = some_images(validation, CERTIFIED_IMAGES)
    trained = student.to("cpu")
    deploy, certificate = certify(trained, images)
    teacher.to("cpu")
    summary = {
        "model": name,
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
    if max_drop is not None and drop is not None and drop > max_drop:
        rejected = output / bundle.REJECTED
        bundle.save(deploy, rejected, **keep, force=True)
        hint = "castle fewer layers with --layers auto, " if plan is None else ""
        raise CheckFailed(
            f"the castled model lost {drop:.2f} points on {judged} images, --max-drop "
            f"{max_drop:g} is allowed; it is in {rejected}, not published: train longer with --steps and "
            f"--force, {hint}or allow more and add --resume"
        )
    bundle.save(deploy, output, **keep, trained=trained, force=True)
    return bundle.read_summary(output)


def _task(teacher: Any, name: str | None, model: str) -> Task:
    """The task of that name, or the one that the teacher is for; ModelError for one that it can't be for."""
    if name is None:
        return task_of(teacher)
    task = find_task(name)
    if task.output == "features" and not task.matches(teacher):
        teacher.reset_classifier(0)
    if not task.matches(teacher):
        raise ModelError(f"{model} has no classes to {name}; leave out --task, or give --num-classes")
    return task


def _begun(output: Path) -> dict[str, Any] | None:
    """The fingerprint of an interrupted run in `output`, or of its plan; None where there is neither."""
    if saved_step(output / bundle.STATE) is not None:
        return saved_fingerprint(output / bundle.STATE)
    return Plan.load(output / bundle.PLAN).fingerprint if (output / bundle.PLAN).is_file() else None


def _paced(recipe: Recipe, minutes: float | None, pace: Pace, console: Console | None) -> Recipe:
    """The recipe with as many steps as `minutes` hold, and a line that says how long it will take."""
    if minutes is not None:
        recipe = recipe.override(f"distill.steps={pace.steps(minutes, recipe.distill)}")
    if console is not None:
        console.print(pace.explain(recipe.distill))
    return recipe


def default_recipe(data: str | None) -> str:
    """The shipped recipe for a conversion with or without data."""
    return "datafree" if data in (None, GENERATED) else "castling"


@dataclass(frozen=True)
class _Run:
    """What every distillation of one conversion shares. `planning` is how many images were set aside."""

    teacher: nn.Module
    recipe: Recipe
    device: str
    output: Path
    resume: bool
    identity: dict[str, Any]
    validation: ImageData
    console: Console | None
    limit: Limit
    track: str | None
    planning: int = 0

    @cached_property
    def probe(self) -> Probe:
        """Accuracy during the runs; costs up to a tenth of the training."""
        usable, _ = task_of(self.teacher).usable(self.validation, self.teacher)
        images = self.recipe.distill.steps * self.recipe.distill.batch_size // 50
        return Probe(self.teacher.to(self.device), usable, min(max(images, EVAL_BATCH), PROBED_IMAGES))

    def distill(
        self, data: ImageData, layers: str, aligned: Mapping[str, Tensor] | None = None, until: int | None = None
    ) -> tuple[nn.Module, DistillResult]:
        """Castle a copy of the teacher and distil it, or go on with the interrupted run in `output`.

        With layers that were `aligned` before the first phase is left out; `until` ends the run earlier.
        """
        student = castle(self.teacher.cpu(), self.recipe, layers)
        if aligned is not None:
            adopt_layers(student, aligned)
        choice = student.castling.choice  # type: ignore[union-attr]
        workdir, state = self.output / bundle.TRAIN, self.output / bundle.STATE

        def begun() -> bool:
            if self.planning and saved_step(state) is not None:
                saved = saved_fingerprint(state)
                if saved.get("planning") == self.planning and saved["layers"] != choice:
                    shutil.rmtree(state)  # of a plan that was carried out, and lost too much
            return self.resume and saved_step(state) is not None

        result = distill(
            student,
            self.teacher,
            data,
            self.recipe,
            device=self.device,
            workdir=workdir,
            resume=processes.on_first(begun),
            identity={**self.identity, "layers": choice, "planning": self.planning},
            progress=Progress(workdir, self.console),
            probe=self.probe,
            start=0 if aligned is None else self.recipe.distill.aligned,
            until=until,
            max_minutes=self.limit.left(),
            track=self.track,
        )
        return student, result


def _hybrid(
    run: _Run, training: ImageData, same: ImageData, max_drop: float | None
) -> tuple[nn.Module, DistillResult, Plan, ImageData]:
    """Carry out plans until one meets the budget; `same` are the training images, not augmented.

    Returns:
        What was distilled, its plan, and the validation images that were not planned with.
    """
    assert max_drop is not None
    if run.validation.held_out and not run.validation.streamed:
        rest, chosen = set_aside(run.validation, VALIDATION_SHARE)
        planning, validation = run.validation.only(chosen), run.validation.only(rest)
    else:
        rest, chosen = set_aside(training, TRAINING_SHARE)
        planning, training, validation = same.only(chosen), training.only(rest), run.validation
    run = replace(run, planning=len(planning), validation=validation)
    task = task_of(run.teacher)
    planning, _ = task.usable(planning, run.teacher)
    file = run.output / bundle.PLAN
    identity = fingerprint(run.recipe, run.teacher, {**run.identity, "planning": run.planning})
    alone = run.recipe.distill.aligned

    def keep(plan: Plan) -> None:
        plan.save(file)
        shutil.rmtree(run.output / bundle.STATE, ignore_errors=True)

    begun = processes.on_first(lambda: Plan.load(file) if run.resume and file.is_file() else None)
    if begun is not None:
        plan = replace(begun, max_drop=max_drop)
        refuse_changes(plan.fingerprint, identity)
        aligned = _read_layers(run.output / bundle.ALIGNED) if alone else None
    else:
        aligned = _aligned(run, training) if alone else None
        images = some_images(planning, kept(SENSITIVITY_IMAGES, Preprocessing.of(run.teacher)))
        found = processes.on_first(lambda: _sensitivities(run, images, aligned))
        plan = Plan(
            max_drop, len(planning), task.lost_in(planning), found, fingerprint=identity, unit=task.distance
        )  # fmt: skip
        processes.on_first(lambda: keep(plan))

    def drop(outcome: tuple[nn.Module, DistillResult]) -> float:
        measured = task.measure(_outputs(run.teacher, outcome[0]), planning)
        return task.lost(measured["teacher"], measured["castled"])

    student, result = search(
        plan,
        lambda layers: run.distill(training, layers, aligned),
        lambda outcome: processes.on_first(lambda: drop(outcome)),
        lambda plan: processes.on_first(lambda: keep(plan)),
        run.console,
    )
    return student, result, plan, validation


def _aligned(run: _Run, training: ImageData) -> dict[str, Tensor]:
    """Every layer after the first phase, which is the same for all plans; also kept in the output folder."""
    if run.console is not None:
        run.console.print("layers=auto: first every layer alone, once for all plans")
    student, _ = run.distill(training, "all", until=run.recipe.distill.aligned)
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


def _sensitivities(run: _Run, images: Tensor, aligned: Mapping[str, Tensor] | None) -> list[Sensitivity]:
    found, unit = [], task_of(run.teacher).distance
    for entry in sensitivities(run.teacher.to(run.device), run.recipe, images, aligned):
        found.append(entry)
        if run.console is not None:
            run.console.print(
                f"layers=auto: block {entry.block} castled alone diverges by {entry.divergence:.3g} {unit}"
            )
    return found


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


def _check_output(output: Path, *, planned: bool, resume: bool, force: bool) -> None:
    if resume and force:
        raise BundleError("--resume and --force contradict each other; --force starts over")
    if not resume:
        bundle.refuse_in_the_way(output, force=True)  # what is not ours; nothing in it is touched
    bundle.recover_from_kill(output)
    if not resume:
        bundle.refuse_in_the_way(output, force=force)
        return
    plan = planned and (output / bundle.PLAN).is_file()
    if saved_step(output / bundle.STATE) is None and not plan:
        done = (output / bundle.CONFIG).is_file()
        what = f"{output} is finished" if done else f"{output} holds no interrupted run"
        hint = " or use --force" if done or (output / bundle.REJECTED).exists() else ""
        raise BundleError(f"nothing to resume: {what}; leave out --resume{hint}")


@contextmanager
def _resumable(output: Path, recipe: Recipe, *, resume: bool, streamed: bool, limit: Limit) -> Iterator[None]:
    """Around a run in `output/train`: what stops it leaves a state to resume from, or nothing at all. That of a run on
    `streamed` data is no more than an account of it, until the last step is done."""
    workdir, state = output / bundle.TRAIN, output / bundle.STATE
    existed = output.exists()

    def begin() -> None:
        if not resume:
            shutil.rmtree(state, ignore_errors=True)
            shutil.rmtree(output / bundle.REJECTED, ignore_errors=True)
            _forget_plan(output)
            _forget_metrics(output)
        workdir.mkdir(parents=True, exist_ok=True)

    try:
        with writing_errors(output):
            processes.on_first(begin)
            yield
    except BaseException as error:
        step, plan = saved_step(state), output / bundle.PLAN
        if processes.is_first():
            _tidy(output, step, error, existed=existed)
        goes_on = not streamed or step == recipe.distill.steps
        if isinstance(error, KeyboardInterrupt | Interrupted):
            what = f"stopped by --max-minutes {limit.minutes:g}" if isinstance(error, Interrupted) else "interrupted"
            raise Interrupted(_interrupted(what, step, recipe.distill.steps, plan.is_file(), goes_on)) from None
        if isinstance(error, ModelError | RecipeError) and (step is not None or plan.is_file()):
            raise type(error)(f"{error}, and start over with --force") from None
        if isinstance(error, OutputError | DataError) and goes_on and (step is not None or plan.is_file()):
            where = f"step {step}" if step is not None else "the last plan"
            raise type(error)(f"{error}; then go on from {where} with the same command and --resume") from None
        raise


def _forget_metrics(output: Path) -> None:
    (output / bundle.TRAIN / bundle.METRICS).unlink(missing_ok=True)
    for name in bundle.TRACKED:
        shutil.rmtree(output / name, ignore_errors=True)


def _tidy(output: Path, step: int | None, error: BaseException, *, existed: bool) -> None:
    """Leave nothing of a run that has saved nothing."""
    workdir, plan = output / bundle.TRAIN, output / bundle.PLAN
    stopped = isinstance(error, KeyboardInterrupt | Interrupted | CheckFailed)
    if step is None and not stopped and _without_trials(plan):
        _forget_plan(output)
    if step is None and not plan.is_file() and workdir.is_dir():
        _forget_metrics(output)
        _remove_empty(workdir)
        if not existed:
            _remove_empty(output)


def _forget_plan(output: Path) -> None:
    for name in (bundle.PLAN, bundle.ALIGNED):
        (output / name).unlink(missing_ok=True)


def _without_trials(plan: Path) -> bool:
    return plan.is_file() and not Plan.load(plan).trials


def _interrupted(what: str, step: int | None, steps: int, planned: bool, goes_on: bool) -> str:
    if step is None and not planned:
        return f"{what} before a step could be saved; nothing was written"
    where = f"after step {step} of {steps}" if step is not None else "before a step of this plan could be saved"
    if not goes_on:
        return f"{what} {where}; a run on a stream can't be resumed exactly: start over with --force"
    return f"{what} {where}; go on with the same command and --resume"


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _outputs(teacher: nn.Module, student: nn.Module) -> dict[str, Outputs]:
    """Both on the student's device, for images from anywhere."""
    device = next(student.parameters()).device
    teacher.to(device)
    return {"teacher": lambda x: teacher(x.to(device)), "castled": lambda x: student(x.to(device))}


def _accuracy(
    teacher: Any, student: nn.Module, data: str | None, validation: ImageData
) -> tuple[dict[str, Any], float | None, int]:
    """What the task measures where there are real images, else a plain `unmeasured`; the points lost; on how many."""
    if data is None:
        return {"measured": False, "why": "aligned on generated images: no --data was given"}, None, 0
    task = task_of(teacher)
    opened, unmeasured = task.usable(validation, teacher)
    results = task.measure(_outputs(teacher, student), opened)
    accuracy = {
        "measured": unmeasured is None,
        "why": unmeasured,
        "held_out": opened.held_out,
        **task.account(results),
    }
    return accuracy, task.lost(results["teacher"], results["castled"]), results["castled"].images
