"""Batches of several sizes: which, and what can take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.distillation.intake import refuse_size, resized
from castling_convert.errors import ModelError
from castling_convert.families import family_of
from tests.families import test_davit, test_hieradet, test_naflex, test_plain, test_pvt, test_swin, test_twins
from tests.models import ANGULAR, LANDMARKS, WINDOW, images, tiny


def test_which_size_depends_on_the_number_alone() -> None:
    batches = [images(2) for _ in range(20)]
    whole = [batch.shape[-1] for batch in resized(iter(batches), (24, 32, 40), seed=3, first=0)]
    assert set(whole) == {24, 32, 40}
    rest = [batch.shape[-1] for batch in resized(iter(batches[8:]), (24, 32, 40), seed=3, first=8)]
    assert rest == whole[8:]
    assert whole != [batch.shape[-1] for batch in resized(iter(batches), (24, 32, 40), seed=4, first=0)]
    same = next(iter(resized(iter(batches), (32,), seed=0, first=0)))
    assert same is batches[0]


def test_values_are_those_of_the_image() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    smaller = next(iter(resized(iter([ramp]), (16,), seed=0, first=0)))
    torch.testing.assert_close(smaller[0, 0, 0, 1:-1], torch.linspace(0, 1, 32).unfold(0, 2, 2).mean(-1)[1:-1])


@pytest.mark.parametrize("form", [LANDMARKS, WINDOW])
def test_a_student_of_several_sizes(form: dict[str, Any]) -> None:
    teacher = tiny()
    recipe = cc.Recipe.parse(
        {
            "attention": form | {"depthwise": "grid"},
            "data": {"sizes": [24, 32, 40]},
            "distill": {"steps": 24, "batch_size": 4, "align": {"share": 0.7}},
        },
        "test",
    )
    student = cc.castle(teacher, recipe)
    seen: list[int] = []
    student.patch_embed.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[-1]))
    cc.distill(student, teacher, [images(4)] * 24, recipe, device="cpu")
    assert {24, 32, 40} <= set(seen)
    folded = cc.fold(student)
    with all_sizes(folded), all_sizes(student):
        for side in (24, 40):
            torch.testing.assert_close(folded(images(2, side, side)), student(images(2, side, side)), rtol=0, atol=1e-4)


def all_sizes(model: Any) -> Any:
    return family_of(model).taking_sizes(model)


@pytest.mark.parametrize("made", ["ViT", "DINOv3", "EVA-02", "Swin", "Swin V2"])
def test_sizes_as_timm_takes_them(made: str) -> None:
    """For a while; then the model takes its own size alone again."""
    make: Callable[..., Any] = {
        "ViT": tiny,
        "DINOv3": lambda **more: timm.create_model(
            "vit_small_patch16_dinov3", img_size=32, depth=2, embed_dim=48, num_heads=3, **more
        ),
        "EVA-02": lambda **more: timm.create_model(
            "eva02_tiny_patch14_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3, **more
        ),
        "Swin": lambda **more: test_swin.small(img_size=32, **more),
        "Swin V2": lambda **more: timm.create_model(
            "swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=24, depths=(2,), num_heads=(2,), **more
        ),
    }[made]
    flag = {"strict_img_size": False} if "Swin" in made else {"dynamic_img_size": True}
    opposite = {name: not value for name, value in flag.items()}
    torch.manual_seed(0)
    model, able = make(**opposite).eval(), make(**flag).eval()
    able.load_state_dict(model.state_dict())
    batch = images(2, 64, 64)
    with all_sizes(model):
        torch.testing.assert_close(model(batch), able(batch), rtol=0, atol=0)
    with pytest.raises((AssertionError, RuntimeError)):
        model(batch)
    torch.testing.assert_close(model(images(2, 32, 32)), able(images(2, 32, 32)), rtol=0, atol=1e-5)


OTHERS: dict[str, Callable[[], Any]] = {
    "windows": lambda: test_swin.small(img_size=32),
    "windows, padded": lambda: test_davit.small("padded"),
    "reduced keys": lambda: test_pvt.small((64, 64)),
    "windows and reduced keys": lambda: test_twins.small("svt"),
    "windows of several stages": lambda: test_hieradet.small(),
    "rotations": lambda: timm.create_model(
        "vit_small_patch16_dinov3", img_size=32, depth=2, embed_dim=48, num_heads=3, dynamic_img_size=False
    ).eval(),
    "patches of any number": lambda: test_naflex.small("axial"),
}
ALL_FORMS = [(name, LANDMARKS) for name in OTHERS] + [("rotations", ANGULAR), ("patches of any number", ANGULAR)]


@pytest.mark.parametrize(("name", "form"), ALL_FORMS, ids=str)
def test_layers_that_see_by_themselves(name: str, form: dict[str, Any]) -> None:
    """Open, such a student is its teacher at every size; and it learns at several."""
    teacher = OTHERS[name]()
    recipe = cc.Recipe.parse({"attention": form}, "test").override(
        "data.sizes=[32, 64]", "distill.steps=6", "distill.batch_size=2"
    )
    student = cc.castle(teacher, recipe).eval()
    with all_sizes(student), all_sizes(teacher):
        for side in (64, 32, 96):
            refuse_size(student, side)
            torch.testing.assert_close(
                student(images(1, side, side)), teacher(images(1, side, side)), rtol=0, atol=1e-4
            )
    cc.distill(student, teacher, "generated", recipe, device="cpu")
    folded = cc.fold(student)
    with all_sizes(folded):
        assert folded(images(1, 96, 96)).isfinite().all()


def test_layers_that_are_told_their_grid_by_a_layer_before_them() -> None:
    """Alone, on the teacher's tokens, they would have the grid of the last forward of the student."""
    teacher = test_plain.small("caformer")
    student = cc.castle(teacher, cc.Recipe.parse({"attention": LANDMARKS | {"depthwise": "grid"}}, "test"))
    refuse_size(teacher, 96)
    with pytest.raises(ModelError, match=r"training with images of several sizes is not known for .*leave out data"):
        refuse_size(student, 96)


def test_a_size_is_tried_without_a_trace() -> None:
    """Batch norms of a model in training mode would remember the zeros it is tried with."""
    model: Any = timm.create_model(
        "segmenter", backbone="vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, depth=1, embed_dim=48,
        num_heads=3,
    ).train()  # fmt: skip
    model.backbone.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    refuse_size(model, 48)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes


def test_a_model_of_one_size() -> None:
    teacher = timm.create_model("vit_relpos_small_patch16_224", img_size=32, depth=1, embed_dim=48, num_heads=3)
    with pytest.raises(ModelError, match=r"can't take images of 48x48 .*; leave it out"):
        refuse_size(teacher, 48)
    with pytest.raises(ModelError, match="36 is no multiple of the patch"):
        refuse_size(tiny(), 36)
    recipe = cc.Recipe.parse({"attention": LANDMARKS, "data": {"sizes": [48]}}, "test")
    with pytest.raises(ModelError, match=r"data\.sizes"):
        cc.distill(cc.castle(teacher, recipe), teacher, [images(4)], recipe, device="cpu")
