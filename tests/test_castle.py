from __future__ import annotations

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.attention import CastledAttention
from castling_convert.castle import castled_layers, close_masks, parse_layers
from castling_convert.errors import ModelError, RecipeError
from tests.models import closed_student, images, recipe, tiny


@torch.no_grad()
def test_castle_leaves_the_teacher_untouched() -> None:
    teacher, x = tiny(), images()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    logits = teacher(x)
    student = cc.castle(teacher, recipe())
    for parameter in student.parameters():
        parameter.add_(1.0)
    student(x)
    assert not any(isinstance(module, CastledAttention) for module in teacher.modules())
    assert not hasattr(teacher, "castling")
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in teacher.modules())
    after = teacher.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(teacher(x), logits)


def test_castle_in_place() -> None:
    model = tiny()
    assert cc.castle_(model, recipe()) is model
    assert [name for name, _ in castled_layers(model)] == ["blocks.0.attn", "blocks.1.attn"]


def test_mode_dtype_and_trainability_are_kept() -> None:
    teacher = tiny().to(torch.float64).train()
    student = cc.castle(teacher, recipe())
    assert all(module.training for module in student.modules())
    assert {p.dtype for p in student.parameters()} == {torch.float64}
    assert not any(module.training for module in cc.castle(teacher.eval(), recipe()).modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_and_float32_named(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=rf"weights are {dtype}, .*; castle model\.float\(\), .*precision='fp16'"):
        cc.castle(tiny().to(dtype), recipe())


def test_a_recipe_by_name() -> None:
    student = cc.castle(tiny(), "reference")
    assert student.castling.attention == cc.Recipe.load("reference").attention


def test_close_masks_reaches_every_layer() -> None:
    student = cc.castle(tiny(), recipe())
    assert not any(layer.closed for _, layer in castled_layers(student))
    close_masks(student)
    assert all(layer.closed for _, layer in castled_layers(student))


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("all", set(range(12))),
        ("0", {0}),
        ("0-1,3", {0, 1, 3}),
        (" 2 - 4 , 11 ", {2, 3, 4, 11}),
        ("0-7,9", {*range(8), 9}),
        ("3,3,2-3", {2, 3}),
    ],
)
def test_layers(text: str, blocks: set[int]) -> None:
    assert parse_layers(text, 12) == blocks


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "3-1", "12", "0-12", "1;2", "1,", "auto", "0..3", "1.5"])
def test_layers_that_are_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_layers(text, 12)


def test_a_refused_choice_leaves_the_model_as_it_was() -> None:
    model = tiny()
    with pytest.raises(RecipeError, match="0-1"):
        cc.castle_(model, recipe(), layers="0-5")
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert not hasattr(model, "castling")


def test_an_empty_choice_is_not_everything() -> None:
    with pytest.raises(RecipeError):
        cc.castle(tiny(), recipe(), layers="")


def test_layers_choose_blocks() -> None:
    student = cc.castle(tiny(depth=4), recipe(), layers="0-1,3")
    assert student.castling.blocks == "0,1,3"
    assert student.castling.castled == [f"blocks.{i}.attn" for i in (0, 1, 3)]
    kept = [layer for layer in student.castling.layers if layer.status == "kept"]
    assert [layer.name for layer in kept] == ["blocks.2.attn"]
    assert "0-1,3" in kept[0].why
    assert type(student.blocks[2].attn) is timm.layers.Attention


def test_layers_of_the_recipe_count_unless_given() -> None:
    chosen = cc.Recipe.parse({"layers": "0"}, "test")
    assert cc.castle(tiny(), chosen).castling.blocks == "0"
    assert cc.castle(tiny(), chosen, layers="1").castling.blocks == "1"


@pytest.mark.parametrize("name", ["resnet50", "swin_tiny_patch4_window7_224"])
def test_other_families_are_refused_by_name(name: str) -> None:
    model = timm.create_model(name, device="meta")
    with pytest.raises(ModelError, match=rf"{type(model).__name__}.*VisionTransformer.*castling models"):
        cc.castle_(model)


def test_castling_twice_is_refused() -> None:
    student = closed_student(tiny())
    for model in (student, cc.fold(student)):
        with pytest.raises(ModelError, match="castled already"):
            cc.castle(model, recipe())


def test_the_account_as_plain_values() -> None:
    account = cc.castle(tiny("vit_base_patch16_siglip_224"), recipe(), layers="1").castling.to_dict()
    assert account["attention"]["normalization"] == "row_sum"
    assert [(layer["name"], layer["status"]) for layer in account["layers"]] == [
        ("blocks.0.attn", "kept"),
        ("blocks.1.attn", "castled"),
        ("attn_pool", "kept"),
    ]
    assert all(layer["why"] for layer in account["layers"])
