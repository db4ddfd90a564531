"""Hugging Face transformers' ViTDet, from a module in memory: windows, and blocks that see all.

Its decomposed relative positions are exact in the linear form, as those of SAM are.

Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022, arXiv 2203.16527.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Reader
from .base import Size
from .called import refuse_castled
from .hub_dense import DenseHubFamily
from .hub_readers import VitDetReader

SEVERAL = (
    "it returns several feature maps, and a bundle or an artifact is of a model with one output; make the backbone "
    "with one name in out_features"
)


class VitDetFamily(DenseHubFamily):
    """It takes images of any size, which its tables of relative positions are resampled to. A `VitDetBackbone` is
    matched by its last map."""

    title = "Hugging Face ViTDet"
    module = "vitdet"
    names = frozenset({"VitDetModel", "VitDetBackbone"})
    attention: ClassVar[Mapping[str, type[Reader]]] = {"VitDetAttention": VitDetReader}

    def features(self, model: Any, images: Tensor) -> Tensor:
        output = model(images)
        return output.feature_maps[-1] if hasattr(output, "feature_maps") else output.last_hidden_state

    def several(self, model: Any) -> str | None:
        return SEVERAL if type(model).__name__ == "VitDetBackbone" and len(model.out_features) > 1 else None

    def resize_(self, model: Any, image_size: Size) -> None:
        if image_size == self.image_size(model):
            return
        refuse_castled(model, image_size)
        sides = [side // patch for side, patch in zip(image_size, self.patch_size(model), strict=True)]
        for layer in model.encoder.layer:
            if layer.window_size == 0 and layer.attention.use_relative_position_embeddings:
                for name, side in zip(("rel_pos_h", "rel_pos_w"), sides, strict=True):
                    setattr(layer.attention, name, _resampled(getattr(layer.attention, name), 2 * side - 1))
        model.config.image_size = list(image_size)


def _resampled(table: nn.Parameter, length: int) -> nn.Parameter:
    """A table of distances, [L, d], at another length, as ViTDet itself resamples it at every forward."""
    resampled = F.interpolate(table.detach().T[None], size=length, mode="linear")[0].T
    return nn.Parameter(resampled.contiguous(), requires_grad=table.requires_grad)
