"""timm's NaFlexVit: plain images, and batches of patches of images of several shapes, with padding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import castling_convert as cc
from castling_convert.castling import close_masks
from castling_convert.families import family_of
from tests.families import road
from tests.models import LANDMARKS, recipe, shake_

CLASSIC = {"name": "naflexvit_base_patch16_gap"}
EVA = {"name": "eva02_tiny_patch14_224", "use_naflex": True, "depth": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "registers": CLASSIC,
    "map": {"name": "naflexvit_base_patch16_map", "qk_norm": True},
    "factorized": {"name": "naflexvit_base_patch16_parfac_gap", "init_values": 0.1},
    "no_prefix": {"name": "naflexvit_base_patch16_siglip"},
    "class_tokens": {"name": "naflexvit_base_patch16_radio_v3", "use_key_only_attn_mask": True},
    "axial": {**CLASSIC, "rope_type": "axial", "pos_embed": "none"},
    "mixed": {**CLASSIC, "rope_type": "mixed", "attn_gated": True},
    "halves": {**CLASSIC, "rope_type": "dinov3", "rope_rotate_half": True},
    "shared_keys": {**CLASSIC, "rope_type": "axial", "num_kv_heads": 1, "qkv_fused": False},
    "eva": EVA,
}


def small(kind: str) -> Any:
    torch.manual_seed(0)
    values: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "num_classes": 10}
    values["img_size"] = (32, 48)
    if kind != "eva":
        values["pos_embed_grid_size"] = (4, 6)
    values |= VARIANTS[kind]
    return timm.create_model(values.pop("name"), **values).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


def patches(*images: Tensor) -> dict[str, Tensor]:
    """Images, [C, H, W], as timm's collator gives them, padding at random so that any use of it shows."""
    parts = [image.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 3, 4, 0) for image in images]
    count = max(part.shape[0] * part.shape[1] for part in parts) + 2
    found = {
        "patches": torch.randn(len(images), count, 8 * 8 * 3, dtype=images[0].dtype),
        "patch_coord": torch.zeros(len(images), count, 2, dtype=torch.long),
        "patch_valid": torch.zeros(len(images), count, dtype=torch.bool),
    }
    for index, part in enumerate(parts):
        height, width = part.shape[:2]
        found["patches"][index, : height * width] = part.flatten(2).flatten(0, 1)
        found["patch_coord"][index, : height * width] = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        found["patch_valid"][index, : height * width] = True
    return found


class TestEveryVariant(road.EveryVariant):
    def accounted(self, model: Any, student: Any) -> None:
        assert all(layer.status == "castled" or "pooling" in layer.why for layer in student.castling.layers)


@torch.no_grad()
def test_padding_changes_nothing(model: Any) -> None:
    """A batch of images of several shapes is these images one by one: of the softmax model, of the open student, and of
    the closed and the folded one with its exact rows and its residual."""
    teacher = road.exact(model)
    student = cc.castle(teacher, recipe(**LANDMARKS)).eval()
    images = [torch.randn(3, *size, dtype=torch.float64) for size in ((32, 48), (16, 40), (40, 24))]
    batch = patches(*images)
    torch.testing.assert_close(student(batch), teacher(batch), rtol=1e-9, atol=1e-9)
    shake_(student, 1)
    close_masks(student)
    for each in (teacher, student, cc.fold(student)):
        together = each(batch)
        alone = torch.cat([each(patches(image)) for image in images])
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    assert (student(batch) - teacher(batch)).abs().max() > 1e-6
    whole = student(images[0][None])  # positions of the whole grid, which are not resampled
    torch.testing.assert_close(whole, student(batch)[:1], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_grids_follow_the_images() -> None:
    student = cc.castle(small("registers"), recipe(**LANDMARKS)).eval()
    close_masks(student)
    student(torch.randn(1, 3, 40, 24))
    grid = student.blocks[0].attn.grid
    assert (grid.height, grid.width, grid.tokens) == (5, 3, 19)
    other = copy.deepcopy(student)
    other(patches(torch.randn(3, 16, 48), torch.randn(3, 24, 8)))
    mine = other.blocks[1].attn.grid
    assert (mine.height, mine.width, mine.tokens) == (3, 6, 4 + 14)
    assert (grid.height, grid.places) == (5, None)


def test_other_masks_are_refused() -> None:
    student = cc.castle(small("registers"), recipe(**LANDMARKS)).eval()
    batch = patches(torch.randn(3, 16, 16))
    causal = torch.ones(1, 1, 10, 10, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="padding alone"):
        student(batch | {"attn_mask": causal})


def test_a_form_without_masks_takes_plain_images() -> None:
    student = cc.castle(small("registers"), "castling-fast").eval()
    close_masks(student)
    assert student(torch.randn(1, 3, 32, 48)).isfinite().all()
    with pytest.raises(NotImplementedError, match="angular has no masks"):
        student(patches(torch.randn(3, 16, 16)))


def test_any_size_is_one_to_be_castled_at() -> None:
    model = small("registers")
    assert [layer.grid for layer in family_of(model).layers(model, (64, 40))] == [(8, 5), (8, 5)]
    family_of(model).resize_(model, (64, 40))
    assert [layer.tokens for layer in family_of(model).layers(model)] == [44, 44]


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small("axial"), tmp_path)
