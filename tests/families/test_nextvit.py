"""timm's Next-ViT: keys that are means of runs of tokens, batch norms."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.families import family_of
from tests.families import road
from tests.models import LANDMARKS

VARIANTS = {"square": (64, 64), "rectangular": (64, 128)}


def small(name: str) -> Any:
    torch.manual_seed(0)
    values: dict[str, Any] = {"depths": (1, 1, 5, 1), "stem_chs": (8, 8, 8), "num_classes": 10}
    overlay = {"input_size": (3, *VARIANTS[name])}
    return timm.create_model("nextvit_small", pretrained_cfg_overlay=overlay, **values).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(
        small("square"), tmp_path, atol=1e-2
    )  # of logits of some tens: rounding grows in random networks


def test_keys_are_means_but_in_the_last_stage() -> None:
    model = small("rectangular")
    layers = family_of(model).layers(model)
    assert [(layer.tokens, layer.keys, layer.grid, layer.queries_are_keys) for layer in layers] == [
        (128, 8, (1, 8), False), (32, 8, (1, 8), False), (8, 8, (2, 4), True),
    ]  # fmt: skip


def test_batch_norms_keep_the_statistics_of_the_teacher() -> None:
    teacher = small("square")
    student: Any = cc.castle(teacher, "castling")
    config = cc.Recipe.parse({"distill": {"steps": 2, "batch_size": 2}, "attention": LANDMARKS}, "test")
    cc.distill(student, teacher, [torch.randn(2, 3, 64, 64)], config, device="cpu")
    before = [value for name, value in teacher.named_buffers() if "running" in name]
    after = [value for name, value in student.named_buffers() if "running" in name]
    assert len(before) == len(after) > 10
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
