"""timm's SAM: windows, global blocks, decomposed relative positions, rotary ones."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import timm
import torch
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias

import castling_convert as cc
from castling_convert.families import family_of
from castling_convert.families.sam import SamReader
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"img_size": 32},
    "padded": {"img_size": (40, 48)},
    "rotary": {"img_size": 32, "use_rel_pos": False, "use_rope": True, "qk_norm": True},
    "no_positions": {"img_size": 32, "use_rel_pos": False, "init_values": 0.1},
}


def small(**arguments: Any) -> Any:
    torch.manual_seed(0)
    values = {"patch_size": 8, "window_size": 3, "embed_dim": 16, "depth": 2, "num_heads": 2, "neck_chans": 16}
    values |= {"global_attn_indexes": (1,), "num_classes": 10}
    return timm.create_model("samvit_base_patch16_224", **values | arguments).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(**VARIANTS[request.param])


class TestEveryVariant(road.EveryVariant):
    pass


@torch.no_grad()
def test_factors_are_the_bias() -> None:
    """Exactly, of a grid that is no square."""
    attention = road.exact(small(img_size=(40, 48))).blocks[1].attn
    x = torch.randn(2, 5, 6, 16, dtype=torch.float64)
    reading = SamReader(attention).read(x)
    assert reading.more is not None
    f, g = reading.more
    q = reading.q.flatten(0, 1)
    expected = get_decomposed_rel_pos_bias(q, attention.rel_pos_h, attention.rel_pos_w, (5, 6), (5, 6))
    torch.testing.assert_close((attention.scale * f @ g.transpose(-2, -1)).flatten(0, 1), expected)


def test_global_blocks_alone_take_windows_of_the_recipe() -> None:
    model = small(img_size=(40, 48))
    assert [(layer.tokens, layer.windows) for layer in family_of(model).layers(model)] == [(9, 4), (30, 1)]
    student = cc.castle(model, cc.Recipe.parse({"attention": {"form": "landmarks", "window": 2}}, "test"))
    assert [block.attn.config.window for block in student.blocks] == [0, 2]


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    """Of windows that are padded and a global block; in its graph nothing is of tokens x tokens."""
    road.from_castle_to_onnx(small(img_size=(40, 56)), tmp_path)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "model.onnx")).graph
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.value_info]
    assert any(35 in shape for shape in shapes)
    assert not [shape for shape in shapes if shape.count(35) > 1]
    assert not [tensor.dims for tensor in graph.initializer if list(tensor.dims).count(35) > 1]
