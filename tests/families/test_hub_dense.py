"""Hugging Face transformers' encoders of dense models, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import castling_convert as cc
from castling_convert.castling import castled_layers, close_masks
from castling_convert.errors import ExportError, ModelError
from castling_convert.families import family_of
from castling_convert.families.hub_readers import HubSamReader
from castling_convert.tasks import task_of
from castling_convert.tasks.segment import Segment
from tests.families import road
from tests.models import LANDMARKS, recipe

hub = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install castling-convert[transformers]"
)

SEGFORMER: dict[str, Any] = {
    "num_encoder_blocks": 3, "depths": [1, 1, 1], "sr_ratios": [4, 2, 1], "hidden_sizes": [16, 16, 32],
    "patch_sizes": [7, 3, 3], "strides": [4, 2, 2], "num_attention_heads": [1, 2, 2], "mlp_ratios": [2, 2, 2],
    "decoder_hidden_size": 16, "image_size": [64, 64], "num_labels": 5,
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "window_size": 3,
}  # fmt: skip
VITDET: dict[str, Any] = PLAIN | {
    "image_size": 32, "pretrain_image_size": 32, "window_block_indices": [0], "residual_block_indices": [1],
    "use_relative_position_embeddings": True,
}  # fmt: skip
SAM: dict[str, Any] = PLAIN | {"image_size": 40, "output_channels": 8, "global_attn_indexes": [1], "mlp_dim": 32}

VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", SEGFORMER),
    "segformer classifier, odd": (
        "SegformerForImageClassification",
        "SegformerConfig",
        SEGFORMER | {"image_size": [72, 40], "reshape_last_stage": False},
    ),
    "segformer encoder": ("SegformerModel", "SegformerConfig", SEGFORMER),
    "vitdet": ("VitDetModel", "VitDetConfig", VITDET),
    "vitdet backbone, padded": (
        "VitDetBackbone",
        "VitDetConfig",
        VITDET | {"image_size": [40, 48], "out_features": ["stage2"]},
    ),
    "vitdet without relative places": (
        "VitDetModel",
        "VitDetConfig",
        VITDET | {"use_relative_position_embeddings": False},
    ),
    "sam": ("SamVisionModel", "SamVisionConfig", SAM),
    "sam without relative places": ("SamVisionModel", "SamVisionConfig", SAM | {"use_rel_pos": False}),
}


def small(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    model, config, values = VARIANTS[name]
    return getattr(hub, model)(getattr(hub, config)(**{**values, **arguments})).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@torch.no_grad()
def test_two_parts_are_the_whole(model: Any) -> None:
    images, teacher = road.images_for(model).double(), road.exact(model)
    whole, kind = teacher(images), type(model).__name__
    expected = (
        whole.feature_maps[-1] if "Backbone" in kind else whole["logits" if "For" in kind else "last_hidden_state"]
    )
    torch.testing.assert_close(road.output(teacher, images), expected)
    tasks = {"SegformerForSemanticSegmentation": "segment", "SegformerForImageClassification": "classify"}
    assert task_of(model).name == tasks.get(kind, "features")
    assert task_of(model).classes(model) == (5 if kind in tasks else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segformer", "segformer classifier, odd", "vitdet backbone, padded", "sam"])
def test_from_castle_to_onnx(name: str, tmp_path: Path) -> None:
    road.from_castle_to_onnx(small(name), tmp_path, named=False)


@pytest.mark.slow
def test_an_artifact_of_any_size_and_one_of_half_precision(tmp_path: Path) -> None:
    student = cc.castle(small("segformer"), recipe(**LANDMARKS))
    close_masks(student)
    folded = cc.fold(student)
    assert cc.export(folded, tmp_path / "half.onnx", precision="fp16").is_file()
    assert cc.export(folded, tmp_path / "any.onnx", image_size=(64, 64), image_range=((32, 32), (96, 96))).is_file()


@torch.no_grad()
def test_factors_are_the_bias() -> None:
    """Exactly."""
    attention = road.exact(small("sam")).vision_encoder.layers[1].attn
    reading = HubSamReader(attention).read(torch.randn(2, 5, 5, 16, dtype=torch.float64))
    assert reading.more is not None
    f, g = reading.more
    q = reading.q.flatten(0, 1)
    expected = attention.get_decomposed_rel_pos(q, attention.rel_pos_h, attention.rel_pos_w, (5, 5), (5, 5))
    torch.testing.assert_close((attention.scale * f @ g.transpose(-2, -1)).flatten(0, 1), expected.reshape(4, 25, 25))


def test_only_unreduced_keys_have_a_residual_on_the_grid() -> None:
    model = small("segformer")
    road.only_unreduced_keys_have_a_residual(model, [(256, 16, (4, 4)), (64, 16, (4, 4)), (16, 16, (4, 4))])


def test_windows_and_blocks_that_see_all() -> None:
    for name in ("vitdet backbone, padded", "sam"):
        model = small(name)
        first = family_of(model).layers(model)[0]
        assert (first.windows, first.tokens) == (4, 9)
        student = cc.castle(model, cc.Recipe.parse({"attention": {"form": "landmarks", "window": 2}}, "test"))
        windows = [layer.config.window for _, layer in castled_layers(student)]
        assert windows == [0, 2]


@torch.no_grad()
@pytest.mark.parametrize("name", ["segformer", "vitdet"])
def test_another_image_size_is_what_the_model_makes_of_it(name: str) -> None:
    model = road.exact(small(name))
    family, images = family_of(model), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    expected = road.output(model, images)
    family.resize_(model, (64, 96))
    assert family.image_size(model) == (64, 96)
    torch.testing.assert_close(road.output(model, images), expected)
    road.open_student_is_the_teacher(model)


def test_a_segformer_learns_from_images_of_several_sizes() -> None:
    teacher = small("segformer")
    wanted = recipe(**LANDMARKS).override("data.sizes=[64, 96]", "distill.steps=6", "distill.batch_size=2")
    student = cc.castle(teacher, wanted)
    cc.distill(student, teacher, [torch.randn(2, 3, 64, 64)] * 6, wanted, device="cpu")
    assert road.output(cc.fold(student), torch.randn(1, 3, 96, 96)).shape == (1, 5, 24, 24)


def test_sizes_that_are_refused() -> None:
    with pytest.raises(ModelError, match="SamVisionModel takes images of 40x40 alone, not of 64x64"):
        family_of(small("sam")).layers(small("sam"), (64, 64))
    student = cc.castle(small("vitdet"), recipe(**LANDMARKS))
    with pytest.raises(ModelError, match="learned places of one image size"):
        family_of(student).resize_(student, (64, 64))


def test_several_maps_have_no_artifact(tmp_path: Path) -> None:
    student = cc.castle(small("vitdet backbone, padded", out_features=["stage1", "stage2"]), recipe(**LANDMARKS))
    close_masks(student)
    with pytest.raises(ExportError, match="returns several feature maps"):
        cc.export(cc.fold(student), tmp_path / "m.onnx")


@torch.no_grad()
def test_a_whole_sam() -> None:
    """Its encoder is castled, and what its decoder makes of points is the same."""
    torch.manual_seed(0)
    prompts = {"hidden_size": 8, "image_size": 40, "patch_size": 8, "image_embedding_size": 5, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 8,
        "mlp_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 8,
    }
    config = hub.SamConfig(
        vision_config=SAM | {"num_pos_feats": 4}, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    model = hub.SamModel(config).eval().double()
    student = cc.castle(model, recipe(**LANDMARKS)).eval()
    assert [layer.name for layer in student.castling.layers if layer.status == "castled"] == [
        "vision_encoder.layers.0.attn", "vision_encoder.layers.1.attn",
    ]  # fmt: skip
    asked = {"pixel_values": torch.randn(1, 3, 40, 40).double(), "input_points": torch.rand(1, 1, 1, 2).double() * 40}
    torch.testing.assert_close(student(**asked).pred_masks, model(**asked).pred_masks, rtol=0, atol=1e-9)


def test_logits_of_a_quarter_are_compared_with_whole_masks() -> None:
    logits = torch.randn(2, 5, 4, 4)
    masks = torch.nn.functional.interpolate(logits, size=(16, 16), mode="bilinear", align_corners=False).argmax(1)
    assert Segment().correct(logits, masks) == 100
