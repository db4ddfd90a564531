"""timm's NesT: blocks of an image as a dimension of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.nest import _create_nest

import castling_convert as cc
from castling_convert.families import family_of
from tests.families import road
from tests.models import LANDMARKS, closed_student

VARIANTS: dict[str, dict[str, Any]] = {"plain": {}, "as-in-jax": {"pad_type": "same"}}


def small(variant: str) -> Any:
    torch.manual_seed(0)
    values = {"img_size": 32, "num_levels": 2, "embed_dims": (16, 32), "depths": (1, 2), "num_heads": (2, 4)}
    return _create_nest("nest_tiny", num_classes=10, **values, **VARIANTS[variant]).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_folded_model_is_the_same_in_onnx(tmp_path) -> None:
    """Its name alone does not describe so small a model, so that no bundle holds it."""
    student = closed_student(small("plain"), **LANDMARKS)
    cc.export(cc.fold(student), tmp_path / "model.onnx", batch="dynamic")


def test_layers_say_their_blocks() -> None:
    model = small("plain")
    assert [(layer.tokens, layer.windows, layer.grid) for layer in family_of(model).layers(model)] == [
        (16, 4, (4, 4)), (16, 1, (4, 4)), (16, 1, (4, 4)),
    ]  # fmt: skip
