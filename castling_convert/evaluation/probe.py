"""A student followed in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..data.loaders import count_in_memory, some_batches
from ..data.preprocessing import Preprocessing
from ..data.spec import ImageData
from ..tasks import task_of

PROBED_IMAGES = 500


class Probe:
    """What the task follows of a student, on a fixed handful of images, against the teacher.

    The images are spread over the whole of `data` and kept in memory, as many as `data.loaders.count_in_memory` allows.
    Called with a student whose masks are closed, in eval mode. Returns what `Task.followed` does.
    """

    def __init__(self, teacher: nn.Module, data: ImageData, images: int = PROBED_IMAGES) -> None:
        device = next(teacher.parameters()).device
        batches = some_batches(data, count_in_memory(images, Preprocessing.of(teacher)))
        self.task = task_of(teacher)
        self.images = [x for x, _ in batches]
        self.labels = torch.cat([y for _, y in batches]) if data.classes is not None else None
        with torch.no_grad():
            self.expected = self.task.joined([_on_cpu(self.task.run(teacher, x.to(device))) for x in self.images])

    @torch.no_grad()
    def __call__(self, student: nn.Module) -> dict[str, float]:
        device = next(student.parameters()).device
        outputs = self.task.joined([_on_cpu(self.task.run(student, x.to(device))) for x in self.images])
        return self.task.followed(outputs, self.expected, self.labels)


def _on_cpu(output: Any) -> Any:
    return tree_map_only(Tensor, Tensor.cpu, output)
