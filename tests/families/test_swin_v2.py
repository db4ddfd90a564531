"""timm's Swin V2 and V2-CR: cosines with a learned scale, shifted windows, padding, and a bias from a network."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.families import family_of
from castling_convert.families.windows import cosine
from tests.families import road
from tests.models import LANDMARKS, recipe

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "v2": ("swinv2_tiny_window8_256", {"img_size": 32}),
    "v2-padded": ("swinv2_tiny_window8_256", {"img_size": 40, "always_partition": True}),
    "v2-resized": ("swinv2_base_window12to16_192to256", {"img_size": (32, 48)}),
    "cr": ("swinv2_cr_tiny_ns_224", {"img_size": (32, 48)}),
    "cr-padded": ("swinv2_cr_tiny_224", {"img_size": 40, "always_partition": True}),
}


def small(variant: str) -> Any:
    torch.manual_seed(0)
    name, arguments = VARIANTS[variant]
    values = {"window_size": 4, "embed_dim": 16, "depths": (2, 1), "num_heads": (1, 2), "num_classes": 10}
    return timm.create_model(name, **values, **arguments).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    def accounted(self, model: Any, student: Any) -> None:
        super().accounted(model, student)
        assert any(layer.regions > 1 for layer in family_of(model).layers(model))


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small("v2-padded"), tmp_path)


def test_scale_of_cosines_has_an_end() -> None:
    q, k = torch.randn(2, 1, 2, 3, 4, dtype=torch.float64).unbind(0)
    scaled, unit = cosine(q, k, torch.tensor([1.0, 9.0], dtype=torch.float64))
    lengths = torch.tensor([torch.e, 100.0], dtype=torch.float64)[:, None].expand(1, 2, 3)
    torch.testing.assert_close(scaled.norm(dim=-1), lengths, rtol=1e-6, atol=0)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones_like(lengths))


def test_padding_of_zeros_is_finite_in_half_precision() -> None:
    zeros = torch.zeros(1, 1, 2, 4, dtype=torch.float16)
    for x in cosine(zeros, zeros, torch.tensor([1.0])):
        assert x.dtype == torch.float16
        assert (x == 0).all()


def test_bias_of_a_network_is_without_its_dropout() -> None:
    teacher = small("cr")
    student = cc.castle(teacher.train(), recipe(**LANDMARKS)).eval()
    x = road.images_for(teacher)
    with torch.no_grad():
        torch.testing.assert_close(student(x), teacher.eval()(x), rtol=1e-4, atol=1e-5)
