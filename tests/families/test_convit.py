"""timm's ConViT: softmax of places beside that of contents, on a gate, without N x N weights."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from castling_convert.families import family_of
from castling_convert.families.convit import GatedReader
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "gated first": {"local_up_to_layer": 1},
    "gated alone": {"local_up_to_layer": 2, "global_pool": "avg", "qkv_bias": True},
    "plain": {"local_up_to_layer": 0, "use_pos_embed": False},
}


def small(kind: str) -> Any:
    torch.manual_seed(0)
    values = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 4, "num_classes": 10}
    return timm.create_model("convit_tiny", **values, **VARIANTS[kind]).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


def test_the_class_token_comes_after_gated_layers() -> None:
    model = small("gated first")
    assert [(layer.tokens, layer.prefix) for layer in family_of(model).layers(model)] == [(16, 0), (17, 1)]


@torch.no_grad()
def test_places_are_weighed_as_timm_weighs_them() -> None:
    attention = road.exact(small("gated alone")).blocks[0].attn
    x = torch.randn(1, 16, 48).double()
    attention(x)
    expected = attention.pos_proj(attention.rel_indices).permute(0, 3, 1, 2).softmax(-1)[0]
    share, columns, rows = GatedReader(attention, (4, 4), 0).places()
    found = torch.einsum("hik,hjl->hijkl", rows, columns).reshape(4, 16, 16)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(share, attention.gating_param.sigmoid())


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small("gated first"), tmp_path)
