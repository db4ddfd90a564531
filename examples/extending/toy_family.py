"""A model family from outside the package: one file and one line in a registry.

The model is a made-up one whose attention has separate projections and no class token; any `nn.Module` will do that has
timm's `pretrained_cfg`, `forward_features` and `forward_head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from castling_convert.attention import Projections, TokenGrid
from castling_convert.families import FAMILIES, AttentionLayer, Family
from castling_convert.families.base import Size

PATCH, DIM, HEADS = 8, 32, 4


class ToyAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ToyStage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.attention = ToyAttention()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm(x))


class ToyNet(nn.Module):
    """Two stages on patches of 8x8 pixels, and a linear head of `classes`."""

    def __init__(self, image_size: Size = (32, 32), classes: int = 10) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, *image_size), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        self.num_classes, self.grid = classes, (image_size[0] // PATCH, image_size[1] // PATCH)
        self.stem = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.stages = nn.Sequential(ToyStage(), ToyStage())
        self.head = nn.Linear(DIM, classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images).flatten(2).transpose(1, 2))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features.mean(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class ToyFamily(Family):
    title = "toy"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, ToyNet)

    def layers(self, model: Any, image_size: Size | None = None) -> list[AttentionLayer]:
        height, width = model.grid if image_size is None else (side // PATCH for side in image_size)
        names = [name for name, module in model.named_modules() if isinstance(module, ToyAttention)]
        return [
            AttentionLayer(
                name, block, "ToyAttention", HEADS, DIM // HEADS, tokens=height * width, grid=(height, width),
                prefix=0, dim=DIM, keys=height * width,
            )
            for block, name in enumerate(names)
        ]  # fmt: skip

    def projections(self, model: nn.Module, layer: AttentionLayer) -> Projections:
        source: Any = model.get_submodule(layer.name)
        qkv = nn.Linear(DIM, 3 * DIM)
        with torch.no_grad():
            for part in ("weight", "bias"):
                parts = [getattr(projection, part) for projection in (source.query, source.key, source.value)]
                getattr(qkv, part).copy_(torch.cat(parts))
        none = nn.Identity()
        return Projections(qkv, source.out, HEADS, DIM // HEADS, (DIM // HEADS) ** -0.5, none, none, none)

    def grids(self, model: Any, layers: Sequence[AttentionLayer]) -> dict[str, TokenGrid]:
        return {layer.name: TokenGrid(*layer.grid, layer.prefix) for layer in layers}

    def block_names(self, model: Any) -> list[str]:
        return [f"stages.{index}" for index in range(len(model.stages))]

    def image_size(self, model: Any) -> Size:
        return model.grid[0] * PATCH, model.grid[1] * PATCH


FAMILIES.append(ToyFamily())
