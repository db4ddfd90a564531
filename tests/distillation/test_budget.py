"""How many images a step learns from, and how many steps a run has, where the recipe leaves it open."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

import castling_convert as cc
from castling_convert.distillation import processes
from castling_convert.distillation.budget import settled
from castling_convert.recipe import Recipe
from tests.models import images, tiny


def student_of(name: str, **arguments: Any) -> Any:
    with torch.device("meta"):
        return cc.castle(timm.create_model(name, **arguments))


@pytest.mark.parametrize(
    ("size", "depth", "width", "heads", "batch"),
    [(140, 2, 384, 6, 8), (280, 2, 384, 6, 2), (518, 1, 384, 6, 2), (140, 2, 192, 3, 15), (56, 1, 64, 1, 64)],
)
def test_as_many_images_as_a_step_has_numbers_for(size: int, depth: int, width: int, heads: int, batch: int) -> None:
    student = student_of("vit_small_patch14_dinov2", img_size=size, depth=depth, embed_dim=width, num_heads=heads)
    here = settled(Recipe.load("castling"), student).distill
    assert (here.batch_size, here.steps) == (batch, 25_600 // batch)


def test_what_the_recipe_says_holds() -> None:
    student = student_of("vit_tiny_patch16_224", depth=1)
    for said, batch, steps in (
        (("distill.batch_size=5",), 5, 5120),
        (("distill.batch_size=5", "distill.steps=7"), 5, 7),
        (("distill.images=3",), 8, 1),
        (("distill.images=800",), 8, 100),
    ):
        recipe = Recipe.load("castling", said)
        here = settled(recipe, student)
        assert (here.distill.batch_size, here.distill.steps) == (batch, steps)
        assert settled(here, student) == here
        assert Recipe.parse(here.model_dump(), "again").distill.steps == steps


def test_stages_count_on_the_mean() -> None:
    student = student_of("swin_tiny_patch4_window7_224", depths=(1, 1), embed_dim=24, num_heads=(1, 2))
    numbers = (56 * 56 * 24 + 28 * 28 * 48) / 2
    assert settled(Recipe.load("castling"), student).distill.batch_size == round(300_000 / numbers)


def test_several_processes_share_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of("vit_small_patch14_dinov2", img_size=140, depth=1)
    monkeypatch.setattr(processes, "count", lambda: 3)
    assert settled(Recipe.load("castling"), student).distill.batch_size == 9


@pytest.mark.parametrize(("loader", "steps"), [(True, 12), (False, 3)])
def test_batches_of_the_callers_own_have_their_size(loader: bool, steps: int) -> None:
    """A list of batches does not say it: they are taken to be of 64."""
    teacher = tiny()
    recipe = Recipe.load("castling", ["distill.images=192", "attention.landmarks=4"])
    student = cc.castle(teacher, recipe)
    data: Any = DataLoader(TensorDataset(images(16)), 16) if loader else [images(16)]
    assert cc.distill(student, teacher, data, recipe, device="cpu").steps == steps
