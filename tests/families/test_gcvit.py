"""timm's GC-ViT: windows with queries of their own and with shared ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.gcvit import _create_gcvit

import castling_convert as cc
from castling_convert.attention import Reader
from castling_convert.families import family_of
from tests.families import road
from tests.models import LANDMARKS, closed_student

VARIANTS: dict[str, dict[str, Any]] = {"square": {"img_size": 32}, "larger": {"img_size": 64, "window_ratio": (16, 16)}}


def small(variant: str) -> Any:
    torch.manual_seed(0)
    values = {"embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), "window_ratio": (8, 8), "num_classes": 10}
    return _create_gcvit("gcvit_xxtiny", **{**values, **VARIANTS[variant]}).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_folded_model_is_the_same_in_onnx(tmp_path) -> None:
    """Its name alone does not describe so small a model, so that no bundle holds it."""
    student = closed_student(small("square"), **LANDMARKS)
    cc.export(cc.fold(student), tmp_path / "model.onnx", batch="dynamic")


@torch.no_grad()
def test_windows_of_an_image_share_its_queries() -> None:
    model = small("square")
    layer = family_of(model).layers(model)[1]
    reader = family_of(model).projections(model, layer)
    assert isinstance(reader, Reader)
    assert reader.windows == 4
    reading = reader.read(torch.randn(2 * 4, 16, 16), torch.randn(2, 4, 4, 16))
    of_image = reading.q.unflatten(0, (2, 4))
    assert (of_image == of_image[:, :1]).all()
    assert not torch.equal(of_image[0], of_image[1])
