"""The losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from castling_convert.distill.losses import attention_loss, logit_divergence, relative_mse, tap


def test_relative_mse():
    teacher = torch.tensor([3.0, 4.0])
    assert relative_mse(teacher, teacher) == 0
    assert relative_mse(torch.zeros(2), teacher) == 1
    assert relative_mse(torch.tensor([3.0, 9.0]), teacher).item() == pytest.approx(25 / 25)
    assert torch.isfinite(relative_mse(torch.ones(2), torch.zeros(2)))


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
    (relative_mse(student, teacher) + logit_divergence(student, teacher, 1.0)).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_attention_loss_is_the_mean_over_layers():
    teacher = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}
    student = {"a": torch.zeros(2, 3), "b": torch.full((2, 3), 1.5)}
    loss, layers = attention_loss(student, teacher)
    assert layers == {"a": torch.tensor(1.0), "b": torch.tensor(0.25)}
    assert loss.item() == pytest.approx(0.625)


def test_taps_are_taken_off_even_after_an_error(teacher):
    with pytest.raises(RuntimeError), tap(teacher, ["blocks.0.attn"]) as taps:
        teacher(torch.zeros(1, 3, 32, 32))
        assert taps.inputs["blocks.0.attn"].shape == taps.outputs["blocks.0.attn"].shape == (1, 17, 32)
        raise RuntimeError
    assert not any(module._forward_hooks for module in teacher.modules())
