"""Models in training mode and out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def to_train_(student: nn.Module) -> nn.Module:
    """Some of it stays as it is at inference, as it does in the teacher. Batch norms: their statistics are those of the
    data that the teacher has been trained on, which a few steps of a few images would replace by their own. What moves
    the places of tokens at random, or leaves tokens or layers out: the student would be held against a teacher of other
    ones."""
    student.train()
    for module in student.modules():
        if isinstance(module, _BatchNorm | PatchDropout | PatchDropoutWithIndices) or _is_random(module):
            module.eval()
    return student


def _is_random(module: nn.Module) -> bool:
    """Rotary positions, of timm and of transformers, whose scale is drawn anew in every forward in training mode; and
    stochastic depth, of timm, of transformers, and of torchvision."""
    kinds = ("RopePositionEmbedding", "DropPath", "StochasticDepth")
    return hasattr(module, "aug_active") or type(module).__name__.endswith(kinds)


@contextmanager
def at_inference(model: nn.Module) -> Iterator[None]:
    """In eval mode while it lasts, so that what runs through it leaves no trace; then every module as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
