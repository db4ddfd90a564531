"""How many images a step learns from, and how many steps a run has, where a recipe leaves that to the model."""

from __future__ import annotations

from torch import nn

from ..castling import castled_layers
from ..recipe import Recipe, SettledRecipe
from . import processes

NUMBERS = 300_000
"""That come into a layer in one step: as many images teach more in small batches, see docs/accuracy.md."""
FEWEST, MOST = 2, 64
"""Images of a step."""


def settled(recipe: Recipe, student: nn.Module, given: int | None = None) -> SettledRecipe:
    """`recipe` for a castled `student`, with the batch size and the steps that it leaves out; `given` is the size of
    batches that can have no other."""
    config = recipe.distill
    size = config.batch_size or given
    if size is None:
        layers = [layer.numbers for _, layer in castled_layers(student)]
        size = min(MOST, max(FEWEST, round(NUMBERS * len(layers) / sum(layers))))
        size += -size % processes.count()
    steps = config.steps or max(1, config.images // size)
    values = recipe.model_dump()
    values["distill"] |= {"batch_size": size, "steps": steps}
    return SettledRecipe.parse(values, f"recipe {recipe.name}")
