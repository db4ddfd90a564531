"""Heads trained on a frozen backbone, and small models trained whole."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from castling_convert.demo import heads
from castling_convert.demo.heads import train_head, train_whole
from castling_convert.errors import DataError

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("castling_convert.data.scenes.TRAIN", 16)
    monkeypatch.setattr("castling_convert.data.scenes.VALIDATION", 16)


def model(kind: str) -> Any:
    torch.manual_seed(0)
    return timm.create_model(kind, num_classes=5 if kind == "segmenter" else 4, **SMALL)


@pytest.mark.parametrize("kind", ["segmenter", "detector"])
def test_a_head_alone(kind: str) -> None:
    net = model(kind)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    reached = train_head(net, "scenes", epochs=2)
    assert 0 <= reached <= 100
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert "classifier.weight" in changed
    assert not any(name.startswith("backbone.") for name in changed)
    assert not net.training


@pytest.mark.parametrize("train", [train_head, lambda net, data: train_whole(net, data, steps=1)])
def test_labels_of_more_classes_than_the_models(train: Any) -> None:
    net = timm.create_model("segmenter", num_classes=3, **SMALL)
    with pytest.raises(DataError, match=r"scenes can't be trained on: the masks have 5 classes and the model 3"):
        train(net, "scenes")


def test_it_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss on the images it learns from falls."""
    net, losses = model("segmenter"), []
    loss_of = net.loss_of
    monkeypatch.setattr(net, "loss_of", lambda *inputs: losses.append(loss_of(*inputs)) or losses[-1])
    train_head(net, "scenes", epochs=60)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("kind", ["segmenter", "detector"])
def test_a_small_one_whole(kind: str) -> None:
    net = model(kind)
    before = net.backbone.model.blocks[0].attn.qkv.weight.clone()
    assert 0 <= train_whole(net, "scenes", steps=2, batch_size=4) <= 100
    assert not torch.equal(net.backbone.model.blocks[0].attn.qkv.weight, before)
    assert set(heads.TRAINING) == {"segment", "detect"}
