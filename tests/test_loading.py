"""From a name and a weights file to a timm model."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from castling_convert.errors import ModelError, WeightsError
from castling_convert.families import castable_names
from castling_convert.loading import ALIASES, load_model, parse_model_args, read_state_dict, resolve_name

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def small(**arguments):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{"img_size": 32, "num_classes": 10, **SMALL, **arguments}).eval()


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_every_alias_is_a_timm_model(alias, name):
    assert resolve_name(alias) == name
    assert timm.is_model(name)


@pytest.mark.parametrize(
    "name", ["deit_small_patch16_224", "deit_small_patch16_224.fb_in1k", "hf-hub:timm/x", "resnet50"]
)
def test_names_that_stay(name):
    assert resolve_name(name) == name


@pytest.mark.parametrize(
    ("typed", "near"), [("diet_s", "deit_s"), ("deit-s", "deit_s"), ("vit_tiny_patch16_22", "vit_tiny_patch16_224")]
)
def test_near_names_are_suggested(typed, near):
    with pytest.raises(ModelError, match=rf"'{typed}'.*did you mean .*{near}\b"):
        resolve_name(typed)


def test_random_weights_and_size():
    model = load_model("vit_t", pretrained=False, image_size=(32, 48), num_classes=7, model_args={"depth": 1})
    assert not model.training
    assert model(torch.zeros(1, 3, 32, 48)).shape == (1, 7)
    assert len(model.blocks) == 1


def test_a_folders_head_is_not_replaced_by_a_random_one(tmp_path):
    save_for_hf(small(), tmp_path / "mine", safe_serialization=True)
    with pytest.raises(WeightsError, match=r"the pretrained head of local-dir:.* has 10 classes, one of 7 is random"):
        load_model(f"local-dir:{tmp_path / 'mine'}", num_classes=7)
    assert load_model(f"local-dir:{tmp_path / 'mine'}", num_classes=10).num_classes == 10
    assert load_model(f"local-dir:{tmp_path / 'mine'}", num_classes=0).num_classes == 0
    assert load_model(f"local-dir:{tmp_path / 'mine'}", pretrained=False, num_classes=7).num_classes == 7


def test_an_image_without_a_patch():
    with pytest.raises(ModelError, match="images of 4x12 hold no patch"):
        load_model("vit_t", pretrained=False, image_size=(4, 12))


def test_no_download_for_a_model_that_can_not_be_castled(monkeypatch):
    def download(*_args, **_kwargs):
        raise AssertionError("downloaded")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    for name in ("resnet50", "xcit_nano_12_p16_224", "mobilenetv3_small_100.lamb_in1k"):
        with pytest.raises(ModelError, match="can't be castled"):
            load_model(name)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_weights_file_brings_its_classes_and_channels(tmp_path, channels):
    source = small(in_chans=channels, num_classes=5)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = load_model("vit_t", weights=tmp_path / "w.safetensors", image_size=(32, 32), model_args=SMALL)
    images = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), source(images))
    assert str(tmp_path) not in str(model.pretrained_cfg)  # the bundle must not tell where the file lay


def test_position_embeddings_are_resized(tmp_path):
    source = small(img_size=64)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = load_model("vit_t", weights=tmp_path / "w.safetensors", image_size=(32, 32), model_args=SMALL)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


def test_a_local_dir(tmp_path, monkeypatch):
    source = small()
    save_for_hf(source, tmp_path / "mine", safe_serialization=True)
    monkeypatch.chdir(tmp_path)
    model = load_model("local-dir:mine")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), source(images))


def test_a_local_dir_with_code_in_its_weights(tmp_path):
    import os

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    save_for_hf(small(), tmp_path / "mine", safe_serialization=False)
    torch.save({"head.weight": Payload()}, tmp_path / "mine" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"refused.*\.safetensors"):
        load_model(f"local-dir:{tmp_path / 'mine'}")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("key", ["model", "state_dict", "state_dict_ema", "model_ema"])
def test_checkpoints_hold_their_weights_under_many_names(tmp_path, key):
    torch.save({key: {"head.weight": torch.ones(2)}, "epoch": 3}, tmp_path / "w.pth")
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["head.weight"], torch.ones(2))


def test_model_arguments():
    pairs = ("depth=2", "drop_path_rate=1e-1", "class_token=false", "out=[1, 2]", "name=x=y")
    assert parse_model_args(pairs) == {
        "depth": 2, "drop_path_rate": 0.1, "class_token": False, "out": [1, 2], "name": "x=y",
    }  # fmt: skip


def test_castable_names_are_of_supported_families():
    names = castable_names()
    assert "deit_small_patch16_224" in names
    assert not {"resnet50", "xcit_nano_12_p16_224"} & set(names)
