"""A segmenter: a backbone, and on its feature maps the lightest head that is in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..data.targets import IGNORED
from .backbone import AroundBackbone, side_by_side


class Segmenter(AroundBackbone):
    """Images [B, C, H, W] to logits of a class at every pixel, [B, classes, H, W].

    The head is a batch norm and a 1x1 convolution on the feature maps, put side by side at the size of the first, and
    bilinear upsampling: what DINOv2's linear segmentation is (Oquab et al., arXiv 2304.07193, section 7.4).

    What it is made with is said at `AroundBackbone`.
    """

    task = "segment"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.classifier = nn.Conv2d(self.num_features, self.num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.backbone(images), images.shape[-2:])

    def loss_of(self, maps: Sequence[Tensor], masks: Tensor) -> Tensor:
        """The cross-entropy of the classes at every pixel of `masks`, [B, H, W], from the backbone's maps of the
        images; what is none of the classes is passed over."""
        logits = self.read(maps, masks.shape[-2:])
        return F.cross_entropy(logits, masks, ignore_index=IGNORED)

    def read(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits of images of `size` (H, W) from the backbone's maps of them."""
        logits = self.classifier(self.norm(side_by_side(maps)))
        return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
