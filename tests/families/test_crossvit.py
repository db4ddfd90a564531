"""timm's CrossViT: two branches, and cross attention of one query."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from castling_convert.families import family_of
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "convolutions, cropped": {"multi_conv": True, "crop_scale": True},
}


def small(**arguments: Any) -> Any:
    torch.manual_seed(0)
    values = {
        "img_size": 48,
        "img_scale": (1.0, 2 / 3),
        "embed_dim": (16, 32),
        "num_heads": (2, 2),
        "depth": ((1, 3, 0),),
    }
    return timm.create_model("crossvit_9_240", num_classes=10, **values, **arguments).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(**VARIANTS[request.param])


class TestEveryVariant(road.EveryVariant):
    def accounted(self, model: Any, student: Any) -> None:
        assert all(layer.status == "castled" or "single query" in layer.why for layer in student.castling.layers)


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small(), tmp_path)


def test_both_branches_are_castled_and_cross_attention_is_kept() -> None:
    model = small()
    layers = family_of(model).layers(model)
    first = layers[:6]
    assert [layer.name for layer in first] == [
        "blocks.0.blocks.0.0.attn", "blocks.0.blocks.1.0.attn", "blocks.0.blocks.1.1.attn", "blocks.0.blocks.1.2.attn",
        "blocks.0.fusion.0.attn", "blocks.0.fusion.1.attn",
    ]  # fmt: skip
    assert [layer.grid for layer in first[:2]] == [(4, 4), (2, 2)]
    assert [layer.castable for layer in first] == [True] * 4 + [False] * 2
    assert first[4].reason == "the class token is its single query, which is linear in the tokens already"
