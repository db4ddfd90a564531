"""The output folder of a conversion: locked, checked, left so that the run can go on, or left as it was."""

from __future__ import annotations

import functools
import inspect
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from .. import bundle
from ..distillation import processes
from ..distillation.interrupt import Limit
from ..distillation.state import saved_fingerprint, saved_step
from ..errors import (
    BundleError,
    CheckFailed,
    DataError,
    Interrupted,
    ModelError,
    OutputError,
    RecipeError,
)
from ..files import expanded, locked, writing_errors
from ..planning.hybrid import Plan
from ..recipe import SettledRecipe

P = ParamSpec("P")


R = TypeVar("R")


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """For as long as it runs, no other process works on the same `output`."""
    parameters = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        output = expanded(parameters.bind(*args, **kwargs).arguments["output"])
        with ExitStack() as held:
            processes.on_first(lambda: held.enter_context(locked(output)))
            return function(*args, **kwargs)

    return run


def begun_fingerprint(output: Path) -> dict[str, Any] | None:
    """The fingerprint of an interrupted run in `output`, or of its plan; None where there is neither.

    Raises:
        BundleError: it is damaged, or does not say how many steps the run has.
    """
    if saved_step(output / bundle.STATE) is not None:
        found = saved_fingerprint(output / bundle.STATE)
    elif (output / bundle.PLAN).is_file():
        found = Plan.load(output / bundle.PLAN).fingerprint
    else:
        return None
    began = found.get("distill")
    if not isinstance(began, dict) or not isinstance(began.get("steps"), int):
        raise BundleError(f"the record of the run in {output} is damaged; start over with --force")
    return found


def check_output(output: Path, *, planned: bool, resume: bool, force: bool) -> None:
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
def resumable(output: Path, recipe: SettledRecipe, *, resume: bool, streamed: bool, limit: Limit) -> Iterator[None]:
    """Around a run in `output/train`: what stops it leaves a state to resume from, or nothing at all. That of a run on
    `streamed` data is no more than an account of it, until the last step is done."""
    workdir, state = output / bundle.TRAIN, output / bundle.STATE
    existed = output.exists()

    def begin() -> None:
        if not resume:
            shutil.rmtree(state, ignore_errors=True)
            shutil.rmtree(output / bundle.REJECTED, ignore_errors=True)
            forget_plan(output)
            forget_metrics(output)
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


def forget_metrics(output: Path) -> None:
    (output / bundle.TRAIN / bundle.METRICS).unlink(missing_ok=True)
    for name in bundle.TRACKED:
        shutil.rmtree(output / name, ignore_errors=True)


def _tidy(output: Path, step: int | None, error: BaseException, *, existed: bool) -> None:
    """Leave nothing of a run that has saved nothing."""
    workdir, plan = output / bundle.TRAIN, output / bundle.PLAN
    stopped = isinstance(error, KeyboardInterrupt | Interrupted | CheckFailed)
    if step is None and not stopped and _without_trials(plan):
        forget_plan(output)
    if step is None and not plan.is_file() and workdir.is_dir():
        forget_metrics(output)
        _remove_empty(workdir)
        if not existed:
            _remove_empty(output)


def forget_plan(output: Path) -> None:
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
