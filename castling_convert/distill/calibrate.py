"""The closed-form start: every head's gain fitted to the teacher's softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..castle import castled_layers


@torch.no_grad()
def calibrate(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """`CastledAttention.calibrate` for every castled layer of `student`, in place.

    Each layer is fitted on the tokens that the teacher's own layer receives for `images`, [B, C, H, W].
    """
    layers = dict(castled_layers(student))
    inputs: dict[str, Tensor] = {}
    handles = [
        teacher.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, name=name: inputs.__setitem__(name, args[0])
        )
        for name in layers
    ]
    try:
        teacher(images)
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        layer.calibrate(inputs[name])
