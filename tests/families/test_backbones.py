"""`features_only=True` and `forward_intermediates`: maps of several layers from a castled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.castling import close_masks
from castling_convert.errors import BundleError, ExportError
from castling_convert.families import family_of, input_size_of
from castling_convert.tasks import task_of
from tests.families import road
from tests.models import LANDMARKS, SIZE, recipe, tiny

NAMES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "vit_small_patch14_reg4_dinov2": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
    "eva02_tiny_patch14_224": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), "out_indices": (0, 1),
    },
}  # fmt: skip


def maps_of(name: str) -> Any:
    torch.manual_seed(0)
    arguments = {"out_indices": (0, 1)} | NAMES[name]
    return timm.create_model(name, features_only=True, **arguments).eval()


@pytest.fixture(scope="module", params=NAMES)
def net(request: pytest.FixtureRequest) -> Any:
    return maps_of(request.param)


def test_open_maps_are_the_teachers(net: Any) -> None:
    student = road.open_student_is_the_teacher(net)
    assert all(layer.status == "castled" for layer in student.castling.layers)
    teacher = road.exact(net)
    images = road.images_for(net).double()
    with torch.no_grad():
        for found, expected in zip(student(images), teacher(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


def test_closed_student_folds(net: Any) -> None:
    road.closed_student_folds(net)


def test_it_is_for_features(net: Any) -> None:
    assert task_of(net).name == "features"
    assert input_size_of(net) == (3, 32, 32)
    tokens, prefix = family_of(net).tokens(net, task_of(net).features(net, road.images_for(net)))
    assert tokens.ndim == 3
    assert 0 <= prefix < tokens.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_maps_learn_and_fold(name: str) -> None:
    teacher = maps_of(name)
    config = cc.Recipe.parse({"distill": {"steps": 16, "batch_size": 2}, "attention": LANDMARKS}, "test")
    student, x = cc.castle(teacher, config), road.images_for(teacher)
    before = road.attention_error(student, teacher, x)
    cc.distill(student, teacher, [x], config, device="cpu")
    assert road.attention_error(student, teacher, x) < before
    folded = cc.fold(student)
    with torch.no_grad():
        for found, expected in zip(folded(x), student(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_several_maps_are_no_artifact_and_no_bundle(tmp_path: Path) -> None:
    teacher = maps_of("vit_tiny_patch16_224")
    student = cc.castle(teacher, recipe(**LANDMARKS))
    close_masks(student)
    folded = cc.fold(student)
    why = r"it returns several feature maps.*features_only=True\)"
    with pytest.raises(ExportError, match=f"FeatureGetterNet can't be exported: {why}"):
        cc.export(folded, tmp_path / "model.onnx")
    for verb in (lambda: cc.save(folded, tmp_path / "b"), lambda: cc.convert(teacher, tmp_path / "b", data="digits")):
        with pytest.raises(BundleError, match=f"FeatureGetterNet can't be saved: {why}"):
            verb()
    assert not list(tmp_path.iterdir())


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_intermediates_of_an_open_student_are_the_teachers(name: str) -> None:
    arguments = {key: value for key, value in NAMES[name].items() if key != "out_indices"}
    teacher = road.exact(timm.create_model(name, **arguments))
    student: Any = cc.castle(teacher, recipe(**LANDMARKS)).eval()
    images = road.images_for(teacher).double()
    expected = teacher.forward_intermediates(images, intermediates_only=True)
    for found, wanted in zip(student.forward_intermediates(images, intermediates_only=True), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10 * wanted.abs().max().item())


@torch.no_grad()
def test_intermediates_of_a_folded_model_are_the_students_at_any_size() -> None:
    teacher = tiny(dynamic_img_size=True)
    student: Any = cc.castle(teacher, recipe(**LANDMARKS)).eval()
    close_masks(student)
    folded: Any = cc.fold(student)
    for side in (SIZE["img_size"], 48):
        images = torch.randn(2, 3, side, side)
        pairs = zip(*(m.forward_intermediates(images, intermediates_only=True) for m in (folded, student)), strict=True)
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
