"""A student in training mode."""

from __future__ import annotations

from typing import Any

import timm
import torch

import castling_convert as cc
from castling_convert.distillation.mode import to_train_
from tests.models import LANDMARKS, images, tiny


def test_batch_norms_stay_as_at_inference() -> None:
    model = timm.create_model("levit_128s", img_size=64, num_classes=10)
    training = {type(module).__name__: module.training for module in to_train_(model).modules()}
    assert training["LevitDistilled"]
    assert training["Linear"]
    assert not training["BatchNorm1d"]
    assert not training["BatchNorm2d"]


def test_places_stay_where_the_teacher_has_them() -> None:
    """Sapiens2 scales its rotary positions at random in training mode; and patches are left out of no image."""
    torch.manual_seed(0)
    rotary: Any = tiny("vit_5b_patch16_sapiens2", num_kv_heads=(3, 3)).double()
    assert rotary.rope.aug_active
    student: Any = cc.castle(rotary, cc.Recipe.parse({"attention": LANDMARKS}, "test"))
    x = images(2).double()
    expected = student.eval()(x)
    for module in to_train_(student).modules():  # dropout is another matter
        module.training = module.training and not isinstance(module, torch.nn.Dropout)
    torch.testing.assert_close(student(x), expected)
    dropping = to_train_(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, patch_drop_rate=0.5))
    assert dropping.forward_features(images(2)).shape[1] == 5


def test_no_layer_is_left_out() -> None:
    """Stochastic depth, in three libraries."""
    from torchvision.ops import StochasticDepth
    from transformers.models.swin.modeling_swin import SwinDropPath

    for layer in (timm.layers.DropPath(0.9), StochasticDepth(0.9, "row"), SwinDropPath(0.9)):
        values = torch.ones(64, 3)
        assert not torch.equal(layer.train()(values), values)
        assert torch.equal(to_train_(torch.nn.Sequential(layer))(values), values)


def test_distilling_leaves_the_statistics_alone() -> None:
    torch.manual_seed(0)
    values = {"embed_dim": (16, 32), "key_dim": 8, "depth": (1, 1), "num_heads": (1, 1)}
    teacher = timm.create_model("levit_128s", img_size=64, num_classes=10, **values).eval()
    recipe = cc.Recipe.parse({"distill": {"steps": 4, "batch_size": 2}}, "test")
    student = cc.castle(teacher, recipe)
    before = {name: value.clone() for name, value in student.named_buffers() if "running" in name}
    assert before
    cc.distill(student, teacher, [torch.randn(2, 3, 64, 64)], recipe, device="cpu")
    after = dict(student.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items())
