"""timm's MViTv2: pooled q, k and v, relative positions by products with q, and q added to what attention returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import mvitv2

import castling_convert as cc
from castling_convert.castling import castled_layers
from castling_convert.distillation.losses import tap
from castling_convert.errors import ModelError
from castling_convert.families import family_of
from castling_convert.families.mvit import distances
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "class token": {"use_cls_token": True},
    "widened late": {"expand_attn": False, "use_abs_pos": True},
    "no positions": {"rel_pos_type": "", "residual_pooling": False},
    "pooled by maxima": {"mode": "max"},
}


def config_of(kind: str) -> Any:
    values = {"depths": (1, 2), "embed_dim": (16, 32), "num_heads": (1, 2), "stride_q": ((1, 1), (2, 2))}
    return mvitv2.MultiScaleVitCfg(**values, stride_kv_adaptive=(2, 2), **VARIANTS[kind])


def small(kind: str) -> Any:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # timm's names take no depths or widths
        patch.setitem(mvitv2.model_cfgs, "mvitv2_tiny", config_of(kind))
        return timm.create_model("mvitv2_tiny", img_size=32, num_classes=10).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("class token")
    monkeypatch.setitem(mvitv2.model_cfgs, "mvitv2_tiny", config_of("class token"))  # to load it by its name
    road.from_castle_to_onnx(model, tmp_path)


def test_it_keeps_the_size_it_was_made_with() -> None:
    model = small("plain")
    with pytest.raises(ModelError, match=r"MultiScaleVit keeps the image size .*--model-arg img_size=\[64,48\]"):
        family_of(model).resize_(model, (64, 48))


def test_layers_say_their_queries_keys_and_places() -> None:
    model = small("class token")
    layers = family_of(model).layers(model)
    assert [(layer.tokens, layer.keys, layer.extra, layer.queries_are_keys) for layer in layers] == [
        (65, 17, 8, False), (17, 65, 16, False), (17, 17, 8, True),
    ]  # fmt: skip


@pytest.mark.parametrize(("queries", "keys"), [(8, 8), (8, 4), (4, 8), (7, 14), (14, 7)])
def test_distances_are_those_of_timm(queries: int, keys: int) -> None:
    """On a row of places, with tables that hold their own indices."""
    table = torch.arange(2 * max(queries, keys) - 1, dtype=torch.float64)[:, None]
    none = torch.zeros(2 * keys - 1, 1, dtype=torch.float64)
    bias = mvitv2.cal_rel_pos_type(
        torch.zeros(1, 1, queries, keys, dtype=torch.float64), torch.ones(1, 1, queries, 1, dtype=torch.float64),
        False, [queries, 1], [keys, 1], table, none,
    )  # fmt: skip
    assert torch.equal(bias[0, 0].long(), distances(queries, keys))


def test_a_castled_layer_knows_how_much_comes_in() -> None:
    """Keys are fewer than that; training keeps as many batches as fit."""
    student = cc.castle(small("class token"))
    with tap(student, [name for name, _ in castled_layers(student)]) as seen:
        student(road.images_for(student, 1))
    for name, layer in castled_layers(student):
        (x, _), _ = seen.inputs[name]
        assert layer.numbers == x.numel()
