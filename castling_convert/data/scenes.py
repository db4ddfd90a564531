"""Generated scenes for dense tasks: objects on a background, with a label for every pixel and a box for every object.

One to three objects of four kinds lie on a smooth, coloured and grainy background. Their colours and sizes are random,
so a kind is known by its shape alone. An object may cover up to half of another, never more: one that would is not
drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..recipe import DataConfig
from .preprocessing import Labels
from .targets import boxes_at, mask_at

SIZE = 96
KINDS = ("disc", "square", "triangle", "ring")
OBJECTS = 3
"""At most."""
SMALLEST, LARGEST = 20, 44
"""Diameters, in pixels."""
COVERED = 0.5
"""The largest part of an object that others may cover."""
CONTRAST = 90.0
"""Between an object's colour and the mean of what it covers, as a distance in RGB, of 442."""
NOISE = 8.0
"""Standard deviation of the noise on every pixel, of 255."""
WAVES = ((4, 60.0), (16, 14.0))
"""Of the background: points along a side, between which it is smooth, and their standard deviation."""

TRAIN, VALIDATION = 20_000, 200


class Scenes(Dataset[tuple[Tensor, Tensor | int]]):
    """The scenes, 96x96 pixels in colour; scene i is always the same, and no part shares one with another.

    Beside an image stands its mask, [H, W] in int64, or its boxes, [OBJECTS, 5] in float32, both at `size`, (H, W),
    or, where `wanted` is None, -1.
    """

    holds = ("masks", "boxes")

    def __init__(
        self,
        split: str,
        mode: str,
        transform: Callable[[Image.Image], Tensor],
        wanted: Labels | None,
        size: tuple[int, int],
    ) -> None:
        self.part = 0 if split == "train" else 1
        self.count = TRAIN if split == "train" else VALIDATION
        self.mode, self.transform, self.wanted, self.size = mode, transform, wanted, size
        self.classes: tuple[str, ...] = () if wanted is None else KINDS
        if wanted == "masks":
            self.classes = ("background", *KINDS)

    @staticmethod
    def augmentation(asked: DataConfig) -> DataConfig:
        """What was asked for."""
        return asked

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | int]:
        pixels, mask, boxes = scene(np.random.default_rng((self.part, index)))
        image = self.transform(Image.fromarray(pixels).convert(self.mode))
        if self.wanted is None:
            return image, -1
        if self.wanted == "masks":
            return image, mask_at(mask, self.size)
        return image, boxes_at(boxes, (SIZE, SIZE), self.size, OBJECTS)


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One scene, [96, 96, 3] in uint8, its mask, [96, 96] in uint8 with 0 for background and 1 to 4 for KINDS, and
    the boxes of whole objects, covered or not, [n, 5]: x1, y1, x2, y2 in pixels and an index into KINDS."""
    image = _background(rng)
    owner = np.zeros((SIZE, SIZE), np.intp)  # 0, or the number of the object that is seen there
    kinds, areas, seen, boxes = [0], [0], np.zeros(OBJECTS + 1, np.intp), []
    for _ in range(rng.integers(1, OBJECTS + 1)):
        kind = int(rng.integers(len(KINDS)))
        stamp = _stamp(kind, int(rng.integers(SMALLEST, LARGEST + 1)))
        height, width = stamp.shape
        top, left = int(rng.integers(SIZE - height + 1)), int(rng.integers(SIZE - width + 1))
        place = (slice(top, top + height), slice(left, left + width))
        left_of = seen - np.bincount(owner[place][stamp], minlength=OBJECTS + 1)
        if any(left_of[number] < (1 - COVERED) * areas[number] for number in range(1, len(kinds))):
            continue
        image[place][stamp] = _colour(rng, image[place][stamp].mean(0))
        owner[place][stamp] = number = len(kinds)
        seen, area = left_of, int(stamp.sum())
        seen[number] = area
        kinds.append(kind + 1)
        areas.append(area)
        boxes.append([left, top, left + width, top + height, kind])
    image += rng.standard_normal(image.shape, np.float32) * np.float32(NOISE)
    pixels = image.clip(0, 255).astype(np.uint8)
    return pixels, np.array(kinds, np.uint8)[owner], np.array(boxes, np.float64)


def _background(rng: np.random.Generator) -> np.ndarray:
    """[96, 96, 3] in float32."""
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = rng.uniform(50, 205, 3)
    for points, deviation in WAVES:
        smooth = _smooth(points)
        waves = rng.standard_normal((3, points, points), np.float32) * np.float32(deviation)
        image += (smooth @ waves @ smooth.T).transpose(1, 2, 0)
    return image


@cache
def _smooth(points: int) -> np.ndarray:
    """What makes a line of pixels of `points` values, between which it goes like a cosine, [96, points]."""
    place = np.linspace(0, points - 1, SIZE)
    distance = np.abs(place[:, None] - np.arange(points))
    return np.where(distance < 1, (1 + np.cos(np.pi * distance)) / 2, 0).astype(np.float32)


def _colour(rng: np.random.Generator, covered: np.ndarray) -> np.ndarray:
    """Any that stands out from the mean of what it covers."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.square(colour - covered).sum() > CONTRAST**2:
            return colour


@cache
def _stamp(kind: int, diameter: int) -> np.ndarray:
    """Where an object is, [h, w], in the smallest frame around it."""
    y, x = (np.mgrid[0:diameter, 0:diameter] + 0.5) * (2 / diameter) - 1
    radius = np.hypot(y, x)
    shapes = {
        "disc": radius < 1,
        "square": np.maximum(abs(x), abs(y)) < 0.84,
        "triangle": (abs(x) < (y + 1) / 2) & (y < 0.9),
        "ring": (radius < 1) & (radius > 0.55),
    }
    there = shapes[KINDS[kind]]
    return there[np.ix_(there.any(1), there.any(0))]
