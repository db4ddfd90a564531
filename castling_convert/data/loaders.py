"""Batches of a data set: for training, resumable to the image, and for evaluation, in order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import DataError
from .preprocessing import Preprocessing
from .randomness import randomness_of
from .spec import ImageData

EVAL_BATCH = 64
IN_MEMORY_BYTES = 2**28
"""How much of images is kept in memory for as long as a run lasts."""


class Resumable(Sampler[tuple[int, int]]):
    """Draws `start` to `samples`, each with its index: a fresh seeded permutation every epoch.

    A resumed run draws what the interrupted one would have drawn, without reading what it has seen. `part`, one of
    several processes and their number, draws its own of every `batch`.
    """

    def __init__(
        self, size: int, samples: int, start: int, seed: int, batch: int = 1, part: tuple[int, int] = (0, 1)
    ) -> None:
        self.size, self.samples, self.start, self.seed = size, samples, start, seed
        self.batch, self.part = batch, part

    def __len__(self) -> int:
        return max(0, self.samples - self.start) // self.part[1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for draw in range(self.start, self.samples):
            epoch, place = divmod(draw, self.size)
            if place == 0 or draw == self.start:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
            if draw % self.batch * self.part[1] // self.batch == self.part[0]:
                yield draw, int(order[place])


class Draws(Dataset[tuple[Tensor, int]]):
    """A data set by draw and index: how an image is augmented depends on the seed and its draw alone, and neither on
    what was drawn before nor on which process reads it."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int]:
        draw, index = place
        with randomness_of(self.seed, draw):
            return self.dataset[index]


class StreamLoader(DataLoader[Any]):
    """Batches of a stream, which timm shuffles in another order for every pass."""

    passes = 0

    def __iter__(self) -> Any:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.passes)
        self.passes += 1
        return super().__iter__()


def training_loader(
    data: ImageData,
    batch_size: int,
    steps: int,
    start: int,
    seed: int,
    workers: int,
    part: tuple[int, int] = (0, 1),
) -> Any:
    """A loader of exactly `steps - start` batches of [B, C, H, W] and labels; -1 is no label. A stream is read from its
    beginning, a pass at a time.

    Args:
        part: of every batch, and of how many; the parts put together in their order are the batches of one process.

    Raises:
        DataError: a stream, which can't be read in parts.
    """
    # Its own generator: starting the loader must not move the random state that a resumed run restores.
    generator = torch.Generator().manual_seed(seed)
    if data.streamed and part[1] > 1:
        raise DataError(
            f"{data.spec} is a stream, of which {part[1]} processes can't read a part each; give a folder of images, "
            "or use one process"
        )
    if data.streamed:
        return StreamLoader(data.dataset, batch_size, num_workers=workers, drop_last=True, generator=generator)
    sampler = Resumable(
        len(data), samples=batch_size * steps, start=batch_size * start, seed=seed, batch=batch_size, part=part
    )
    return DataLoader(
        Draws(data.dataset, seed), batch_size // part[1], sampler=sampler, num_workers=workers, drop_last=True,
        generator=generator,
    )  # fmt: skip


def eval_loader(data: ImageData, batch_size: int = EVAL_BATCH, workers: int = 0) -> Any:
    """The whole data set in order."""
    generator = torch.Generator()  # its own, so that an evaluation during training changes nothing there
    return DataLoader(data.dataset, batch_size, num_workers=workers, generator=generator)


def some_images(data: ImageData, count: int) -> Tensor:
    """`count` images, [count, C, H, W], spread evenly over the data set (fewer if it is smaller)."""
    return torch.cat([images for images, _ in some_batches(data, count)])


def count_in_memory(count: int, preprocessing: Preprocessing) -> int:
    """`count`, or as many images as IN_MEMORY_BYTES hold, at least one."""
    return max(1, min(count, IN_MEMORY_BYTES // (4 * math.prod(preprocessing.input_size))))


def some_batches(data: ImageData, count: int, batch_size: int = EVAL_BATCH) -> list[tuple[Tensor, Tensor]]:
    """As `some_images`, in batches of images and labels."""
    if data.streamed:
        batches = itertools.islice(eval_loader(data, min(count, batch_size)), math.ceil(count / batch_size))
        return [(images, labels) for images, labels in batches]
    indices = np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)
    chosen = data.only(list(dict.fromkeys(indices.tolist())))
    return [(images, labels) for images, labels in eval_loader(chosen, batch_size)]
