"""timm's vision encoders of language models: rotary positions that the model hands its layers."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.castling import close_masks
from castling_convert.families import family_of
from tests.families import road

SIZE = {"embed_dim": 32, "depth": 2, "num_heads": 2}
GEMMA = {**SIZE, "head_dim": 24, "num_kv_heads": 1, "intermediate_size": 48, "img_size": 48}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen": ("qwen3_vit_88m_merge", {**SIZE, "img_size": (64, 96), "out_features": 24}),
    "qwen encoder": ("qwen3_vit_88m_enc", {**SIZE, "img_size": 64, "out_features": 24}),
    "deepseek": ("deepseek_vit_412m", {**SIZE, "img_size": 42}),
    "gemma": ("gemma4_vit_167m", {**GEMMA, "use_clipped_linears": False}),
    "gemma encoder": ("gemma4_vit_167m_enc", {**GEMMA, "num_kv_heads": 2}),
}


def small(kind: str) -> Any:
    torch.manual_seed(0)
    name, arguments = VARIANTS[kind]
    classes = {} if name.endswith("_enc") else {"num_classes": 10}
    return timm.create_model(name, **arguments, **classes).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@torch.no_grad()
@pytest.mark.parametrize("kind", ["deepseek", "gemma"])
def test_a_castled_model_takes_another_image_size(kind: str) -> None:
    student = cc.castle(small(kind), "castling")
    close_masks(student)
    family = family_of(student)
    folded = cc.fold(student)
    height, width = family.patch_size(folded)
    family.resize_(folded, (3 * height, 6 * width))
    assert family.image_size(folded) == (3 * height, 6 * width)
    assert folded(torch.randn(1, 3, 3 * height, 6 * width)).shape == (1, 10)


def test_masks_of_padded_images_are_refused() -> None:
    student = cc.castle(small("gemma"), "castling")
    patches = {
        "patches": torch.randn(1, 9, 16 * 16 * 3),
        "patch_coord": torch.cartesian_prod(torch.arange(3), torch.arange(3))[None],
        "patch_valid": torch.arange(9)[None] < 6,
    }
    with pytest.raises(ValueError, match="without padding"):
        student(patches)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deepseek", "gemma"])
def test_from_castle_to_onnx(kind: str, tmp_path) -> None:
    road.from_castle_to_onnx(small(kind), tmp_path)
