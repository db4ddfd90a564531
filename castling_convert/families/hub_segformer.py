"""Hugging Face transformers' Segformer, from a module in memory: queries of every place, keys of a reduced map.

It is read as PVTv2 is. The convolutions between its layers and in their MLPs stay as they are. Logits of a
`SegformerForSemanticSegmentation` are of a quarter of the image's size.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS 2021,
arXiv 2105.15203.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ..attention import Reader
from .base import Size
from .hub import backbone_of, pair
from .hub_dense import DenseHubFamily
from .hub_readers import ReducedReader

USUAL_SIDE = 512
"""Of images for a model that does not say: what most that are published are fine-tuned on."""


class SegformerFamily(DenseHubFamily):
    """It takes images of any size. With a decoder, which reads the maps of all stages, its features are these."""

    title = "Hugging Face Segformer"
    any_size = True
    module = "segformer"
    names = frozenset({"SegformerModel", "SegformerForImageClassification", "SegformerForSemanticSegmentation"})
    attention: ClassVar[Mapping[str, type[Reader]]] = {"SegformerAttention": ReducedReader}

    def task(self, model: Any) -> str | None:
        return "segment" if hasattr(model, "decode_head") else None

    def classes(self, model: Any) -> int:
        return model.config.num_labels if hasattr(model, "decode_head") else super().classes(model)

    def image_size(self, model: Any) -> Size:
        """What `pretrained_cfg` says, or the config; it takes any."""
        said = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        if said is not None:
            return said[1], said[2]
        return pair(getattr(backbone_of(model).config, "image_size", USUAL_SIDE))

    def resize_(self, model: Any, image_size: Size) -> None:
        """Nothing in the model knows a size but what it says of itself."""
        backbone_of(model).config.image_size = list(image_size)
        if getattr(model, "pretrained_cfg", None):
            model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (self.channels(model), *image_size)}

    def any_size_(self, model: Any) -> None:
        """It does."""

    def patch_size(self, model: Any) -> Size:
        """What all strides divide."""
        stride = math.prod(backbone_of(model).config.strides)
        return stride, stride

    def features(self, model: Any, images: Tensor) -> Any:
        maps = [images]
        for stage in backbone_of(model).stages:
            maps.append(stage(maps[-1]))
        return maps[1:] if hasattr(model, "decode_head") else maps[-1]

    def head(self, model: Any, features: Any) -> Tensor:
        if hasattr(model, "decode_head"):
            return model.decode_head(features)
        return model.classifier(self.tokens(model, features)[0].mean(1)) if hasattr(model, "classifier") else features

    def maps(self, model: nn.Module, features: Any) -> list[tuple[Tensor, int]]:
        maps = features if isinstance(features, list) else [features]
        return [self.tokens(model, each) for each in maps]
