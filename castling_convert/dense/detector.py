"""A detector: a backbone, and on its feature maps one level of places that each say what lies around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, generalized_box_iou_loss, sigmoid_focal_loss

from .backbone import AroundBackbone, side_by_side
from .boxes import CORNERS

WIDTH, CONVOLUTIONS = 128, 4
"""Channels of the head, and how many 3x3 convolutions they pass before they are read by another: as many as FCOS has.
What a place answers then depends on the maps up to five places away, where the sides of its box may be."""
PRIOR = 0.01
"""Score of everything before the head is trained, as in RetinaNet (Lin et al., arXiv 1708.02002, section 4.1)."""
REACH = 1.5
"""Strides from the middle of a box within which places learn it, as in FCOS with centre sampling."""


class Detector(AroundBackbone):
    """Images [B, C, H, W] to a box and logits of its kinds at every place, [B, N, 4 + kinds]: x1, y1, x2, y2 in pixels
    of these images, which they may reach beyond, and for each kind the logit of a sigmoid.

    The head is FCOS's (Tian et al., arXiv 1904.01355) at one level, that of the first feature map, with its two
    branches in one: a 1x1 and CONVOLUTIONS 3x3 convolutions, all normalised, and two 3x3 convolutions for the logits
    and for the distances from the middle of a place to the four sides, a softplus in units of the place's size.
    `boxes.suppressed` makes detections of that.

    What it is made with is said at `AroundBackbone`.
    """

    task = "detect"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.stride = self.backbone.feature_info.reduction()[0]
        """Pixels from one place to the next."""
        self.stem = nn.Sequential(
            Conv2dNormActivation(self.num_features, WIDTH, 1, inplace=False),
            *(Conv2dNormActivation(WIDTH, WIDTH, 3, inplace=False) for _ in range(CONVOLUTIONS)),
        )
        self.distances = nn.Conv2d(WIDTH, CORNERS, 3, padding=1)
        self.classifier = nn.Conv2d(WIDTH, self.num_classes, 3, padding=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.constant_(self.classifier.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.backbone(images))

    def read(self, maps: Sequence[Tensor]) -> Tensor:
        """What is made of the backbone's maps."""
        places = self.stem(self.norm(side_by_side(maps)))
        logits, distances = self.classifier(places), self.distances(places)
        # Half precision, as in autocast, does not tell the pixels of a large image apart.
        distances = distances.to(torch.promote_types(distances.dtype, torch.float32))
        sides = _by_place(F.softplus(distances) * self.stride)
        middles = self.middles(places.shape[-2], places.shape[-1], sides)
        boxes = torch.cat([middles - sides[..., :2], middles + sides[..., 2:]], -1)
        return torch.cat([boxes, _by_place(logits).to(boxes.dtype)], -1)

    def middles(self, height: int, width: int, like: Tensor) -> Tensor:
        """x and y of the middles of the places, row by row, [height·width, 2]."""
        y, x = (
            (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) * self.stride for side in (height, width)
        )
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)

    def loss(self, images: Tensor, boxes: Tensor) -> Tensor:
        """`detection_loss` of images [B, C, H, W] with the labels `boxes`, [B, M, 5]; in eval mode without what batch
        norms learn."""
        return self.loss_of(self.backbone(images), boxes)

    def loss_of(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """The same of the backbone's maps of the images."""
        output = self.read(maps)
        height, width = maps[0].shape[-2:]
        return detection_loss(output, boxes, self.middles(height, width, output), self.stride)


def detection_loss(output: Tensor, boxes: Tensor, middles: Tensor, stride: float) -> Tensor:
    """What FCOS is trained on: the focal loss of the kinds and one minus the generalised intersection over union of the
    boxes, both over the number of places that have one.

    A place learns the smallest of the boxes in which its middle lies at most REACH strides from theirs; the place next
    to the middle of a box always learns one.

    Args:
        output: of a `Detector`, [B, N, 4 + kinds].
        boxes: labels [B, M, 5], of each box x1, y1, x2, y2 in pixels and its kind; rows of a kind below zero are none.
        middles: of the places, [N, 2]. stride: pixels from one to the next.
    """
    boxes = F.pad(boxes.to(output), (0, 0, 0, 1), value=-1.0)  # one that is none, where there are none at all
    corners, kinds = boxes[..., :CORNERS], boxes[..., CORNERS].long()
    sizes = corners[..., 2:] - corners[..., :2]
    centres = corners[..., :2] + sizes / 2
    away = (middles[:, None] - centres[:, None]).abs()  # [B, N, M, 2]
    inside = (away <= (sizes / 2).clamp(max=REACH * stride)[:, None]).all(-1)
    farthest = away.amax(-1)
    learns = (inside | (farthest <= farthest.amin(1, keepdim=True))) & (kinds >= 0)[:, None]
    areas = torch.where(learns, sizes.prod(-1)[:, None], torch.inf)
    smallest, which = areas.min(-1)
    taken = smallest.isfinite()
    count = taken.sum().clamp_min(1)
    wanted = torch.zeros_like(output[..., CORNERS:])
    wanted[taken] = F.one_hot(kinds.gather(1, which)[taken], wanted.shape[-1]).to(wanted)
    focal = sigmoid_focal_loss(output[..., CORNERS:], wanted, reduction="sum")
    targets = corners.gather(1, which[..., None].expand(-1, -1, CORNERS))
    overlap = generalized_box_iou_loss(output[..., :CORNERS][taken], targets[taken], reduction="sum")
    return (focal + overlap) / count


def _by_place(maps: Tensor) -> Tensor:
    """[B, C, h, w] as [B, h·w, C]."""
    return maps.flatten(2).transpose(1, 2)
