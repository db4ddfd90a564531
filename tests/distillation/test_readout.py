"""The classifier fitted to the features a student ends with."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import castling_convert as cc
from castling_convert.distillation import readout as readout_module
from castling_convert.distillation.readout import KEPT, Readout
from castling_convert.tasks.classify import logit_divergence

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}


class Model(nn.Module):
    """Features through a classifier; `twice` returns something else than what the classifier does."""

    def __init__(self, bias: bool = True, twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.twice = nn.Linear(16, 5, bias), twice

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) * (2 if self.twice else 1)


def fed(model: nn.Module, student, teacher, batches: int = 8, seed: int = 1) -> Readout:
    """After some steps whose features are `student` of what the teacher's are `teacher` of."""
    readout = Readout(model)
    reference = Model()
    torch.manual_seed(seed)
    with readout.listening(), torch.no_grad():
        for _ in range(batches):
            x = torch.randn(32, 16)
            readout.keep(model(student(x)), reference(teacher(x)))
    return readout


@pytest.mark.parametrize("bias", [True, False])
def test_what_a_linear_map_takes_back_is_taken_back(bias):
    model = Model(bias=True)
    if not bias:
        model.head.bias = None
    torch.manual_seed(3)
    turn = torch.linalg.qr(torch.randn(16, 16))[0]
    readout = fed(model, lambda x: x @ turn, lambda x: x)
    share = readout.fit(1.0)
    assert share is not None and share < 0.2
    x = torch.randn(500, 16)
    with torch.no_grad():
        after = logit_divergence(model(x @ turn), Model()(x), 1.0)
        before = logit_divergence(Model()(x @ turn), Model()(x), 1.0)
    assert after < 0.3 * before


def test_nothing_is_changed_where_nothing_can_be_won():
    """A student that has its teacher's features."""
    model = Model()
    before = copy.deepcopy(model.state_dict())
    readout = fed(model, lambda x: x, lambda x: x)
    assert readout.fit(1.0) is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_is_changed_where_rounding_is_more_than_the_divergence(monkeypatch):
    """A divergence below zero, by which a share of it would say nothing."""
    monkeypatch.setattr(readout_module, "logit_divergence", lambda *given: logit_divergence(*given) - 1e-3)
    readout = fed(Model(), lambda x: 1.01 * x, lambda x: x)
    assert readout.fit(1.0) is None


def test_a_model_whose_logits_are_not_its_classifiers_is_left_alone():
    readout = fed(Model(twice=True), lambda x: x + 1, lambda x: x)
    assert len(readout.features) == 0
    assert readout.fit(1.0) is None


def test_a_frozen_classifier_is_left_alone():
    model = Model()
    model.head.requires_grad_(False)
    assert fed(model, lambda x: x + 1, lambda x: x).fit(1.0) is None


def test_the_last_images_are_kept():
    readout = fed(Model(), lambda x: x, lambda x: x, batches=KEPT // 32 + 3)
    torch.manual_seed(1)
    whole = torch.cat([torch.randn(32, 16) for _ in range(KEPT // 32 + 3)])
    assert torch.equal(readout.features, whole[-KEPT:])


@pytest.mark.parametrize(
    ("changes", "fits"),
    [((), True), (("distill.refit=false",), False), (("distill.optimizer.train=attention",), False),
     (("distill.align.share=1",), False)],
)  # fmt: skip
def test_a_run_ends_with_it(changes, fits):
    teacher = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    recipe = cc.Recipe.load("castling", ["distill.steps=10", "distill.batch_size=16", "distill.optimizer.lr=1e-9",
                                         "distill.align.share=0.2", *changes])  # fmt: skip
    student = cc.castle(teacher, recipe)
    head = student.head.weight.clone()
    cc.distill(student, teacher, [torch.randn(16, 3, 32, 32) for _ in range(4)], recipe, device="cpu")
    moved = not torch.allclose(student.head.weight, head, atol=1e-6)
    assert moved == fits
    assert not student.head._forward_hooks
