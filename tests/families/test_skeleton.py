"""A model without its numbers."""

from __future__ import annotations

import pytest
import timm
import torch

from castling_convert.families import family_of, skeleton

NAMES = ("deit3_small_patch16_224", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224", "resnet18")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_timms_own_model(name):
    """Which torch fills with numbers that are none."""
    made, own = skeleton(name), timm.create_model(name, device="meta")
    assert str(made) == str(own)
    described = [
        {key: (value.shape, value.dtype, value.device) for key, value in model.state_dict().items()}
        for model in (made, own)
    ]
    assert described[0] == described[1]
    assert {value.device.type for value in made.state_dict().values()} == {"meta"}


def test_its_layers_are_those_of_the_whole_model():
    arguments = {"depth": 2, "img_size": 64}
    made, whole = (make("vit_tiny_patch16_224", **arguments) for make in (skeleton, timm.create_model))
    assert family_of(made).layers(made) == family_of(whole).layers(whole)


def test_other_tensors_are_filled_meanwhile_and_afterwards(monkeypatch):
    def entry(*_args, **_kwargs):
        return torch.zeros(3).fill_(2).mul_(4)

    monkeypatch.setattr(timm, "create_model", entry)
    assert skeleton("anything").tolist() == [8, 8, 8]
    assert torch.empty(3).fill_(1).tolist() == [1, 1, 1]


def test_what_timm_refuses_is_refused():
    with pytest.raises(RuntimeError, match="Unknown model"):
        skeleton("nothing")
    with pytest.raises(TypeError, match="no_such_argument"):
        skeleton("vit_tiny_patch16_224", no_such_argument=1)
