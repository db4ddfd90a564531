"""timm's Swin: windows, shifted ones with masks, padding at the border, and a bias of places."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.attention.reader import low_rank
from castling_convert.families import family_of
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"img_size": 32},
    "padded": {"img_size": 40, "always_partition": True},
    "rectangular": {"img_size": (32, 48)},
}


def small(**arguments: Any) -> Any:
    torch.manual_seed(0)
    values = {"patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, **values, **arguments).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(**VARIANTS[request.param])


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small(**VARIANTS["padded"]), tmp_path)


def test_layers_say_their_windows_and_regions() -> None:
    layers = family_of(small(img_size=32)).layers(small(img_size=32))
    assert [(layer.tokens, layer.windows, layer.regions) for layer in layers] == [
        (16, 4, 1), (16, 4, 4), (16, 1, 1), (16, 1, 1),
    ]  # fmt: skip


def test_a_form_without_masks_leaves_masked_windows_with_the_reason() -> None:
    student: Any = cc.castle(small(img_size=32), "castling-fast")
    kept = [layer for layer in student.castling.layers if layer.status == "kept"]
    assert [layer.name for layer in kept] == ["layers.0.blocks.1.attn"]
    assert kept[0].why == "its windows are masked, and the linear form angular has no masks"


def test_factors_come_closest_to_the_bias() -> None:
    bias = torch.randn(2, 9, 9, dtype=torch.float64)
    for rank, close in ((9, True), (4, False), (12, True)):
        f, g = low_rank(bias, rank, 0.5)
        assert f.shape == g.shape == (2, 9, rank)
        missing = bias - 0.5 * f @ g.transpose(-2, -1)
        assert (missing.abs().max() < 1e-10) == close
        wanted = torch.linalg.svdvals(bias)[:, rank:].square().sum()
        torch.testing.assert_close(missing.square().sum(), wanted)
