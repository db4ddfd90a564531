"""timm's CaiT: talking heads stay, because without softmax they would cost more."""

from __future__ import annotations

import pytest
import timm
from timm.models.cait import TalkingHeadAttn

import castling_convert as cc
from castling_convert.attention import Shape, castled_cost, config_of
from castling_convert.errors import ModelError
from castling_convert.families import castable_names, family_of


def test_every_layer_stays_with_its_reason() -> None:
    model = timm.create_model("cait_xxs24_224", device="meta")
    layers = family_of(model).layers(model)
    assert len(layers) == 26
    assert {layer.kind: layer.reason.split()[0] for layer in layers if layer.reason} == {
        "TalkingHeadAttn": "talking",
        "ClassAttn": "class",
    }
    with pytest.raises(ModelError, match=r"nothing to castle in this Cait: .*talking heads mix the logits"):
        cc.castle(model)
    assert not castable_names("cait*")


@pytest.mark.parametrize("name", timm.list_models(module="cait"))
def test_castled_talking_heads_would_cost_more(name: str) -> None:
    model = timm.create_model(name, device="meta")
    attention = next(module for module in model.modules() if isinstance(module, TalkingHeadAttn))
    tokens, heads, dim = model.patch_embed.num_patches, attention.num_heads, attention.qkv.in_features
    config = config_of({"form": "landmarks", "depthwise": "none"})
    castled = castled_cost(Shape(tokens, dim, heads, dim, prefix=0, value_dim=dim, projections=0), config)
    assert castled.macs > tokens**2 * 2 * (dim + heads**2)
