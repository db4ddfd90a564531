"""The first phase: every castled layer alone, on what its teacher's layer received and gave.

A third of a step is the teacher's forward, so its batches are met more than once (data echoing: Choi et al., "Faster
Neural Network Training with Data Echoing", arXiv 1907.05550): some are kept with all that the teacher made of them,
and learned from `times` over in an order of chance before the next are read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..castling import castled_layers
from ..families import family_of
from ..recipe import SettledDistill
from .losses import Taps, layer_error

HELD_BYTES = 2**30
"""How much of the teacher's activations is kept; one batch at least."""
HELD_BATCHES = 32
CLIP = 1.0
"""Largest norm of one layer's gradient."""


@dataclass(frozen=True)
class Echo:
    """Which batch of the data every step of the first phase learns from. Pure functions of the step, so that a resumed
    run needs nothing that was kept.

    Attributes:
        steps: of the phase. times: how often each batch is met. held: batches in memory at once.
    """

    steps: int
    times: int
    held: int
    seed: int = 0

    @classmethod
    def of(cls, config: SettledDistill, student: nn.Module, steps: int) -> Echo:
        """For `steps` of layers alone; as many batches are kept as HELD_BYTES hold."""
        numbers = sum(2 * layer.numbers for _, layer in castled_layers(student))
        fitting = HELD_BYTES // (4 * config.batch_size * numbers)
        times = config.align.echo
        return cls(steps, times, 1 if times == 1 else max(1, min(HELD_BATCHES, fitting)), config.seed)

    @property
    def part(self) -> int:
        """Steps between two readings."""
        return self.times * self.held

    @property
    def batches(self) -> int:
        """How many the whole phase reads."""
        full, rest = divmod(self.steps, self.part)
        return full * self.held + math.ceil(rest / self.times)

    def first_batch(self, step: int) -> int:
        """Where to read on from for any step of a run, counted from zero, when nothing is kept."""
        return step // self.part * self.held if step < self.steps else self.batches + step - self.steps

    def order(self, part: int) -> list[int]:
        """Which of its batches every step of a part learns from."""
        steps = min(self.part, self.steps - part * self.part)
        count = math.ceil(steps / self.times)
        rng = np.random.default_rng((self.seed, part))
        orders = [rng.permutation(count) for _ in range(math.ceil(steps / count))]
        return [int(place) for place in np.concatenate(orders)[:steps]]


@dataclass(frozen=True)
class Lesson(Taps):
    """What the teacher's layers received and gave for so many `images`, of `size` (H, W)."""

    images: int = 0
    size: tuple[int, int] = (0, 0)


class Lessons:
    """What the teacher's layers received and gave, for every step of the first phase."""

    def __init__(self, teacher: nn.Module, softmax: Taps, echo: Echo, accelerator: Accelerator) -> None:
        self.teacher, self.softmax, self.echo, self.accelerator = teacher, softmax, echo, accelerator
        self.part = -1
        self.order: list[int] = []
        self.held: list[Lesson] = []
        self.images = torch.empty(0)
        """Of the lesson that was made last."""
        self.share = self.early = 0.0
        """Seconds that the lessons of a part took, for each of its steps; and how many of the last step's were for
        others, or below zero how many an earlier one has taken for it."""

    def at(self, step: int, batches: Iterator[Tensor]) -> Lesson:
        """Of one batch, for a step of the phase; `batches` stand at `Echo.first_batch` of the first one asked for."""
        part, place = divmod(step, self.echo.part)
        self.early = -self.share
        if part != self.part:
            started = time.monotonic()
            self.part, self.order = part, self.echo.order(part)
            self.held.clear()  # before the next are made
            self.held += [self._taught(next(batches)) for _ in range(max(self.order) + 1)]
            took = time.monotonic() - started
            self.share = took / len(self.order)
            self.early = took - self.share
        return self.held[self.order[place]]

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Lesson:
        self.images = images
        count, _, height, width = images.shape
        with self.accelerator.autocast():
            self.teacher(images)
        return Lesson(dict(self.softmax.inputs), dict(self.softmax.outputs), count, (height, width))


def align_step(
    student: nn.Module, lesson: Lesson, accelerator: Accelerator
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of every castled layer alone; its loss, its parts, and each layer's.

    One layer after the other, so that what is kept for the gradients is one layer's.
    """
    layers = {}
    plain = accelerator.unwrap_model(student)
    family_of(plain).see_(plain, lesson.size)
    for name, layer in castled_layers(student):
        with accelerator.autocast():
            inputs, more = lesson.inputs[name]
            error = layer_error(layer, layer(*inputs, **more), lesson.outputs[name])
        accelerator.backward(error)
        layers[name] = error.detach()
    loss = torch.stack(list(layers.values())).mean()
    return loss, {"attention": loss}, layers
