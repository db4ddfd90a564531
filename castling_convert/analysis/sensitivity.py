"""How much each block's softmax is needed: the order in which `layers=auto` castles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..castle import adopt_layers, castle, castled_layers, close_masks
from ..distill.calibrate import calibrate
from ..distill.data import EVAL_BATCH
from ..distill.losses import has_classes, logit_divergence
from ..errors import ModelError
from ..families import family_of
from ..recipe import Recipe

SENSITIVITY_IMAGES = 256
"""How many images tell the order of the blocks."""


@dataclass(frozen=True)
class Sensitivity:
    """One block castled alone against the whole softmax teacher; untrained but for its fitted gain, or aligned.

    `divergence` is KL(teacher || student) of the classes in nats, `agreement` the share of images with
    the same top class in percent. Labels are not used.
    """

    block: int
    layers: list[str]
    divergence: float
    agreement: float


@torch.no_grad()
def sensitivities(
    teacher: nn.Module, recipe: Recipe, images: Tensor, aligned: Mapping[str, Tensor] | None = None
) -> Iterator[Sensitivity]:
    """The sensitivity of every block that can be castled, in forward order.

    Args:
        teacher: the softmax model, in eval mode; it is not changed.
        images: [B, C, H, W]; they go to the teacher's device in batches, and the first one fits the gains.
        aligned: `layer_states` of a student whose layers have learned alone; untrained ones when left out.

    Raises:
        ModelError: the model has no classes.
    """
    if not has_classes(teacher):
        raise ModelError("the model has no classes, and a sensitivity is how far they move; give --num-classes")
    device = next(teacher.parameters()).device
    batches = images.split(EVAL_BATCH)
    expected = torch.cat([teacher(batch.to(device)) for batch in batches])
    castable = {layer.block for layer in family_of(teacher).layers(teacher) if layer.castable}
    for block in sorted(block for block in castable if block is not None):
        student = castle(teacher, recipe, layers=str(block)).eval()
        if aligned is None:
            calibrate(student, teacher, batches[0].to(device))
        else:
            adopt_layers(student, aligned)
        close_masks(student)
        logits = torch.cat([student(batch.to(device)) for batch in batches])
        agreement = (logits.argmax(-1) == expected.argmax(-1)).float().mean().item()
        yield Sensitivity(
            block,
            [name for name, _ in castled_layers(student)],
            max(0.0, logit_divergence(logits, expected, temperature=1.0).item()),  # it is; rounding may not be
            100 * agreement,
        )
