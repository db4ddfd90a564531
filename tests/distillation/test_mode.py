"""A student in training mode."""

from __future__ import annotations

import timm
import torch

import castling_convert as cc
from castling_convert.distillation.mode import to_train_


def test_batch_norms_alone_stay_as_at_inference() -> None:
    model = timm.create_model("levit_128s", img_size=64, num_classes=10)
    training = {type(module).__name__: module.training for module in to_train_(model).modules()}
    assert training["LevitDistilled"]
    assert training["Linear"]
    assert not training["BatchNorm1d"]
    assert not training["BatchNorm2d"]


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
