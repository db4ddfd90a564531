"""What every distillation of one conversion shares."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from .. import bundle
from ..castling import adopt_layers, castle
from ..data.spec import ImageData
from ..distillation import processes
from ..distillation.interrupt import Limit
from ..distillation.loop import DistillResult, distill
from ..distillation.progress import Progress
from ..distillation.state import saved_fingerprint, saved_step
from ..evaluation.probe import Probe, spread
from ..recipe import SettledRecipe
from ..tasks import Outputs, task_of


@dataclass(frozen=True)
class Run:
    """What every distillation of one conversion shares. `planning` is how many images were set aside."""

    teacher: nn.Module
    recipe: SettledRecipe
    device: str
    output: Path
    resume: bool
    identity: dict[str, Any]
    validation: ImageData
    console: Console | None
    limit: Limit
    track: str | None
    planning: int = 0
    probe: Probe | None = None
    probes: int = 0

    def followed(self) -> Run:
        """With a probe of accuracy during the runs, on the validation images."""
        usable, _ = task_of(self.teacher).usable(self.validation, self.teacher)
        times, images = spread(self.recipe, self.teacher)
        return replace(self, probe=Probe(self.teacher.to(self.device), usable, images), probes=times)

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
            probes=self.probes,
            start=0 if aligned is None else self.recipe.distill.aligned,
            until=until,
            max_minutes=self.limit.left(),
            track=self.track,
        )
        return student, result


def outputs_of(teacher: nn.Module, student: nn.Module) -> dict[str, Outputs]:
    """Both on the student's device, for images from anywhere."""
    device = next(student.parameters()).device
    teacher.to(device)
    task = task_of(teacher)
    return {
        "teacher": lambda x: task.run(teacher, x.to(device)),
        "castled": lambda x: task.run(student, x.to(device)),
    }
