"""timm's HieraDet: windows, global blocks, pooled queries."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from castling_convert.castling import castled_layers
from castling_convert.families import family_of
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"window_spec": (4, 2, 2)},
    "padded": {},
    "layer_scale": {"init_values": 0.1},
}


def small(**arguments: Any) -> Any:
    torch.manual_seed(0)
    values = {"embed_dim": 16, "num_heads": 1, "stages": (1, 2, 1), "window_spec": (4, 4, 2), "q_pool": 2}
    values |= {"global_att_blocks": (2,), "num_classes": 10, "global_pos_size": (4, 4)}
    model = timm.create_model("sam2_hiera_tiny", **values | arguments).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 48)}
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(**VARIANTS[request.param])


class TestEveryVariant(road.EveryVariant):
    pass


def test_layers_say_what_is_pooled() -> None:
    layers = family_of(small()).layers(small())
    assert [(layer.tokens, layer.keys, layer.windows) for layer in layers] == [
        (16, 16, 6), (4, 16, 6), (24, 24, 1), (4, 16, 2),
    ]  # fmt: skip
    student = road.open_student_is_the_teacher(small())
    assert [layer.depthwise is not None for _, layer in castled_layers(student)] == [True, False, True, False]


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small(**VARIANTS["padded"]), tmp_path)
