"""timm's VisionTransformerRelPos: biases of a table and of a network, shared ones, a class token."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.families import family_of
from castling_convert.families.relpos import RANK
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "network": {"name": "vit_relpos_base_patch32_plus_rpn_256"},
    "table": {"name": "vit_relpos_small_patch16_224"},
    "shared": {"name": "vit_srelpos_small_patch16_224", "img_size": (32, 48)},
    "shared_network": {"name": "vit_srelpos_small_patch16_224", "rel_pos_type": "mlp-swin", "qk_norm": True},
    "class_token": {"name": "vit_relpos_base_patch16_cls_224"},
    "class_token_of_a_table": {"name": "vit_relpos_base_patch16_cls_224", "rel_pos_type": "bias"},
    "class_token_not_pooled": {"name": "vit_relpos_base_patch16_clsgap_224", "init_values": 0.1},
}


def small(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    values = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
    return timm.create_model(name, **values | arguments).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(**VARIANTS[request.param])


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.parametrize("kind", ["network", "shared", "class_token_of_a_table"])
@torch.no_grad()
def test_factors_of_enough_rank_are_the_bias(kind: str) -> None:
    """That of castling in training mode too, where the network has dropout."""
    model = road.exact(small(**VARIANTS[kind]))
    places = model.blocks[0].attn.rel_pos or model.shared_rel_pos
    expected = places.get_bias()
    assert expected.shape[-1] <= RANK
    attention = cc.castle(model.train(), "castling").blocks[0].attn
    f, g = attention.reader.query_places, attention.reader.key_places
    torch.testing.assert_close(attention.softmax_scale * (f @ g.transpose(-2, -1)), expected[0])
    assert places.training


def test_a_castled_model_keeps_its_image_size() -> None:
    model = small(**VARIANTS["table"])
    family = family_of(model)
    assert [layer.tokens for layer in family.layers(model, (64, 32))] == [32, 32]
    with pytest.raises(cc.CastlingError, match="--image-size 64x32"):
        family.resize_(cc.castle(model), (64, 32))


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    """Of a shared bias; none of it is in the graph."""
    road.from_castle_to_onnx(small(**VARIANTS["shared"]), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert "relative_position" not in " ".join(tensor.name for tensor in graph.initializer)
    assert not [
        tensor.dims for tensor in graph.initializer if 24 * 24 in tensor.dims or list(tensor.dims).count(24) > 1
    ]
