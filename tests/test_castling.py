from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelThingsBlock

import castling_convert as cc
from castling_convert.attention import CastledAttention
from castling_convert.castling import castled_layers, choose_layers, close_masks
from castling_convert.errors import ModelError, RecipeError
from castling_convert.families import family_of
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


@pytest.fixture(scope="module")
def twelve() -> Any:
    """The attention layers of a model of twelve blocks, and one outside of them."""
    model = tiny("vit_base_patch16_siglip_224", depth=12)
    return family_of(model).layers(model)


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("0", {0}),
        ("0-1,3", {0, 1, 3}),
        (" 2 - 4 , 11 ", {2, 3, 4, 11}),
        ("0-7,9", {*range(8), 9}),
        ("3,3,2-3", {2, 3}),
        ("blocks.7.attn", {7}),
        ("blocks.?.attn", set(range(10))),
        ("blocks.1*", {1, 10, 11}),
        ("blocks.[2-4].*, 0", {0, 2, 3, 4}),
        ("blocks.*", set(range(12))),
    ],
)
def test_layers(text: str, blocks: set[int], twelve: Any) -> None:
    assert choose_layers(text, twelve) == {f"blocks.{block}.attn" for block in blocks}


@pytest.mark.parametrize("text", ["all", "*"])
def test_all_layers_are_those_outside_the_blocks_too(text: str, twelve: Any) -> None:
    assert choose_layers(text, twelve) == {layer.name for layer in twelve}
    assert len(twelve) == 13


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1-",
        "-1",
        "3-1",
        "12",
        "0-12",
        "1;2",
        "1,",
        "auto",
        "0..3",
        "1.5",
        "blocks.12.attn",
        "b*k",
        "[",
        "a b",
    ],
)
def test_layers_that_are_refused(text: str, twelve: Any) -> None:
    with pytest.raises(RecipeError) as refused:
        choose_layers(text, twelve)
    assert "\n" not in str(refused.value)


def test_a_choice_is_written_as_blocks_where_it_is_whole_blocks() -> None:
    model = tiny(depth=3)
    model.blocks[1] = ParallelThingsBlock(48, 3)
    assert cc.castle(model, recipe(), layers="*").castling.choice == "0,1,2"
    names = [layer.name for layer in family_of(model).layers(model) if layer.block == 1]
    assert len(names) == 2
    assert cc.castle(model, recipe(), layers=f"0,{names[0]}").castling.choice == f"blocks.0.attn,{names[0]}"


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
    assert student.castling.choice == "0,1,3"
    assert student.castling.castled == [f"blocks.{i}.attn" for i in (0, 1, 3)]
    kept = [layer for layer in student.castling.layers if layer.status == "kept"]
    assert [layer.name for layer in kept] == ["blocks.2.attn"]
    assert "0-1,3" in kept[0].why
    assert type(student.blocks[2].attn) is timm.layers.Attention


def test_layers_of_the_recipe_count_unless_given() -> None:
    chosen = cc.Recipe.parse({"layers": "0"}, "test")
    assert cc.castle(tiny(), chosen).castling.choice == "0"
    assert cc.castle(tiny(), chosen, layers="1").castling.choice == "1"


@pytest.mark.parametrize(("name", "why"), [("resnet50", "made of convolutions"), ("xcit_nano_12_p16_224", "channels")])
def test_other_architectures_are_refused_by_name(name: str, why: str) -> None:
    model = timm.create_model(name, device="meta")
    with pytest.raises(ModelError, match=rf"{type(model).__name__}.*{why}.*castling models"):
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
