"""torchvision's `VisionTransformer` (`vit_b_16`, `vit_l_32`, ...): a class token, `nn.MultiheadAttention`, no bias of
places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from ..attention import Reader, TokenGrid
from .base import Size
from .called import CalledFamily
from .multihead import MultiheadReader


class TorchvisionVitFamily(CalledFamily):
    title = "torchvision VisionTransformer"
    one_size = True
    models = (VisionTransformer,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {nn.MultiheadAttention: MultiheadReader}

    def token_grid(self, model: Any) -> TokenGrid:
        side = model.image_size // model.patch_size
        return TokenGrid(side, side, 1)

    def image_size(self, model: Any) -> Size:
        return model.image_size, model.image_size

    def patch_size(self, model: Any) -> Size:
        return model.patch_size, model.patch_size

    def features(self, model: Any, images: Tensor) -> Tensor:
        patches = model._process_input(images)
        classes = model.class_token.expand(patches.shape[0], -1, -1)
        return model.encoder(torch.cat([classes, patches], 1))

    def head(self, model: Any, features: Tensor) -> Tensor:
        return model.heads(features[:, 0])
