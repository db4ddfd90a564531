"""timm's Twins: windows that a layer makes itself, and keys that are fewer than queries."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from castling_convert.families import family_of
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "svt": {"img_size": 32, "wss": (4, 4)},
    "padded": {"img_size": (32, 48), "wss": (3, 3)},
    "pcpvt": {"img_size": 32},
}


def small(variant: str) -> Any:
    torch.manual_seed(0)
    values = {"embed_dims": (16, 32), "depths": (2, 2), "num_heads": (1, 2), "mlp_ratios": (2, 2), "sr_ratios": (2, 1)}
    name = "twins_pcpvt_small" if variant == "pcpvt" else "twins_svt_small"
    return timm.create_model(name, num_classes=10, **values, **VARIANTS[variant]).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small("padded"), tmp_path)


def test_layers_say_their_windows_and_keys() -> None:
    model = small("padded")
    layers = family_of(model).layers(model)
    assert [(layer.windows, layer.tokens, layer.keys, layer.queries_are_keys) for layer in layers] == [
        (12, 9, 9, True), (1, 96, 24, False), (4, 9, 9, True), (1, 24, 24, True),
    ]  # fmt: skip
