"""The losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

import castling_convert as cc
from castling_convert.castling import castled_layers
from castling_convert.distillation.losses import PREFIX_WEIGHT, attention_loss, channel_error, feature_distance, tap
from castling_convert.tasks.classify import logit_divergence
from tests.conftest import tiny_vit


def tokens() -> torch.Tensor:
    """[B, N, C] with channels of very different size."""
    scale = torch.tensor([0.01, 1.0, 1000.0])
    return torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(0)) * scale + 5 * scale


def test_channel_error_is_the_same_for_every_channel_and_for_a_channels_mean_one():
    teacher = tokens()
    assert channel_error(teacher, teacher) == 0
    assert channel_error(teacher.mean((0, 1)).expand_as(teacher), teacher).item() == pytest.approx(1, rel=1e-4)
    for channel in range(3):
        student = teacher.clone()
        student[..., channel] += 2 * teacher[..., channel].std(correction=0)
        assert channel_error(student, teacher).item() == pytest.approx(4 / 3, rel=1e-4)


def test_channels_that_carry_nothing_rule_nothing():
    teacher = tokens()
    teacher[..., 0] = 0
    student = teacher.clone()
    student[..., 0] = 1e-3
    assert 0 < channel_error(student, teacher) < 1
    assert torch.isfinite(channel_error(torch.ones(2, 3, 4), torch.zeros(2, 3, 4)))


def test_prefix_tokens_are_averaged_apart():
    teacher = tokens()
    deviation = teacher.std((0, 1), correction=0)
    student = teacher.clone()
    student[:, :2] += deviation
    assert channel_error(student, teacher, prefix=2).item() == pytest.approx(PREFIX_WEIGHT, rel=1e-4)
    student[:, 2:] += 3 * deviation
    assert channel_error(student, teacher, prefix=2).item() == pytest.approx(9 + PREFIX_WEIGHT, rel=1e-4)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_feature_distance_is_one_minus_the_cosine(prefix):
    teacher = tokens()
    assert feature_distance(7 * teacher, teacher, prefix).item() == pytest.approx(0, abs=1e-6)
    assert feature_distance(-teacher, teacher, prefix).item() == pytest.approx(4 if prefix else 2)


def test_logit_divergence_is_kl_of_the_teacher_to_the_student():
    teacher = torch.tensor([[math.log(3.0), 0.0]])  # 3/4 and 1/4
    student = torch.zeros(1, 2)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert logit_divergence(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-5)
    assert logit_divergence(teacher, teacher, 1.0).item() == pytest.approx(0, abs=1e-7)


def test_temperature_divides_the_logits_and_its_square_multiplies_the_loss():
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    expected = 4 * logit_divergence(student / 2, teacher / 2, 1.0)
    torch.testing.assert_close(logit_divergence(student, teacher, 2.0), expected)


def test_the_batch_is_averaged():
    student, teacher = torch.randn(1, 5), torch.randn(1, 5)
    one = logit_divergence(student, teacher, 1.0)
    torch.testing.assert_close(logit_divergence(student.repeat(4, 1), teacher.repeat(4, 1), 1.0), one)


def test_no_gradient_reaches_the_teacher():
    student, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    (channel_error(student, teacher) + logit_divergence(student, teacher, 1.0)).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_attention_loss_is_the_mean_over_layers():
    teacher = {"a": tokens(), "b": tokens()}
    student = {"a": tokens(), "b": tokens() + 2 * tokens().std((0, 1), correction=0)}
    castled = dict(
        zip(
            ("a", "b"),
            (layer for _, layer in castled_layers(cc.castle(tiny_vit(class_token=False, global_pool="avg")))),
            strict=True,
        )
    )
    loss, layers = attention_loss(castled.items(), student, teacher)
    assert {name: value.item() for name, value in layers.items()} == pytest.approx({"a": 0.0, "b": 4.0}, rel=1e-4)
    assert loss.item() == pytest.approx(2.0, rel=1e-4)


def test_taps_are_taken_off_even_after_an_error(teacher):
    with pytest.raises(RuntimeError), tap(teacher, ["blocks.0.attn"]) as taps:
        teacher(torch.zeros(1, 3, 32, 32))
        (tokens_in, *_), more = taps.inputs["blocks.0.attn"]
        assert more.keys() <= {"attn_mask", "is_causal"}
        assert tokens_in.shape == taps.outputs["blocks.0.attn"].shape == (1, 17, 32)
        raise RuntimeError
    assert not any(module._forward_hooks for module in teacher.modules())


def test_maps_that_a_head_reads_count_by_value_too():
    teacher = torch.randn(2, 6, 5)
    assert feature_distance(teacher, teacher, 0, True).item() == pytest.approx(0, abs=1e-6)
    longer = feature_distance(2 * teacher, teacher, 0, True)
    torch.testing.assert_close(longer, channel_error(2 * teacher, teacher))
    assert longer > 0.5
