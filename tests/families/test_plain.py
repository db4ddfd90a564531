"""Hierarchies and hybrids of timm whose attention is plain: CAFormer, FastViT, Visformer, TNT, MobileViT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv

import castling_convert as cc
from castling_convert.errors import ModelError
from castling_convert.families import family_of
from tests.families import road


def caformer() -> Any:
    """Of no architecture's name: those have fixed depths."""
    norms = [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2
    model = MetaFormer(
        depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), token_mixers=[SepConv, SepConv, Attention, Attention],
        norm_layers=norms, num_classes=10,
    )  # fmt: skip
    model.pretrained_cfg = {"input_size": (3, 96, 128)}
    return model


def fastvit() -> Any:
    """Its logits would be all the same: weights start small."""
    values = {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 64)}
    model = timm.create_model("fastvit_sa12", **values, **sized(96, 128))
    model.stages[3].blocks[0].token_mixer.qkv.weight.data *= 20
    return model


def visformer() -> Any:
    values = {"img_size": (64, 96), "embed_dim": 32, "depth": (1, 1, 1), "num_heads": 2, "init_channels": 8}
    return timm.create_model("visformer_tiny", num_classes=10, **values)


def tnt(**arguments: Any) -> Any:
    values = {"img_size": 32, "embed_dim": 32, "inner_dim": 8, "depth": 1, "num_heads_inner": 2, "num_heads_outer": 2}
    return timm.create_model("tnt_s_patch16_224", num_classes=10, **values, **arguments)


def legacy_tnt() -> Any:
    return tnt(legacy=True)


def mobilevit() -> Any:
    """Its last map is 2 x 3, which patches of 2 x 2 do not divide."""
    return timm.create_model("mobilevit_xxs", **sized(64, 96))


def sized(height: int, width: int) -> dict[str, Any]:
    return {"num_classes": 10, "pretrained_cfg_overlay": {"input_size": (3, height, width)}}


MODELS: dict[str, Callable[[], Any]] = {
    made.__name__: made for made in (caformer, fastvit, visformer, tnt, legacy_tnt, mobilevit)
}


def small(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().eval()


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastvit", "visformer", "tnt", "mobilevit"])
def test_from_castle_to_onnx(name: str, tmp_path) -> None:
    road.from_castle_to_onnx(small(name), tmp_path)


@pytest.mark.parametrize(
    ("name", "grids"),
    [
        ("caformer", [(6, 8), (3, 4)]),
        ("fastvit", [(3, 4)]),
        ("visformer", [(4, 6), (2, 3)]),
        ("tnt", [(4, 4), (2, 2)]),
        ("mobilevit", [(4, 6), (4, 6), (2, 3), (2, 3), (2, 3), (2, 3), (1, 2), (1, 2), (1, 2)]),
    ],
)
def test_layers_know_where_their_tokens_lie(name: str, grids: list[tuple[int, int]]) -> None:
    model = small(name)
    layers = family_of(model).layers(model)
    assert [layer.grid for layer in layers] == grids
    assert all(layer.tokens == layer.keys == layer.prefix + layer.grid[0] * layer.grid[1] for layer in layers)


def test_windows_are_what_attention_is_called_with() -> None:
    assert {layer.windows for layer in family_of(small("mobilevit")).layers(small("mobilevit"))} == {4}
    assert [(layer.windows, layer.prefix) for layer in family_of(small("tnt")).layers(small("tnt"))] == [(4, 0), (1, 1)]


def test_maps_of_any_size_where_the_grid_is_followed() -> None:
    student: Any = cc.castle(small("caformer"), "castling")  # open: what its teacher is
    x = torch.randn(1, 3, 64, 160)
    with torch.no_grad():
        torch.testing.assert_close(student(x), small("caformer")(x), rtol=1e-4, atol=1e-5)
    layer = student.get_submodule("stages.2.blocks.0.token_mixer")
    assert (layer.grid.height, layer.grid.width) == (4, 10)


def test_separable_attention_is_kept_with_the_reason() -> None:
    with pytest.raises(ModelError, match="separable self-attention is linear in the tokens already"):
        cc.castle(timm.create_model("mobilevitv2_050", num_classes=10), "castling")


@pytest.mark.parametrize("name", ["poolformer_s12", "fastvit_t8", "mobilenetv3_small_050"])
def test_a_model_of_convolutions_is_of_no_family(name: str) -> None:
    with pytest.raises(ModelError, match="can't be castled: no attention between tokens"):
        family_of(timm.create_model(name, device="meta"))
