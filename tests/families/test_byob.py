"""timm's BoTNet: relative places as exact factors of the logits."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from castling_convert.families import family_of
from tests.families import road

VARIANTS = {
    "plain": {"img_size": 64},
    "narrow keys, rectangular": {"img_size": (64, 96)},
}


def small(name: str) -> Any:
    torch.manual_seed(0)
    architecture = "botnet26t_256" if name == "plain" else "eca_botnext26ts_256"
    return timm.create_model(architecture, num_classes=10, **VARIANTS[name]).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@pytest.mark.slow
def test_from_castle_to_onnx(tmp_path) -> None:
    road.from_castle_to_onnx(small("plain"), tmp_path)


def test_layers_have_factors_for_height_and_width() -> None:
    model = small("narrow keys, rectangular")
    layers = family_of(model).layers(model)
    assert [(one.grid, one.extra, one.head_dim, one.value_dim) for one in layers] == [
        ((4, 6), 10, 16, 64), ((4, 6), 10, 16, 128), ((2, 3), 5, 16, 128),
    ]  # fmt: skip


def test_halos_and_lambdas_are_kept_with_the_reason() -> None:
    model = timm.create_model("lamhalobotnet50ts_256", device="meta")
    reasons = {one.kind: one.reason for one in family_of(model).layers(model)}
    assert reasons == {
        "BottleneckAttn": None,
        "HaloAttn": "its softmax is within blocks and their halos, which is linear in the tokens already",
        "LambdaLayer": "lambda layers have no softmax of queries and keys, and are linear in the queries already",
    }


def test_attention_pooling_is_kept_with_the_reason() -> None:
    model = timm.create_model("resnet50_clip", device="meta")
    found = [one.reason for one in family_of(model).layers(model)]
    assert found == ["attention pooling has a single query and is already linear in the tokens"]
