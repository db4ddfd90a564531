"""Hugging Face transformers' vision models, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import castling_convert as cc
from castling_convert.castling import close_masks
from castling_convert.errors import BundleError, ModelError
from castling_convert.families import family_of, input_size_of
from castling_convert.tasks import task_of
from tests.families import road
from tests.models import LANDMARKS, WINDOW, recipe

hub = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install castling-convert[transformers]"
)

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
TEN: dict[str, Any] = {"num_labels": 10}
REGISTERS: dict[str, Any] = {"num_register_tokens": 3}
SWIN: dict[str, Any] = {
    "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4,
}  # fmt: skip

VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", TEN),
    "vit tower": ("ViTModel", "ViTConfig", {}),
    "deit": ("DeiTForImageClassification", "DeiTConfig", TEN),
    "deit with two heads": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", TEN),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", TEN),
    "dinov2 tower": ("Dinov2Model", "Dinov2Config", {}),
    "dinov2 with registers": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        TEN | REGISTERS,
    ),
    "dinov3 tower": ("DINOv3ViTModel", "DINOv3ViTConfig", REGISTERS),
    "beit": ("BeitForImageClassification", "BeitConfig", TEN | {"use_relative_position_bias": True}),
    "beit tower, one bias": ("BeitModel", "BeitConfig", {"use_shared_relative_position_bias": True}),
    "beit tower, no bias": ("BeitModel", "BeitConfig", {}),
    "clip tower": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "clip tower, projected": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {"projection_dim": 16}),
    "siglip tower": ("SiglipVisionModel", "SiglipVisionConfig", {}),
    "swin": ("SwinForImageClassification", "SwinConfig", TEN | SWIN),
    "swin tower, padded": ("SwinModel", "SwinConfig", SWIN | {"image_size": 48}),
}


def small(name: str) -> Any:
    torch.manual_seed(0)
    model, config, arguments = VARIANTS[name]
    sizes = {} if config == "SwinConfig" else SMALL
    wide = {"intermediate_size": 64} if "Dinov2" not in config and config != "SwinConfig" else {}
    return getattr(hub, model)(getattr(hub, config)(**{**sizes, **wide, **arguments})).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    def accounted(self, model: Any, student: Any) -> None:
        kept = [layer.why for layer in student.castling.layers if layer.status != "castled"]
        pooling = "attention pooling has a single query and is already linear in the tokens"
        assert kept == [pooling] * (type(model).__name__ == "SiglipVisionModel")


@torch.no_grad()
def test_two_parts_are_the_whole(model: Any) -> None:
    images, task, teacher = road.images_for(model).double(), task_of(model), road.exact(model)
    whole = teacher(images)
    names = ("logits", "image_embeds", "pooler_output")
    expected = next(whole[name] for name in names if whole.get(name) is not None)
    torch.testing.assert_close(road.output(teacher, images), expected)
    assert task.name == ("classify" if "logits" in whole else "features")
    assert task.classes(model) in (10, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beit", "dinov3 tower", "swin"])
def test_from_castle_to_onnx(name: str, tmp_path: Path) -> None:
    road.from_castle_to_onnx(small(name), tmp_path, named=False)


@pytest.mark.slow
def test_half_precision(tmp_path: Path) -> None:
    student = cc.castle(small("vit"), recipe(**LANDMARKS))
    close_masks(student)
    assert cc.export(cc.fold(student), tmp_path / "half.onnx", precision="fp16").is_file()


@torch.no_grad()
def test_images_of_another_shape_and_as_many_patches() -> None:
    torch.manual_seed(0)
    long = hub.Dinov2ForImageClassification(hub.Dinov2Config(**SMALL | TEN | {"image_size": (16, 64)})).eval()
    square = small("dinov2")
    square.load_state_dict(long.state_dict())
    made_for_it, another = (cc.castle(model, recipe(**WINDOW)) for model in (long, square))
    another.load_state_dict(made_for_it.state_dict())
    x = torch.randn(2, 3, 16, 64)
    for model in (made_for_it, another):
        close_masks(model)
    torch.testing.assert_close(another(x).logits, made_for_it(x).logits)
    torch.testing.assert_close(cc.fold(another)(x).logits, made_for_it(x).logits, atol=1e-5, rtol=1e-4)


def test_what_a_user_subclasses_is_known() -> None:
    class Mine(hub.ViTForImageClassification):  # type: ignore[name-defined, misc]
        pass

    assert input_size_of(Mine(small("vit").config)) == (3, 32, 32)
    assert family_of(Mine(small("vit").config)).title == "Hugging Face transformers"


def test_what_is_refused_says_why(tmp_path: Path) -> None:
    student = cc.castle(small("vit"), recipe(**LANDMARKS))
    close_masks(student)
    with pytest.raises(BundleError, match=r"only models from timm.create_model can be saved"):
        cc.save(cc.fold(student), tmp_path / "b")
    with pytest.raises(ModelError, match="BertModel can't be castled"):
        cc.castle(hub.BertModel(hub.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)))
