"""timm's EfficientFormer, both versions: biases of places, wide values, queries of every second place."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.castling import close_masks
from castling_convert.families import family_of
from tests.families import road

VARIANTS = ("first", "second")


def small(name: str) -> Any:
    torch.manual_seed(0)
    if name == "first":  # its table is of 7 x 7 places, an image of 224 x 224
        values = {"depths": (1, 1, 1, 2), "embed_dims": (8, 8, 16, 32), "num_vit": 2}
        return timm.create_model("efficientformer_l1", num_classes=10, **values).eval()
    values = {"depths": (1, 1, 2, 2), "embed_dims": (8, 16, 16, 32), "img_size": 96}
    return timm.create_model("efficientformerv2_s0", num_classes=10, **values).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    def accounted(self, model: Any, student: Any) -> None:
        assert all(layer.status == "castled" or "heads mix" in layer.why for layer in student.castling.layers)


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small("second"), tmp_path)


def test_layers_of_both_versions() -> None:
    first, second = (family_of(small(name)).layers(small(name)) for name in VARIANTS)
    assert [(one.tokens, one.keys, one.head_dim, one.value_dim, one.extra) for one in first] == [
        (49, 49, 32, 128, 16)
    ] * 2
    castled = [one for one in second if one.castable]
    assert [(one.tokens, one.keys, one.grid, one.queries_are_keys) for one in castled] == [(9, 36, (6, 6), False)]
    assert {one.reason for one in second if not one.castable} == {
        "its heads mix their weights after softmax, and a linear form of that is as many times as wide"
    }


def test_a_folded_layer_has_no_table_of_places() -> None:
    student: Any = cc.castle(small("second"), "castling")
    close_masks(student)
    folded: Any = cc.fold(student)
    assert not [name for name in folded.state_dict() if "table" in name]
    assert [name for name in student.state_dict() if "table" in name]
