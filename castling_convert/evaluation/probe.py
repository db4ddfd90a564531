"""A student followed in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..data.loaders import count_in_memory, some_batches
from ..data.preprocessing import Preprocessing
from ..data.spec import ImageData
from ..recipe import SettledRecipe
from ..tasks import task_of
from ..tasks.base import PLACES_AT_ONCE

FEWEST, ENOUGH, MOST = 8, 32, 500
"""Images of a probe."""
TIMES = 2, 20
"""In a run."""


def looked_at(recipe: SettledRecipe, teacher: nn.Module) -> float:
    """Images for every step that a student of `teacher` is looked at: one for five that are learned from, counted by
    their area; training images may be smaller than those that the model is measured on."""
    _, height, width = Preprocessing.of(teacher).input_size
    sizes = recipe.data.sizes
    area = 1.0 if sizes is None else sum(size**2 for size in sizes) / (len(sizes) * height * width)
    return area * recipe.distill.batch_size / 5


def spread(recipe: SettledRecipe, teacher: nn.Module) -> tuple[int, int]:
    """How often a student of `teacher` is probed in a run, and on how many images: `looked_at` in all, within limits of
    both."""
    images = int(looked_at(recipe, teacher) * recipe.distill.steps)
    times = min(max(images // ENOUGH, TIMES[0]), TIMES[1])
    return times, min(max(images // times, FEWEST), MOST)


class Probe:
    """What the task follows of a student, on a fixed handful of images, against the teacher.

    The images are spread over the whole of `data` and kept in memory, as many as `data.loaders.count_in_memory` allows.
    Called with a student whose masks are closed, in eval mode. Returns what `Task.followed` does.
    """

    def __init__(self, teacher: nn.Module, data: ImageData, images: int = MOST) -> None:
        batches = some_batches(data, count_in_memory(images, Preprocessing.of(teacher)), PLACES_AT_ONCE)
        labelled = data.classes is not None
        self.task = task_of(teacher)
        self.batches = [(x, y if labelled else None) for x, y in batches]
        self.labels = torch.cat([y for _, y in batches]) if labelled else None
        self.expected = self._of(teacher)

    def __call__(self, student: nn.Module) -> dict[str, float]:
        return self.task.followed(self._of(student), self.expected, self.labels)

    @torch.no_grad()
    def _of(self, model: nn.Module) -> Any:
        device = next(model.parameters()).device
        outputs = ((_on_cpu(self.task.run(model, x.to(device))), y) for x, y in self.batches)
        return self.task.joined([self.task.reduced(output, y) for output, y in outputs])


def _on_cpu(output: Any) -> Any:
    return tree_map_only(Tensor, Tensor.cpu, output)
