"""timm's LeViT: tokens or maps, batch norms, a bias of distances, fewer queries than keys."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.families import family_of
from castling_convert.families.levit import fused
from tests.families import road

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tokens": ("levit_128s", {"img_size": (48, 80)}),
    "maps": ("levit_conv_128s", {"img_size": (48, 80)}),
    "pooled tokens": ("levit_384_s8", {"img_size": 40}),
    "pooled maps": ("levit_conv_384_s8", {"img_size": 40}),
}


def small(kind: str) -> Any:
    torch.manual_seed(0)
    name, arguments = VARIANTS[kind]
    values = {"embed_dim": (32, 48), "key_dim": 16, "depth": (1, 1), "num_heads": (2, 3)}
    model = timm.create_model(name, num_classes=10, **values, **arguments)
    for module in model.modules():
        if hasattr(module, "running_var"):  # statistics of data, and none that are zero and one
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small("maps"), tmp_path, steps=128, atol=1e-2)  # rounding grows in random networks


def test_layers_say_their_queries_and_keys() -> None:
    model = small("tokens")
    layers = family_of(model).layers(model)
    assert [(layer.tokens, layer.keys, layer.grid, layer.queries_are_keys) for layer in layers] == [
        (15, 15, (3, 5), True), (6, 15, (3, 5), False), (6, 6, (2, 3), True),
    ]  # fmt: skip
    assert [(layer.head_dim, layer.value_dim) for layer in layers] == [(16, 32), (16, 64), (16, 32)]


@pytest.mark.parametrize("kind", ["tokens", "maps"])
def test_folded_layers_have_no_batch_norm(kind: str) -> None:
    student = cc.castle(small(kind), "castling-fast")
    norms = [name for name, module in student.named_modules() if hasattr(module, "running_var") and ".reader." in name]
    assert norms
    for _, layer in student.named_modules():
        if hasattr(layer, "set_mask"):
            layer.set_mask(1.0)
    folded = cc.fold(student)
    assert not [
        name for name, module in folded.named_modules() if hasattr(module, "running_var") and ".reader." in name
    ]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["tokens", "maps"])
def test_a_fused_projection_is_the_projection_and_its_norm(kind: str) -> None:
    projection = small(kind).double().stages[0].blocks[0].attn.qkv
    x = torch.randn(2, 4, 32).double() if kind == "tokens" else torch.randn(2, 32, 2, 2).double()
    expected = projection(x)
    once = fused(projection)
    torch.testing.assert_close(once(x), expected)
    assert fused(once) is once
