"""How long a conversion takes on this machine, from a few of its own steps."""

from __future__ import annotations

import copy
import time
from bisect import bisect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..data.preprocessing import Preprocessing
from ..errors import RecipeError
from ..recipe import SettledDistill, SettledRecipe
from ..tasks import task_of
from .guard import steps_of_trial
from .loop import distill
from .progress import Progress

TIMED = 2
"""Steps of each phase that are timed, after a first one that is not."""
WORTH_TIMING = 50
"""A run of fewer steps is over before it has been timed."""


@dataclass(frozen=True)
class Pace:
    """Seconds a step takes, in each phase; None for a phase that the recipe does not have.

    `look` is how long the student runs one image of the size that it is measured on.
    """

    align: float | None
    student: float | None
    look: float = 0.0

    def step(self, config: SettledDistill) -> float:
        """Seconds of a step, on the mean over both phases."""
        share = config.align.share
        return share * (self.align or 0.0) + (1 - share) * (self.student or 0.0)

    def minutes(self, config: SettledDistill, looked_at: float = 0.0) -> float:
        """Of the whole run: its steps, one trial of the second phase's rate, and the student looked at on the way, at
        so many images for every step."""
        whole = config.steps - config.aligned if config.optimizer.guard else 0
        trial = steps_of_trial(config.batch_size, whole) * (self.student or 0.0)
        return (config.steps * (self.step(config) + looked_at * self.look) + trial) / 60

    def steps(self, minutes: float, config: SettledDistill, looked_at: float = 0.0) -> int:
        """How many steps fit into `minutes`.

        Raises:
            RecipeError: none does.
        """

        def taken(steps: int) -> float:
            return self.minutes(config.model_copy(update={"steps": steps}), looked_at)

        count = bisect(range(1, int(60 * minutes / self.step(config)) + 1), minutes, key=taken)
        if count < 1:
            raise RecipeError(
                f"one step takes {60 * taken(1):.3g} s here, more than --minutes {minutes:g}; give more, or make "
                "steps smaller with --set distill.batch_size=1"
            )
        return count

    def explain(self, config: SettledDistill, looked_at: float = 0.0) -> str:
        """In one line, for people."""
        parts = [
            f"{seconds:.2f} s a step {what}"
            for seconds, what in ((self.align, "of layers alone"), (self.student, "of the whole student"))
            if seconds is not None
        ]
        return (
            f"{config.steps} steps of {config.batch_size} images: about {self.minutes(config, looked_at):.1f} min here "
            f"({', '.join(parts)})"
        )


def measure_pace(
    student: nn.Module, teacher: nn.Module, data: Any, recipe: SettledRecipe, device: str | None = None
) -> Pace:
    """Time a few steps of each phase, data loading included, on copies of a castled `student`."""
    trained = student

    def timed(share: float, echo: int = 1) -> float:
        few = recipe.override(
            f"distill.steps={1 + TIMED}", f"distill.align.share={share}", f"distill.align.echo={echo}",
            "distill.optimizer.guard=false", "distill.refit=false",
        )  # fmt: skip
        stops = _Stops()
        nonlocal trained
        trained = copy.deepcopy(student)
        distill(trained, teacher, data, few, device=device, progress=stops)
        return (stops.times[-1] - stops.times[0]) / TIMED

    def aligning() -> float:
        """The teacher's forward is part of one step in so many."""
        first, echo = timed(1.0), recipe.distill.align.echo
        again = timed(1.0, echo=1 + TIMED) if echo > 1 else first
        return again + max(0.0, first - again) / echo

    share = recipe.distill.align.share
    align, whole = aligning() if share > 0 else None, timed(0.0) if share < 1 else None
    return Pace(align, whole, _look(trained, Preprocessing.of(teacher).input_size, recipe.distill.batch_size))


@torch.no_grad()
def _look(student: nn.Module, size: tuple[int, int, int], count: int) -> float:
    """Seconds for one of `count` images."""
    images = torch.zeros(count, *size, device=next(student.parameters()).device)
    task, ends = task_of(student), []
    for _ in range(1 + TIMED):
        tree_map_only(Tensor, Tensor.cpu, task.run(student, images))
        ends.append(time.monotonic())
    return (ends[-1] - ends[0]) / TIMED / count


class _Stops(Progress):
    """Remembers when each step ended."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def step(self, *, step: int, phase: str, images: int, **metrics: Any) -> None:
        self.times.append(time.monotonic())
