"""The whole job: load -> castle -> distill -> fold -> save, one bundle at the end or nothing."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from rich.console import Console
from torch import nn

from . import bundle
from .analysis.accuracy import measure, with_usable_labels
from .analysis.macs import count_macs, count_parameters
from .castle import Castling, castle
from .distill.data import Preprocessing, open_data, some_images
from .distill.loop import distill, make_accelerator
from .distill.progress import Progress
from .distill.state import saved_step
from .errors import BundleError, DataError, Interrupted, OutputError
from .files import require_space, writing_errors
from .fold import certify
from .load import load_model
from .recipe import Recipe

CERTIFIED_IMAGES = 4


def convert(
    model: str | nn.Module,
    output: str | Path,
    *,
    data: str | None = None,
    recipe: Recipe | str = "castling",
    layers: str | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Convert a softmax ViT and write the bundle `output`.

    Args:
        model: a name for `load.load_model`, or a timm model.
        data: a `--data` spec; without it the student is aligned on generated images and its accuracy
            stays unmeasured.
        resume: go on with an interrupted run in `output`. force: replace a bundle in `output`.
        console: where progress goes; silent when left out.
        layers, pretrained, weights, image_size, num_classes, model_args, device: as on the command line.

    Returns:
        What `summary.json` holds.

    Raises:
        CastlingError: bad input; nothing is left half-written.
        Interrupted: Ctrl-C; `output` can be resumed if a step was done.
        CheckFailed: folding was not exact.
    """
    output = Path(output)
    recipe = Recipe.load(recipe) if isinstance(recipe, str) else recipe
    _check_output(output, resume=resume, force=force)
    device = str(make_accelerator(device, recipe.distill.precision).device)
    set_seed(recipe.distill.seed)  # a teacher with random weights is part of the run
    if isinstance(model, str):
        name = model
        source = str(Path(weights).resolve()) if weights else "pretrained" if pretrained else "random"
        teacher = load_model(
            model,
            pretrained=pretrained,
            weights=weights,
            image_size=image_size,
            num_classes=num_classes,
            model_args=model_args,
        )
    else:
        source = "given"
        name = str(getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__))
        teacher = copy.deepcopy(model).eval()
    preprocessing = Preprocessing.of(teacher)
    spec = data or "generated"
    open_data(spec, preprocessing, "train")
    open_data(spec, preprocessing, "validation")
    student = castle(teacher, recipe, layers)
    castling: Castling = student.castling  # type: ignore[assignment]
    require_space(output, 8 * bundle.state_bytes(student))
    identity = {
        "model": f"local-dir:{Path(name[10:]).resolve()}" if name.startswith("local-dir:") else name,
        "weights": source,
        "arguments": {key: str(value) for key, value in (model_args or {}).items()},
        "classes": getattr(teacher, "num_classes", None),
        "data": spec,
        "layers": castling.blocks,
        "input_size": list(preprocessing.input_size),
    }
    workdir = output / bundle.TRAIN
    with _resumable(output, recipe, resume=resume):
        result = distill(
            student,
            teacher,
            spec,
            recipe,
            device=device,
            workdir=workdir,
            resume=resume,
            identity=identity,
            progress=Progress(workdir, console),
        )
        accuracy = _accuracy(teacher, student, data, preprocessing)
        images = some_images(open_data(spec, preprocessing, "validation"), CERTIFIED_IMAGES)
        trained = student.to("cpu")
        deploy, certificate = certify(trained, images)
        teacher.to("cpu")
        summary = {
            "model": name,
            "identity": identity,
            "recipe": recipe.name,
            "distill": asdict(result),
            "accuracy": accuracy,
            "fold": certificate.to_dict(),
            "layers": castling.to_dict()["layers"],
            "macs": {"teacher": count_macs(teacher), "castled": count_macs(deploy)},
            "parameters": {"teacher": count_parameters(teacher), "castled": count_parameters(deploy)},
            "pretrained_weights": identity["weights"] != "random",
        }
        metrics = workdir / bundle.METRICS
        bundle.save(deploy, output, recipe=recipe, summary=summary, metrics=metrics, trained=trained, force=True)
    return summary


def _check_output(output: Path, *, resume: bool, force: bool) -> None:
    if resume and force:
        raise BundleError("--resume and --force contradict each other; --force starts over")
    if not resume:
        bundle.refuse_in_the_way(output, force=force)
        return
    if saved_step(output / bundle.STATE) is None:
        done = (output / bundle.CONFIG).is_file()
        what = f"{output} is finished" if done else f"{output} holds no interrupted run"
        raise BundleError(f"nothing to resume: {what}; leave out --resume" + (" or use --force" if done else ""))


@contextmanager
def _resumable(output: Path, recipe: Recipe, *, resume: bool) -> Iterator[None]:
    """Around a run in `output/train`: what stops it leaves a state to resume from, or nothing at all."""
    workdir, state = output / bundle.TRAIN, output / bundle.STATE
    existed = output.exists()
    try:
        with writing_errors(output):
            if not resume:
                shutil.rmtree(state, ignore_errors=True)
                (workdir / bundle.METRICS).unlink(missing_ok=True)
            workdir.mkdir(parents=True, exist_ok=True)
            yield
    except BaseException as error:
        step = saved_step(state)
        if step is None and workdir.is_dir():
            (workdir / bundle.METRICS).unlink(missing_ok=True)
            _remove_empty(workdir)
            if not existed:
                _remove_empty(output)
        if isinstance(error, KeyboardInterrupt):
            if step is None:
                raise Interrupted("interrupted before a step could be saved; nothing was written") from None
            raise Interrupted(
                f"interrupted after step {step} of {recipe.distill.steps}; go on with the same command and --resume"
            ) from None
        if isinstance(error, OutputError | DataError) and step is not None:
            raise type(error)(f"{error}; then go on from step {step} with the same command and --resume") from None
        raise


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _accuracy(teacher: Any, student: nn.Module, data: str | None, preprocessing: Preprocessing) -> dict[str, Any]:
    """Accuracy where there are labels, agreement where there are real images, else a plain `unmeasured`."""
    if data is None:
        return {"measured": False, "why": "aligned on generated images: no --data was given"}
    opened, unmeasured = with_usable_labels(open_data(data, preprocessing, "validation"), teacher.num_classes)
    device = next(student.parameters()).device
    teacher = teacher.to(device).eval()
    models = {
        "teacher": lambda images: teacher(images.to(device)),
        "castled": lambda images: student(images.to(device)),
    }
    results = measure(models, opened)
    return {
        "measured": unmeasured is None,
        "why": unmeasured,
        "held_out": opened.held_out,
        **{name: result.to_dict() for name, result in results.items()},
    }
