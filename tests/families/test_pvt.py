"""timm's PVTv2: keys of a map reduced by a strided convolution."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.errors import ModelError
from castling_convert.families import family_of
from tests.families import road

VARIANTS: dict[str, tuple[int, int]] = {"square": (64, 64), "odd": (72, 40)}


def small(size: tuple[int, int], **arguments: Any) -> Any:
    torch.manual_seed(0)
    values = {"depths": (1, 1, 1), "embed_dims": (16, 16, 32), "num_heads": (1, 2, 2), "sr_ratios": (4, 2, 1)}
    values |= {"mlp_ratios": (2, 2, 2)}
    overlay = {"input_size": (3, *size)}
    model = timm.create_model("pvt_v2_b0", num_classes=10, pretrained_cfg_overlay=overlay, **values, **arguments)
    return model.eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(VARIANTS[request.param])


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small(VARIANTS["odd"]), tmp_path)


def test_only_unreduced_keys_have_a_residual_on_the_grid() -> None:
    model = small((64, 64))
    road.only_unreduced_keys_have_a_residual(model, [(256, 16, (4, 4)), (64, 16, (4, 4)), (16, 16, (4, 4))])


def test_keys_pooled_to_a_constant_are_kept_with_the_reason() -> None:
    with pytest.raises(ModelError, match="pooled to 7x7 places whatever the image"):
        cc.castle(small((64, 64), linear=True))


def test_another_image_size_needs_nothing() -> None:
    model = small((64, 64))
    family = family_of(model)
    assert [layer.tokens for layer in family.layers(model, (96, 64))] == [384, 96, 24]
    family.resize_(model, (96, 64))
    assert family.image_size(model) == (96, 64)
    road.open_student_is_the_teacher(model)
