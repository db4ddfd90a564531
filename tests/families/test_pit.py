"""timm's PiT: plain attention in stages, prefix tokens throughout."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from castling_convert.families import family_of
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "distilled, rectangular": {"distilled": True, "img_size": (32, 64)},
}


def small(**arguments: Any) -> Any:
    torch.manual_seed(0)
    values = {"img_size": 32, "patch_size": 8, "stride": 4, "base_dims": (8, 8), "depth": (1, 1), "heads": (2, 4)}
    return timm.create_model("pit_ti_224", num_classes=10, **{**values, **arguments}).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(**VARIANTS[request.param])


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small(distilled=True), tmp_path)


def test_every_stage_has_its_grid_and_its_prefix_tokens() -> None:
    model = small(distilled=True, img_size=(32, 64))
    layers = family_of(model).layers(model)
    assert [(layer.grid, layer.prefix, layer.tokens) for layer in layers] == [((7, 15), 2, 107), ((4, 8), 2, 34)]
