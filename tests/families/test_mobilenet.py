"""timm's MobileNetV4 hybrids: one head of keys and values, reduced by a strided convolution."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers.attention2d import Attention2d

from castling_convert.families import family_of
from castling_convert.families.mobilenet import Attention2dReader
from tests.families import road

VARIANTS = {"square": (64, 64), "odd": (80, 112)}


def small(name: str) -> Any:
    torch.manual_seed(0)
    overlay = {"input_size": (3, *VARIANTS[name])}
    model = timm.create_model("mobilenetv4_hybrid_medium_075", num_classes=10, pretrained_cfg_overlay=overlay)
    return model.eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(
        small("square"), tmp_path, atol=1e-1
    )  # of logits of some tens: rounding grows in random networks


def test_keys_are_reduced_where_the_map_is_large() -> None:
    model = small("odd")
    layers = family_of(model).layers(model)
    assert {(one.tokens, one.keys, one.grid, one.queries_are_keys) for one in layers} == {
        (35, 12, (3, 4), False), (12, 12, (3, 4), True),
    }  # fmt: skip


@torch.no_grad()
def test_attention_of_many_heads_on_maps() -> None:
    for head_first in (False, True):
        layer = Attention2d(16, 24, num_heads=2, expand_first=True, head_first=head_first)
        reader = Attention2dReader(layer)
        x = torch.randn(2, 16, 3, 5)
        reading = reader.read(x)
        y = torch.nn.functional.scaled_dot_product_attention(
            reading.q, reading.k, reading.v, scale=reader.softmax_scale
        )
        torch.testing.assert_close(reader.write(y.transpose(1, 2).flatten(2), reading), layer(x))
