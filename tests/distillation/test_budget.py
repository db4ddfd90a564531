"""How many images a step learns from, and how many steps a run has, where the recipe leaves it open."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

import castling_convert as cc
from castling_convert.distillation import processes
from castling_convert.distillation.budget import settled
from castling_convert.recipe import Recipe
from tests.models import images, tiny


def pair_of(name: str, **arguments: Any) -> tuple[Any, Any]:
    """A castled model and its teacher, without numbers."""
    with torch.device("meta"):
        teacher = timm.create_model(name, **arguments)
        return cc.castle(teacher), teacher


@pytest.mark.parametrize(
    ("size", "depth", "width", "heads", "batch"),
    [(140, 2, 384, 6, 8), (280, 2, 384, 6, 2), (518, 1, 384, 6, 2), (140, 2, 192, 3, 15), (56, 1, 64, 1, 64)],
)
def test_as_many_images_as_a_step_has_numbers_for(size: int, depth: int, width: int, heads: int, batch: int) -> None:
    pair = pair_of("vit_small_patch14_dinov2", img_size=size, depth=depth, embed_dim=width, num_heads=heads)
    here = settled(Recipe.load("castling"), *pair).distill
    assert (here.batch_size, here.steps) == (batch, 25_600 // batch)


def test_what_the_recipe_says_holds() -> None:
    pair = pair_of("vit_tiny_patch16_224", depth=1)
    for said, batch, steps in (
        (("distill.batch_size=5",), 5, 5120),
        (("distill.batch_size=5", "distill.steps=7"), 5, 7),
        (("distill.images=3",), 8, 1),
        (("distill.images=800",), 8, 100),
    ):
        recipe = Recipe.load("castling", said)
        here = settled(recipe, *pair)
        assert (here.distill.batch_size, here.distill.steps) == (batch, steps)
        assert settled(here, *pair) == here
        assert Recipe.parse(here.model_dump(), "again").distill.steps == steps


def test_stages_count_on_the_mean() -> None:
    pair = pair_of("swin_tiny_patch4_window7_224", depths=(1, 1), embed_dim=24, num_heads=(1, 2))
    numbers = (56 * 56 * 24 + 28 * 28 * 48) / 2
    assert settled(Recipe.load("castling"), *pair).distill.batch_size == round(300_000 / numbers)


def test_several_processes_share_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of("vit_small_patch14_dinov2", img_size=140, depth=1)
    monkeypatch.setattr(processes, "count", lambda: 3)
    assert settled(Recipe.load("castling"), *pair).distill.batch_size == 9


@pytest.mark.parametrize(("loader", "steps"), [(True, 12), (False, 3)])
def test_batches_of_the_callers_own_have_their_size(loader: bool, steps: int) -> None:
    """A list of batches does not say it: they are taken to be of 64."""
    teacher = tiny()
    recipe = Recipe.load("castling", ["distill.images=192", "attention.landmarks=4"])
    student = cc.castle(teacher, recipe)
    data: Any = DataLoader(TensorDataset(images(16)), 16) if loader else [images(16)]
    assert cc.distill(student, teacher, data, recipe, device="cpu").steps == steps


@pytest.mark.parametrize(
    ("name", "arguments", "side"),
    [
        ("vit_small_patch14_dinov2", {"img_size": 448}, None),  # 32 x 32 patches
        ("vit_small_patch14_dinov2", {"img_size": 518}, 266),
        ("vit_small_patch14_dinov2", {"img_size": (448, 518)}, None),
        ("vit_small_patch16_dinov3", {"img_size": 1024, "embed_dim": 384}, 304),
        ("eva02_tiny_patch14_224", {"img_size": 518}, 266),
        ("vit_relpos_small_patch16_224", {"img_size": 1024}, None),  # biases of one grid
        ("swin_tiny_patch4_window7_224", {"img_size": 512}, None),  # windows stay what they are
    ],
)
def test_images_of_very_many_patches_are_made_smaller(name: str, arguments: Any, side: int | None) -> None:
    depth = {"depths": (1, 1)} if "swin" in name else {"depth": 1}
    pair = pair_of(name, **depth, **arguments)
    here = settled(Recipe.load("castling"), *pair)
    assert here.data.sizes == (None if side is None else (side,))
    assert settled(here, *pair) == here
    asked = settled(Recipe.load("castling", ["data.sizes=[448]"]), *pair)
    assert asked.data.sizes == (448,)


def test_smaller_images_make_larger_batches() -> None:
    pair = pair_of("vit_tiny_patch16_224", img_size=1024, depth=1)
    batches = [
        settled(Recipe.load("castling", said), *pair).distill.batch_size for said in ((), ("data.sizes=[1024]",))
    ]
    assert batches == [4, 2]


def test_a_model_of_many_patches_learns_and_says_so(tmp_path: Path) -> None:
    teacher = tiny(img_size=66, patch_size=2, depth=1)
    said = io.StringIO()
    cc.convert(
        teacher, tmp_path / "out", data="generated", device="cpu", console=Console(file=said, width=200),
        recipe=Recipe.load("castling", ["distill.steps=2", "distill.batch_size=2", "attention.landmarks=4"]),
    )  # fmt: skip
    assert "learns from images of 38x38" in said.getvalue()
    assert "data.sizes=[66]" in said.getvalue()
    loaded = cc.load(tmp_path / "out")
    assert loaded(images(1, 66, 66)).shape == (1, 10)


class OneGrid(torch.nn.Module):
    """A segmenter of 33 x 33 patches, whatever its ViT would take."""

    task, num_classes = "segment", 5
    pretrained_cfg: ClassVar = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def __init__(self) -> None:
        super().__init__()
        self.vit: Any = tiny(img_size=66, patch_size=2, depth=1, num_classes=0)
        self.head = torch.nn.Conv2d(48, 5, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.vit.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (33, 33)))


def test_a_head_of_one_grid_keeps_its_images() -> None:
    teacher = OneGrid().eval()
    recipe = Recipe.load("castling", ["distill.steps=4", "distill.batch_size=2", "attention.landmarks=4"])
    student = cc.castle(teacher, recipe)
    assert settled(recipe, student, teacher).data.sizes is None
    assert cc.distill(student, teacher, "generated", recipe, device="cpu").steps == 4
