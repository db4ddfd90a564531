"""Differential attention, and blocks whose attention and MLP share a projection."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers import DiffAttention

import castling_convert as cc
from castling_convert.analysis.macs import count_macs
from castling_convert.artifact.options import ExportOptions
from castling_convert.artifact.prepare import prepare
from castling_convert.attention import softmax_cost
from castling_convert.families import family_of
from castling_convert.families.vit_readers import Difference
from tests.families import road
from tests.models import LANDMARKS, closed_student, images, recipe, tiny

VARIANTS: dict[str, dict[str, Any]] = {
    "differential": {"name": "vit_dwee_patch16_reg1_gap_256"},
    "differential_of_scalars": {"name": "vit_tiny_patch16_224", "attn_layer": DiffAttention, "scale_attn_norm": True},
    "parallel": {"name": "vit_pwee_patch16_reg1_gap_256"},
    "parallel_apart": {"name": "vit_base_patch16_xp_224", "init_values": 0.1, "img_size": (32, 48)},
    "parallel_of_one_bias": {"name": "vit_base_patch16_xp_224", "qkv_bias": True, "qk_norm": False},
    "parallel_differential": {"name": "vit_dpwee_patch16_reg1_gap_256"},
}


def small(kind: str) -> Any:
    torch.manual_seed(0)
    model = tiny(**VARIANTS[kind])
    if kind == "differential_of_scalars":
        for depth, block in enumerate(model.blocks):
            block.attn = DiffAttention(48, 3, depth=depth, dual_lambda=True, scale_norm=True, qkv_bias=True)
    return model.eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


def test_open_student_is_the_teacher(model: Any) -> None:
    student = road.open_student_is_the_teacher(model)
    assert all(layer.status == "castled" for layer in student.castling.layers)


@pytest.mark.parametrize("attention", [LANDMARKS, {"form": "angular", "normalization": "row_sum"}], ids=["", "angular"])
def test_closed_student_folds(model: Any, attention: dict[str, Any]) -> None:
    road.closed_student_folds(model, **attention)


def test_linear_form_is_its_matrix(model: Any) -> None:
    road.linear_form_is_its_matrix(model)


def test_the_share_of_the_second_map_is_timms() -> None:
    for kind in ("differential", "differential_of_scalars"):
        attention = small(kind).blocks[1].attn
        assert attention.dual_lambda == kind.endswith("scalars")
        torch.testing.assert_close(Difference(attention).share(), attention._compute_lambda())


@torch.no_grad()
def test_half_precision_is_close(model: Any) -> None:
    folded = cc.fold(closed_student(model, **LANDMARKS))
    x = road.images_for(model)
    half = prepare(folded, ExportOptions(precision="fp16"), fused=True)
    expected = folded(x)
    assert half.model.patch_embed.proj.weight.dtype == torch.float16
    error = (half(x.half()).float() - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.02


class Through(torch.nn.Module):
    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return x


def test_macs_are_those_of_the_model(model: Any) -> None:
    """What torch counts of the whole model is what layers cost by formula and all else that has weights; a differential
    layer multiplies every value twice, once for each map."""
    family = family_of(model)
    layers = family.layers(model)
    by_formula = sum(softmax_cost(layer.shape).macs for layer in layers)
    without = copy.deepcopy(model)
    for layer in layers:
        without.set_submodule(layer.name, Through())
    assert count_macs(model) == count_macs(without) + by_formula


@torch.no_grad()
def test_grids_follow_the_images() -> None:
    teacher = tiny("vit_base_patch16_xp_224", dynamic_img_size=True).double()
    student = closed_student(teacher)
    assert student.patch_embed.grid_size == (4, 4)
    logits = student(images(2, 48, 32).double())
    assert (student.blocks[0].grid.height, student.blocks[0].grid.width) == (6, 4)
    student.set_input_size(img_size=(48, 32))
    torch.testing.assert_close(student(images(2, 48, 32).double()), logits)


def test_masks_are_refused() -> None:
    student = cc.castle(small("parallel"), recipe())
    with pytest.raises(ValueError, match="no attention mask"):
        student.blocks[0](torch.zeros(1, 17, 48), attn_mask=torch.zeros(17, 17))


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small("parallel_differential"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["vit_*_xp_*", "vit_d*ee_*", "vit_dlittle*", "vit_pwee*"])
def test_all_layers_of_timms_models_are_castable(pattern: str) -> None:
    names = timm.list_models(pattern, module="vision_transformer")
    assert names
    for name in names:
        model = timm.create_model(name, device="meta")
        assert all(layer.castable for layer in family_of(model).layers(model))
