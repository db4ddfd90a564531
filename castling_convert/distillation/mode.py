"""Models in training mode and out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def to_train_(student: nn.Module) -> nn.Module:
    """Its batch norms stay as they are at inference: their statistics are those of the data that the teacher has been
    trained on, which a few steps of a few images would replace by their own, and the teacher has them fixed."""
    student.train()
    for module in student.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return student


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
