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


def make_backbone(
    backbone: str | nn.Module, in_chans: int, img_size: int | Sequence[int] | None, out_indices: Sequence[int],
    **arguments: Any,
) -> FeatureGetterNet:  # fmt: skip
    """A model that returns the feature maps of the blocks `out_indices`, [B, C, h, w] each, normalised by its last norm
    where it has one.

    Args:
        backbone: a name for `timm.create_model`, or a model that it made.
        img_size, arguments: for `timm.create_model`.

    Raises:
        ModelError: a name that timm has not, or of a model that can't be castled.
    """
    if isinstance(backbone, str):
        if not timm.is_model(backbone.partition(".")[0]):
            raise ModelError(f"timm has no model {backbone} for a backbone; list those that can be: castling models")
        why = reason_of(backbone.partition(".")[0])
        if why is not None:
            raise ModelError(f"backbone {backbone} can't be castled: {why}; list those that can be: castling models")
        size = {} if img_size is None else {"img_size": img_size}
        backbone = timm.create_model(backbone, num_classes=0, in_chans=in_chans, **size, **arguments)
    return FeatureGetterNet(backbone, out_indices=list(out_indices), norm=True)


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """Feature maps [B, C, h, w] as one, at the size of the first."""
    first, *others = maps
    size = first.shape[-2:]
    resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in others]
    return torch.cat([first, *resized], 1) if others else first
