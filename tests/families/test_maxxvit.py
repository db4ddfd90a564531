"""timm's MaxViT and CoAtNet: windows, grids, whole images, channels first and last, and every bias of places."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.castling import castled_layers
from castling_convert.families import family_of
from tests.families import road
from tests.models import LANDMARKS, WINDOW, recipe

SMALL = {
    "num_classes": 10, "img_size": 32, "stem_width": 8, "transformer_partition_ratio": 8, "transformer_dim_head": 8,
    "weight_init": "",
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "windows-and-grids": ("test_maxvit", {"depths": (1, 1), "img_size": (32, 64)}),
    "channels-first": (
        "test_maxvit",
        {"depths": (1,), "transformer_use_nchw_attn": True, "transformer_rel_pos_type": "mlp"},
    ),
    "parallel": ("maxvit_tiny_pm_256", {"depths": (1,)}),
    "tensorflow": ("maxvit_tiny_tf_224", {"depths": (1,), "stem_bias": False}),
    "whole-image": ("test_coatnet", {"depths": (1, 2), "block_type": ("C", "T")}),
    "network": ("coatnet_rmlp_0_rw_224", {"depths": (1, 1), "block_type": ("C", "T"), "transformer_rel_pos_dim": 8}),
    "no-bias": ("maxxvitv2_nano_rw_256", {"depths": (1,), "transformer_rel_pos_type": ""}),
}


def small(variant: str) -> Any:
    torch.manual_seed(0)
    name, arguments = VARIANTS[variant]
    dims = (16, 32)[: len(arguments["depths"])]
    return timm.create_model(name, embed_dim=dims, **{**SMALL, **arguments}).eval()


def sharp(name: str) -> Any:
    """A whole model, its attention more than a mean."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, img_size=64).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.mul_(4 if key.endswith("qkv.weight") else 1)
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(sharp("test_maxvit"), tmp_path)


def test_layers_say_their_windows_and_queries() -> None:
    model = small("windows-and-grids")
    assert [(layer.tokens, layer.grid, layer.windows) for layer in family_of(model).layers(model)] == [
        (32, (4, 8), 4), (32, (4, 8), 4), (32, (4, 8), 1), (32, (4, 8), 1),
    ]  # fmt: skip


def test_smaller_windows_are_for_whole_images() -> None:
    for variant, windows in (("windows-and-grids", [0, 0, 3, 3]), ("whole-image", [3, 3])):
        student = cc.castle(small(variant), recipe(**WINDOW))
        assert [layer.config.window for _, layer in castled_layers(student)] == windows
        road.closed_student_folds(small(variant), **WINDOW)


def test_bias_of_a_network_is_without_its_dropout() -> None:
    teacher = small("network")
    student = cc.castle(teacher.train(), recipe(**LANDMARKS)).eval()
    x = road.images_for(teacher)
    with torch.no_grad():
        torch.testing.assert_close(student(x), teacher.eval()(x))
