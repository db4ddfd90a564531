"""timm's Hiera: mask units within the order of the tokens, global attention, pooled queries."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.hiera import Unroll

import castling_convert as cc
from castling_convert.castling import castled_layers
from castling_convert.families import family_of
from castling_convert.families.hiera import MaskUnitReader
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"img_size": (32, 48)},
    "units_in_two_stages": {"img_size": (32, 48), "mask_unit_attn": (True, True, False)},
    "one_pooling": {"q_pool": 1},
    "absolute_windows": {"abs_win_pos_embed": True, "global_pos_size": (4, 4)},
    "two_kinds_of_pooling": {"use_expand_proj": False, "init_values": 0.1},
}


def small(**arguments: Any) -> Any:
    torch.manual_seed(0)
    values = {"embed_dim": 16, "num_heads": 1, "stages": (1, 2, 1), "q_pool": 2, "mask_unit_size": (4, 4)}
    values |= {"mask_unit_attn": (True, False, False), "num_classes": 10, "img_size": (32, 32)}
    values |= arguments
    model = timm.create_model("hiera_tiny_224", **values).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, *values["img_size"])}
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(**VARIANTS[request.param])


class TestEveryVariant(road.EveryVariant):
    pass


def test_tokens_are_put_in_rows() -> None:
    """Those of an image, and those of its units, against timm's own order."""
    numbers = torch.arange(8 * 12.0).reshape(1, 96, 1)
    unrolled = Unroll((8, 12), (1, 1), [(2, 2), (2, 2)])(numbers)
    model = small(img_size=(32, 48))
    attention = model.blocks[0].attn
    for windowed in (True, False):
        attention.use_mask_unit_attn = windowed
        reader = MaskUnitReader(attention, (2, 3), (2, 2))
        rows = unrolled[:, reader.order]
        expected = numbers.reshape(2, 4, 3, 4).transpose(1, 2).reshape(1, 96, 1) if windowed else numbers
        assert torch.equal(rows, expected)
        assert torch.equal(rows[:, reader.back], unrolled)


def test_layers_say_their_units_and_what_is_pooled() -> None:
    layers = family_of(small()).layers(small())
    assert [(layer.tokens, layer.keys, layer.windows, layer.grid) for layer in layers] == [
        (16, 16, 4, (4, 4)), (4, 16, 4, (4, 4)), (16, 16, 1, (4, 4)), (4, 16, 1, (4, 4)),
    ]  # fmt: skip
    student = road.open_student_is_the_teacher(small())
    assert [layer.depthwise is not None for _, layer in castled_layers(student)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("arguments", "why"), [({"patch_drop_rate": 0.5}, "patch_drop_rate"), ({"mask_unit_size": (8, 8)}, "mask units")]
)
def test_what_is_not_known_is_refused(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(cc.CastlingError, match=why):
        cc.castle(small(**arguments))


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small(**VARIANTS["plain"]), tmp_path)
