"""timm's TinyViT: windows, padded at the border, with a norm and a bias of distances."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"pretrained_cfg_overlay": {"input_size": (3, 64, 64)}},
    "padded": {"pretrained_cfg_overlay": {"input_size": (3, 48, 64)}},
}


def small(variant: str) -> Any:
    torch.manual_seed(0)
    values = {"embed_dims": (8, 16, 32), "depths": (1, 1, 1), "num_heads": (1, 2, 4), "window_sizes": (4, 4, 3)}
    return timm.create_model("tiny_vit_5m_224", num_classes=10, **values, **VARIANTS[variant]).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small("padded"), tmp_path)
