"""Small detectors, scenes of rectangles to learn from, and a detector of somebody else's."""

from __future__ import annotations

from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from castling_convert.dense.boxes import found

SIDE = 64
SMALL: dict[str, Any] = {"img_size": SIDE, "depth": 2, "patch_size": 8, "embed_dim": 64, "num_heads": 2}
KINDS = 3


def detector(**arguments: Any) -> Any:
    torch.manual_seed(0)
    values = {"backbone": "vit_tiny_patch16_224", "num_classes": KINDS, **SMALL, **arguments}
    return timm.create_model("detector", **values).eval()


def scenes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [count, 3, 64, 64] of one to three rectangles on noise, the channel of which is their kind, and their
    boxes [count, 4, 5], padded with rows of -1."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    images = 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    boxes = -torch.ones(count, 4, 5)
    for image, rows in zip(images, boxes, strict=True):
        for row in rows[: number(1, 4)]:
            width, height, kind = number(12, 30), number(12, 30), number(0, KINDS)
            x, y = number(0, SIDE - width), number(0, SIDE - height)
            image[:, y : y + height, x : x + width] = 0
            image[kind, y : y + height, x : x + width] = 2
            row.copy_(torch.tensor([x, y, x + width, y + height, kind]))
    return images, boxes


def learn_(model: Any, images: Tensor, boxes: Tensor, steps: int) -> Any:
    """Train on these images; returns the model, in eval mode."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(images, boxes).backward()
        optimizer.step()
    return model.eval()


@cache
def trained() -> Any:
    """One that knows eight scenes; not to be changed."""
    return learn_(detector(), *scenes(8), steps=80)


class Listing(nn.Module):
    """A detector that returns torchvision's form."""

    task = "detect"

    def __init__(self, inside: Any) -> None:
        super().__init__()
        self.backbone, self.rest = inside.backbone, inside
        del self.rest.backbone

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        places = self.rest.stem(self.rest.norm(self.backbone(images)[0]))
        logits, distances = self.rest.classifier(places), self.rest.distances(places)
        raw = torch.cat([distances.exp(), logits], 1).flatten(2).transpose(1, 2)
        return [{"boxes": one.boxes, "scores": one.scores, "labels": one.kinds} for one in found(raw)]
