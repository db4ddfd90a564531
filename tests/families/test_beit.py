"""timm's BEiT: a bias of places, each layer's own or the model's, that treats the class token apart."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.attention.reader import low_rank
from castling_convert.castling import close_masks
from castling_convert.families.beit import factors
from castling_convert.folding import certify
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "own": {},
    "shared": {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "img_size": (32, 48)},
    "both": {"use_shared_rel_pos_bias": True, "qkv_bias": False, "init_values": None},
    "none": {"use_rel_pos_bias": False, "use_abs_pos_emb": True},
}


def small(kind: str) -> Any:
    torch.manual_seed(0)
    values = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm.create_model("beit_base_patch16_224", num_classes=10, **{**values, **VARIANTS[kind]}).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small("both"), tmp_path)


def test_folding_leaves_neither_scales_nor_the_bias_of_all_layers() -> None:
    student = cc.castle(road.exact(small("shared")), "castling")
    close_masks(student)
    folded, _ = certify(student, road.images_for(student).double())
    assert folded.rel_pos_bias is None
    assert all(block.gamma_1 is None for block in folded.blocks)
    some = cc.castle(road.exact(small("shared")), "castling", layers="0")
    close_masks(some)
    assert cc.fold(some).rel_pos_bias is not None


def test_factors_are_exact_where_the_class_token_is() -> None:
    """But for what softmax does not see: a constant in a row."""
    attention = road.exact(small("own")).blocks[0].attn
    bias = attention._get_rel_pos_bias()[0]
    f, g = factors(bias, attention.scale)
    found = attention.scale * f @ g.transpose(-2, -1)
    torch.testing.assert_close(found[:, 0].softmax(-1), bias[:, 0].softmax(-1))
    torch.testing.assert_close(found[:, 1:, 0], bias[:, 1:, 0])


def test_large_biases_are_factored_as_close_as_all_singular_values_would() -> None:
    torch.manual_seed(0)
    table = torch.randn(1, 2 * 300 - 1, dtype=torch.float64) * torch.linspace(-3, 3, 599).square().neg().exp()
    places = torch.arange(300)
    bias = table[:, places[:, None] - places + 299]
    f, g = low_rank(bias, 16, 0.5)
    left = (bias - 0.5 * f @ g.transpose(-2, -1)).square().sum()
    best = torch.linalg.svdvals(bias)[:, 16:].square().sum()
    assert best <= left < 1.01 * best
