"""timm's VOLO: outlook attention stays, softmax on maps is castled, class attention stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import _registry, volo

from castling_convert.families import family_of
from tests.families import road

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rectangular": {"img_size": (32, 64), "use_aux_head": False},
    "no class token": {"post_layers": None, "global_pool": "avg", "use_aux_head": False, "qkv_bias": True},
}


def a_small_volo(pretrained: bool = False, **arguments: Any) -> Any:
    values = {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 32), "num_heads": (2, 2, 2, 2), "stem_hidden_dim": 8}
    return volo._create_volo("volo_d1_224", pretrained, **values, **arguments)


def small(kind: str) -> Any:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # timm's names take no depths or widths
        patch.setitem(_registry._model_entrypoints, "volo_d1_224", a_small_volo)
        return timm.create_model("volo_d1_224", **{"img_size": 32, "num_classes": 10, **VARIANTS[kind]}).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    def accounted(self, model: Any, student: Any) -> None:
        kept = {layer.name: layer.why.split(" and ")[0] for layer in student.castling.layers if layer.status == "kept"}
        expected = {"network.0.0.attn": "outlook attention weighs a few neighbours without keys"}
        if model.post_network is not None:
            expected |= {f"post_network.{i}.attn": "class attention has a single query" for i in range(2)}
        assert kept == expected


def test_layers_lie_on_the_coarse_map() -> None:
    model = small("rectangular")
    layers = [layer for layer in family_of(model).layers(model) if layer.castable]
    assert [(layer.tokens, layer.grid) for layer in layers] == [(8, (2, 4))] * 3


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_registry._model_entrypoints, "volo_d1_224", a_small_volo)  # to load it by its name
    road.from_castle_to_onnx(small("rectangular"), tmp_path)
