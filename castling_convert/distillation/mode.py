"""A student in training mode."""

from __future__ import annotations

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
