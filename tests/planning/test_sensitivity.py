"""Every block castled alone, against the whole model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.attention import config_of
from castling_convert.castling import castled_layers, close_masks, layer_states, no_cheaper
from castling_convert.distillation.calibrate import calibrate
from castling_convert.planning.sensitivity import castable_blocks, images_needed, paying_blocks, sensitivities
from tests.families.test_sam import small as sam
from tests.families.test_swin import small as swin
from tests.models import images, tiny


def found(teacher, count: int = 16):
    return list(sensitivities(teacher, cc.Recipe.load("castling"), images(count)))


@torch.no_grad()
def sharp() -> Any:
    """A teacher that notices when a block is castled."""
    teacher = tiny()
    for block in teacher.blocks:
        block.attn.qkv.weight[: 2 * 48] *= 8
    teacher.head.weight *= 30
    return teacher


@torch.no_grad()
def castled_alone(teacher: Any, block: int, x: torch.Tensor, calibrated: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of the teacher and of a student with this block castled, fitted on the first images of x."""
    student = cc.castle(teacher, layers=str(block)).eval()
    calibrate(student, teacher, x[:calibrated])
    close_masks(student)
    return teacher(x).log_softmax(-1), student(x).log_softmax(-1)


def hold(entry: Any, expected: torch.Tensor, actual: torch.Tensor) -> None:
    """Against the divergence by its definition."""
    divergence = (expected.exp() * (expected - actual)).sum(-1).mean().item()
    # The last block's class token, which alone is read, has its exact softmax.
    assert (divergence > 1e-3) is (entry.block == 0)
    assert entry.divergence == pytest.approx(divergence, rel=1e-3, abs=1e-6)


def test_is_the_divergence_of_that_block_castled_alone():
    teacher, x = sharp(), images(16)
    for entry in found(teacher):
        expected, actual = castled_alone(teacher, entry.block, x, 16)
        hold(entry, expected, actual)
        assert entry.agreement == 100 * (expected.argmax(-1) == actual.argmax(-1)).float().mean().item()
        assert entry.layers == [f"blocks.{entry.block}.attn"]


def test_in_batches_it_is_the_same(monkeypatch):
    teacher, x = sharp(), images(12)
    monkeypatch.setattr("castling_convert.planning.sensitivity.EVAL_BATCH", 8)
    for entry in found(teacher, 12):
        hold(entry, *castled_alone(teacher, entry.block, x, 8))


def test_a_block_that_does_nothing_is_not_sensitive_and_a_sharp_one_is():
    teacher = tiny(depth=3)
    with torch.no_grad():
        teacher.blocks[0].attn.proj.weight.zero_()
        teacher.blocks[1].attn.qkv.weight[: 2 * 48] *= 8
    nothing, sharp, _ = found(teacher)
    assert nothing.divergence == pytest.approx(0, abs=1e-5)
    assert nothing.agreement == 100
    assert sharp.divergence > 100 * abs(nothing.divergence)


def test_the_teacher_is_not_changed():
    teacher = tiny()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    found(teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_blocks_that_can_not_be_castled_are_left_out():
    teacher = tiny("vit_base_patch16_siglip_224", depth=2)
    assert [entry.block for entry in found(teacher)] == [0, 1]


def test_of_layers_that_have_learned_alone():
    """What they learned is what is measured, and not how they were castled."""
    teacher, x = tiny(), images(16)
    aligned = cc.castle(teacher)
    for _, layer in castled_layers(aligned):
        with torch.no_grad():
            layer.proj.weight.mul_(0.5)
    for entry in sensitivities(teacher, cc.Recipe.load("castling"), x, layer_states(aligned)):
        student = copy.deepcopy(teacher)
        student.set_submodule(entry.layers[0], aligned.get_submodule(entry.layers[0]))
        close_masks(student)
        with torch.no_grad():
            expected, actual = teacher(x).log_softmax(-1), student.eval()(x).log_softmax(-1)
        divergence = (expected.exp() * (expected - actual)).sum(-1).mean().item()
        assert divergence > 1e-5
        assert entry.divergence == pytest.approx(divergence, rel=1e-3)


def test_of_a_model_without_classes_it_is_how_far_the_features_turn():
    teacher = sharp()
    teacher.reset_classifier(0)
    first, second = found(teacher)
    assert 1e-6 < first.divergence < 2
    assert second.divergence < 1e-6  # its class token, which the features are, has its exact softmax


def test_of_a_segmenter_a_few_images_at_once_tell_the_mean_over_all_pixels() -> None:
    """Its logits may be a hundred megabytes an image: neither model is given many, and no more than is enough."""
    teacher = timm.create_model(
        "segmenter", backbone="vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, depth=2, embed_dim=48,
        num_heads=3,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for block in teacher.backbone.model.blocks:
            block.attn.qkv.weight.mul_(8)
        teacher.classifier.weight.mul_(30)
    assert images_needed(teacher) == 32
    assert images_needed(tiny()) == 256
    x, seen, watched = images(11), [], copy.deepcopy(teacher)
    watched.register_forward_pre_hook(lambda _model, inputs: seen.append(len(inputs[0])))
    for entry in sensitivities(watched, cc.Recipe.load("castling"), x):
        student = cc.castle(teacher, layers=str(entry.block)).eval()
        calibrate(student, teacher, x[:4])
        close_masks(student)
        with torch.no_grad():
            expected, actual = (model(x).log_softmax(1) for model in (teacher, student))
        assert entry.divergence == pytest.approx((expected.exp() * (expected - actual)).sum(1).mean().item(), rel=1e-3)
        assert entry.divergence > 1e-5
        same = (expected.argmax(1) == actual.argmax(1)).float().mean().item()
        assert entry.agreement == pytest.approx(100 * same)
    assert set(seen) == {4, 3}


def test_blocks_that_castling_makes_no_cheaper_are_left() -> None:
    """Of a SAM encoder windows of 9 tokens, and not the global layer of 256; and where none gets cheaper, none."""
    model = sam(img_size=128)
    plain = {"form": "landmarks", "depthwise": "none", "prefix_rows": False}
    config = config_of({**plain, "landmarks": 8})
    numbers, dear = paying_blocks(model, config)
    assert numbers == [1]
    assert list(dear) == ["blocks.0.attn"]
    assert "windows of 9 tokens" in dear["blocks.0.attn"]
    assert no_cheaper(dear) == f"castling makes one layer no cheaper, blocks.0.attn: {dear['blocks.0.attn']}"
    assert paying_blocks(model, config_of({**plain, "landmarks": 1})) == ([0, 1], {})
    assert paying_blocks(model, config_of({**plain, "landmarks": 1000})) == ([0, 1], {})


def test_blocks_that_a_form_can_not_castle_are_not_planned_with() -> None:
    """Masked windows, by a form without masks."""
    assert castable_blocks(swin(img_size=32), cc.Recipe.load("castling").attention) == [0, 1, 2, 3]
    assert castable_blocks(swin(img_size=32), cc.Recipe.load("castling-fast").attention) == [0, 2, 3]
