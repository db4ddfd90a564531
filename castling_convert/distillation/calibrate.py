"""The closed-form start: every head's gain fitted to the teacher's softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..castling import castled_layers
from ..families import family_of
from .losses import tap


@torch.no_grad()
def calibrate(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """`CastledAttention.calibrate` for every castled layer of `student`, in place.

    Each layer is fitted on the tokens that the teacher's own layer receives for `images`, [B, C, H, W], of any size
    that the student can be told of.
    """
    family_of(student).see_(student, (images.shape[2], images.shape[3]))
    layers = dict(castled_layers(student))
    with tap(teacher, layers) as softmax:
        teacher(images)
    for name, layer in layers.items():
        inputs, more = softmax.inputs[name]
        layer.calibrate(*inputs, **more)
