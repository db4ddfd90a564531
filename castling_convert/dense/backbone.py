"""The backbone of a dense model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ..errors import ModelError
from ..families import reason_of

SMALLEST = "vit_tiny_patch16_224"
"""The backbone where none is named."""


class AroundBackbone(nn.Module):
    """What dense models have in common: a backbone that returns the feature maps of some of its blocks, [B, C, h, w]
    each, normalised by its last norm where it has one, and a batch norm of these maps side by side.

    Args:
        backbone: a timm name.
        num_classes: that the head tells apart.
        img_size, in_chans: of the images. out_indices: of the blocks whose maps the head reads, -1 is the last.
        arguments: for `timm.create_model`, of the backbone.

    Raises:
        ModelError: a name that timm has not, or of a model that can't be castled.
    """

    def __init__(
        self,
        backbone: str = SMALLEST,
        num_classes: int = 2,
        img_size: int | Sequence[int] | None = None,
        in_chans: int = 3,
        out_indices: Sequence[int] = (-1,),
        **arguments: Any,
    ) -> None:
        super().__init__()
        name = str(backbone).partition(".")[0]
        if not timm.is_model(name):
            raise ModelError(f"timm has no model {backbone} for a backbone; list those that can be: castling models")
        why = reason_of(name)
        if why is not None:
            raise ModelError(f"backbone {backbone} can't be castled: {why}; list those that can be: castling models")
        size = {} if img_size is None else {"img_size": img_size}
        inside = timm.create_model(backbone, num_classes=0, in_chans=in_chans, **size, **arguments)
        self.backbone = FeatureGetterNet(inside, out_indices=list(out_indices), norm=True)
        self.num_classes, self.num_features = num_classes, sum(self.backbone.feature_info.channels())
        self.norm = nn.BatchNorm2d(self.num_features)


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """Feature maps [B, C, h, w] as one, at the size of the first."""
    first, *others = maps
    size = first.shape[-2:]
    resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in others]
    return torch.cat([first, *resized], 1) if others else first
