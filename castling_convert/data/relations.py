"""A generated data set that linear attention finds hard: the label lies in a relation between two objects.

Every scene is a 4x4 board of 8x8-pixel cells. One of them holds a ring. Exactly one other object, at
least two cells away, has the ring's texture, and the label is that object's shape; the others are
distractors, whose textures are all different. A model has to find the ring, compare its texture with
every other object's, and read the shape of the one that matches: a lookup by content, which softmax
does with one sharp head and a kernel of low rank does not.

With 4x4 patches (65 tokens with a class token) a ViT of width 64 and depth 4 learns it; see `testbeds`.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..recipe import DataConfig

CELL, SIDE = 8, 4
SIZE = CELL * SIDE
SHAPES = ("disc", "square", "triangle", "cross")
OBJECTS = 6
"""Objects beside the ring."""
HUES = 6
"""Each hue comes with horizontal and with vertical stripes: 12 textures."""
NOISE = 12.0
"""Standard deviation of the noise on every pixel, of 255."""

TRAIN, VALIDATION = 100_000, 2_000


class Relations(Dataset[tuple[Tensor, int]]):
    """The scenes, 32x32 pixels in colour; scene i is always the same, and no part shares one with another."""

    holds = ("classes",)
    classes = SHAPES

    def __init__(self, split: str, mode: str, transform: Callable[[Image.Image], Tensor]) -> None:
        self.part = 0 if split == "train" else 1
        self.count = TRAIN if split == "train" else VALIDATION
        self.mode, self.transform = mode, transform

    @staticmethod
    def augmentation(asked: DataConfig) -> None:
        """None at all: there are enough scenes, and a cropped one may lack its ring."""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, label = scene(np.random.default_rng((self.part, index)))
        return self.transform(Image.fromarray(pixels).convert(self.mode)), label


def scene(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """One scene, [32, 32, 3] in uint8, and its label, an index into SHAPES."""
    cells = _cells(rng)
    textures = rng.choice(2 * HUES, OBJECTS, replace=False)
    textures = np.concatenate([textures[:1], textures])  # the ring's, its twin's, the distractors'
    shapes = np.concatenate([[len(SHAPES)], rng.integers(0, len(SHAPES), OBJECTS)])
    image = np.full((SIZE, SIZE, 3), 90.0)
    masks, patterns = _shapes(), _textures()
    for cell, texture, shape in zip(cells, textures, shapes, strict=True):
        top, left = (CELL * int(place) for place in divmod(cell, SIDE))
        view = image[top : top + CELL, left : left + CELL]
        view[masks[shape]] = patterns[texture][masks[shape]]
    image += rng.normal(0, NOISE, image.shape)
    return image.clip(0, 255).astype(np.uint8), int(shapes[1])


def _cells(rng: np.random.Generator) -> np.ndarray:
    """Different cells for all objects, the first two at least two rows or two columns apart."""
    while True:
        cells = rng.permutation(SIDE * SIDE)[: OBJECTS + 1]
        rows, columns = cells[:2] // SIDE, cells[:2] % SIDE
        if max(abs(rows[0] - rows[1]), abs(columns[0] - columns[1])) >= 2:
            return cells


@cache
def _shapes() -> np.ndarray:
    """Masks of SHAPES and, last, of the ring, [5, 8, 8]."""
    y, x = np.mgrid[0:CELL, 0:CELL] + 0.5 - CELL / 2
    radius = np.hypot(y, x)
    disc, square = radius < 3.6, (abs(x) < 3) & (abs(y) < 3)
    triangle = (y > -3.5) & (y < 3) & (abs(x) < (y + 3.5) * 0.6)
    cross = ((abs(x) < 1.2) & (abs(y) < 3.7)) | ((abs(y) < 1.2) & (abs(x) < 3.7))
    return np.stack([disc, square, triangle, cross, (radius < 3.9) & (radius > 1.6)])


@cache
def _textures() -> np.ndarray:
    """Every hue in horizontal and in vertical stripes of two pixels, [12, 8, 8, 3]."""
    y, x = np.mgrid[0:CELL, 0:CELL]
    colours = [255 * np.array(colorsys.hsv_to_rgb(hue / HUES, 1, 1)) for hue in range(HUES)]
    stripes = [(axis // 2 % 2 == 1)[..., None] for axis in (y, x)]
    return np.stack([np.where(bright, colour, 0.35 * colour) for colour in colours for bright in stripes])
