"""Tasks: what a model is for, one small file each behind a registry.

A new task is one new file with a subclass of `Task` and one line in `TASKS`.
"""

from __future__ import annotations

from torch import nn

from ..errors import ModelError, did_you_mean
from .base import Outputs, Score, Task
from .classify import Accuracy, Classify
from .detect import Detect, Detections
from .features import Features, Likeness
from .segment import Segment, Segmentation

TASKS: dict[str, Task] = {task.name: task for task in (Classify(), Features(), Segment(), Detect())}
"""The last that knows a model is asked first, so that a special case can be added after the general one."""

__all__ = [
    "TASKS",
    "Accuracy",
    "Classify",
    "Detect",
    "Detections",
    "Features",
    "Likeness",
    "Outputs",
    "Score",
    "Segment",
    "Segmentation",
    "Task",
    "find_task",
    "task_of",
    "task_of_output",
]


def task_of(model: nn.Module) -> Task:
    """What `model` is for.

    Raises:
        ModelError: no task knows it.
    """
    for task in reversed(TASKS.values()):
        if task.matches(model):
            return task
    raise ModelError(f"{type(model).__name__} is for none of the tasks known here: {', '.join(TASKS)}")


def task_of_output(name: str) -> Task:
    """The task whose artifacts call their output so; classification where an artifact does not say."""
    return next((task for task in TASKS.values() if task.output == name), TASKS["classify"])


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ModelError: there is none.
    """
    if name not in TASKS:
        raise ModelError(f"no task '{name}'{did_you_mean(name, TASKS) or ';'} there are {', '.join(TASKS)}")
    return TASKS[name]
