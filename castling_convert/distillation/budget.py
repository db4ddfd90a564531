"""How many images a step learns from, how large they are, and how many steps a run has, where a recipe leaves that to
the model."""

from __future__ import annotations

import math

from torch import nn

from ..castling import castled_layers
from ..errors import ModelError
from ..families import family_of
from ..recipe import Recipe, SettledRecipe
from . import processes
from .intake import refuse_size

NUMBERS = 300_000
"""That come into a layer in one step: as many images teach more in small batches, see docs/accuracy.md."""
FEWEST, MOST = 2, 64
"""Images of a step."""
MANY, ENOUGH = 32**2, 19**2
"""Patches: training images that have more than the one are made so small that they have about the other. In the same
time several times as many are learned from, which is worth more, see docs/accuracy.md."""


def settled(recipe: Recipe, student: nn.Module, teacher: nn.Module, given: int | None = None) -> SettledRecipe:
    """`recipe` for a castled `student` of `teacher`, with the size of batches, of images and the steps that it leaves
    out; `given` is the size of batches that can have no other."""
    config, values = recipe.distill, recipe.model_dump()
    side = smaller_side(student, teacher) if recipe.data.sizes is None else None
    if side is not None:
        values["data"]["sizes"] = [side]
    size = config.batch_size or given
    if size is None:
        layers = [layer.numbers for _, layer in castled_layers(student)]
        area = 1.0 if side is None else (side / family_of(student).image_size(student)[0]) ** 2
        size = min(MOST, max(FEWEST, round(NUMBERS * len(layers) / sum(layers) / area)))
        size += -size % processes.count()
    steps = config.steps or max(1, config.images // size)
    values["distill"] |= {"batch_size": size, "steps": steps}
    return SettledRecipe.parse(values, f"recipe {recipe.name}")


def smaller_side(student: nn.Module, teacher: nn.Module) -> int | None:
    """Of the images that a castled student learns from, in pixels; None where they stay as large as it takes them."""
    family = family_of(student)
    height, width = family.image_size(student)
    patches = max(layer.grid.height * layer.grid.width for _, layer in castled_layers(student))
    if height != width or patches <= MANY:
        return None
    step = math.lcm(*family.patch_size(student))
    side = max(1, round(height * math.sqrt(ENOUGH / patches) / step)) * step
    try:
        refuse_size(teacher, side)
        refuse_size(student, side)
    except ModelError:
        return None
    return side
