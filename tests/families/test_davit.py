"""timm's DaViT: windows, padded at the border, in turn with attention of channels."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from castling_convert.families import family_of
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"pretrained_cfg_overlay": {"input_size": (3, 32, 64)}},
    "padded": {"pretrained_cfg_overlay": {"input_size": (3, 40, 40)}},
    "of-channels-v2": {"pretrained_cfg_overlay": {"input_size": (3, 32, 32)}, "channel_attn_v2": True},
}


def small(variant: str) -> Any:
    torch.manual_seed(0)
    values = {"embed_dims": (16, 32), "depths": (1, 1), "num_heads": (2, 2), "window_size": 4, "num_classes": 10}
    return timm.create_model("davit_tiny", **values, **VARIANTS[variant]).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    def accounted(self, model: Any, student: Any) -> None:
        assert {layer.status for layer in student.castling.layers} == {"castled", "kept"}


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small("padded"), tmp_path)


def test_attention_of_channels_stays_with_the_reason(model: Any) -> None:
    layers = family_of(model).layers(model)
    assert [layer.name.rpartition(".")[2] for layer in layers] == ["attn"] * 4
    assert [layer.reason for layer in layers if not layer.castable] == [
        "channels attend to channels, which is linear in the tokens already"
    ] * 2
