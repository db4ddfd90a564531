"""How much each block's softmax is needed: the order in which `layers=auto` castles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..attention import AttentionConfig
from ..castling import adopt_layers, castle, castled_layers, close_masks, kept_because, not_paying
from ..data.loaders import EVAL_BATCH, count_in_memory
from ..data.preprocessing import Preprocessing
from ..distillation.calibrate import calibrate
from ..families import AttentionLayer, family_of
from ..recipe import Recipe
from ..tasks import task_of

IMAGES, IMAGES_OF_PLACES = 256, 32
"""How many images tell the order of the blocks; the second, where a model says something of every place in them."""
FEW_AT_ONCE = 4
"""Images at once of such a model: what it says of one may be a hundred megabytes, and both models' is compared."""


@dataclass(frozen=True)
class Sensitivity:
    """One block castled alone against the whole softmax teacher; untrained but for its fitted gain, or aligned.

    `divergence` and `agreement` are those of the model's task, `Task.divergence` and `Task.agreement`: of classes,
    KL(teacher || student) in nats, and the share of images with the same top class in percent; the mean of the batches.
    Labels are not used.
    """

    block: int
    layers: list[str]
    divergence: float
    agreement: float


def castable_blocks(teacher: nn.Module, config: AttentionConfig) -> list[int]:
    """In forward order."""
    return _blocks(layer for layer in family_of(teacher).layers(teacher) if kept_because(layer, config) is None)


def paying_blocks(teacher: nn.Module, config: AttentionConfig) -> tuple[list[int], dict[str, str]]:
    """The blocks that castling makes cheaper, in forward order, or all that can be castled where it makes none so;
    and `not_paying` of the layers that are left as they are."""
    layers = family_of(teacher).layers(teacher)
    dear = not_paying(layers, config)
    paying = _blocks(x for x in layers if kept_because(x, config) is None and x.name not in dear)
    if not paying:
        return castable_blocks(teacher, config), {}
    return paying, {x.name: dear[x.name] for x in layers if x.name in dear and x.block not in paying}


def _blocks(layers: Iterable[AttentionLayer]) -> list[int]:
    return sorted({layer.block for layer in layers if layer.block is not None})


def images_needed(teacher: nn.Module) -> int:
    """How many images to give to `sensitivities`, no more than `count_in_memory`."""
    enough = IMAGES_OF_PLACES if task_of(teacher).reads_maps else IMAGES
    return count_in_memory(enough, Preprocessing.of(teacher))


@torch.no_grad()
def sensitivities(
    teacher: nn.Module,
    recipe: Recipe,
    images: Tensor,
    aligned: Mapping[str, Tensor] | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[Sensitivity]:
    """The sensitivity of every block that can be castled, in forward order.

    Args:
        teacher: the softmax model, in eval mode; it is not changed.
        images: [B, C, H, W]; they go to the teacher's device in batches, and the first one fits the gains.
        aligned: `layer_states` of a student whose layers have learned alone; untrained ones when left out.
        numbers: of which blocks; of all when left out.
    """
    task = task_of(teacher)
    device = next(teacher.parameters()).device
    batches = images.split(FEW_AT_ONCE if task.reads_maps else EVAL_BATCH)
    kept = None if task.reads_maps else [task.run(teacher, batch.to(device)) for batch in batches]
    for block in castable_blocks(teacher, recipe.attention) if numbers is None else numbers:
        student = castle(teacher, recipe, layers=str(block)).eval()
        if aligned is None:
            calibrate(student, teacher, batches[0].to(device))
        else:
            adopt_layers(student, aligned)
        close_masks(student)
        found = []
        for number, batch in enumerate(batches):
            expected = task.run(teacher, batch.to(device)) if kept is None else kept[number]
            output = task.run(student, batch.to(device))
            found.append((task.divergence(output, expected), task.agreement(output, expected)))
        divergence, agreement = np.average(found, axis=0, weights=[len(batch) for batch in batches]).tolist()
        yield Sensitivity(block, [name for name, _ in castled_layers(student)], divergence, agreement)
