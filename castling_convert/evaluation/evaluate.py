"""Evaluate a bundle or an artifact beside its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import bundle
from ..data.preprocessing import Preprocessing
from ..data.spec import open_data
from ..errors import CastlingError
from ..families import family_of
from ..tasks import Outputs, Score, task_of
from .teacher import teacher_of


def evaluate(
    target: Path,
    data: str,
    *,
    teacher: str | None = None,
    teacher_weights: Path | None = None,
    limit: int | None = None,
    console: Console | None = None,
) -> tuple[Mapping[str, Score], list[str]]:
    """The scores of teacher (first, where it can be had) and castled model on the validation part of `data`, at the
    image size of the artifact where `target` is one.

    Returns:
        The results by name, and notes on what could not be measured: labels of other classes than the
        model's, a teacher that the bundle names and that can't be loaded. A teacher that was asked for
        and can't be loaded is an error.

    Raises:
        CastlingError: the target, the data, or a teacher that was asked for is not usable.
    """
    from ..verification.target import open_target

    path, runner = open_target(target)
    folded: Any = bundle.load(path)
    task = task_of(folded)
    castled: Outputs = runner if runner is not None else partial(task.run, folded)
    preprocessing = Preprocessing.of(folded)
    _, height, width = preprocessing.input_size if runner is None else runner.signature.input_size
    opened, unmeasured = task.usable(open_data(data, preprocessing.at((height, width)), "validation"), folded)
    try:
        original = teacher_of(path, folded, teacher, teacher_weights, console)
        if preprocessing.input_size[1:] != (height, width):
            family_of(original).resize_(original, (height, width))
    except CastlingError as error:
        if teacher is not None or teacher_weights is not None or task.output == "features":
            raise  # of features nothing is known without a teacher
        models, notes = {"castled": castled}, [f"without the teacher: {error}"]
    else:
        models, notes = {"teacher": partial(task.run, original), "castled": castled}, []
    scores = task.measure(models, opened, limit)
    unmeasured = unmeasured or task.nothing_found(scores)
    return scores, [*notes, *([unmeasured] if unmeasured else [])]
