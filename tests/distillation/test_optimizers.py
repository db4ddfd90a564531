"""Steps and rates, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from castling_convert.distillation.guard import settle_rate, some_of, steps_of_trial
from castling_convert.distillation.muon import MOMENTUM, Muon, orthogonalize
from castling_convert.distillation.optimizers import align_rate, falling_rate


def test_a_rate_rises_and_falls() -> None:
    linear, cosine = (falling_rate(10, 0.2, kind) for kind in ("linear", "cosine"))
    assert [linear(step) for step in (0, 1, 2, 6, 10, 11)] == [0.5, 1, 1, 0.5, 0, 0]
    assert [cosine(step) for step in (0, 1, 2, 6, 10)] == pytest.approx([0.5, 1, 1, 0.5, 0])
    assert cosine(3) > linear(3)
    assert cosine(9) < linear(9)


def test_a_phase_of_one_step_has_its_whole_rate() -> None:
    assert falling_rate(1, 0.05, "linear")(0) == 1


@pytest.mark.parametrize(("steps", "rising"), [(3, 1), (8, 2), (13, 3), (40, 10), (80, 10), (400, 20)])
def test_a_short_phase_rises_for_ten_steps_or_a_quarter_of_it(steps: int, rising: int) -> None:
    factors = [align_rate(steps)(step) for step in range(steps)]
    assert factors[:rising] == [(step + 1) / rising for step in range(rising)]
    assert all(later < before for before, later in zip(factors[rising:], factors[rising + 1 :], strict=False))


@pytest.mark.parametrize("shape", [(8, 8), (8, 2), (2, 8)])
def test_muon_turns_a_matrix_by_the_same_angle_at_any_width(shape: tuple[int, int]) -> None:
    """An update is nearly orthogonal times max(1, rows/columns)^½, and follows Nesterov's momentum."""
    generator = torch.Generator().manual_seed(0)
    matrix = nn.Parameter(torch.zeros(shape))
    optimizer = Muon([{"params": [matrix]}], lr=1.0, fallback=1.0)
    momentum = torch.zeros(shape)
    scale = max(1.0, shape[0] / shape[1]) ** 0.5
    for _ in range(3):
        before = matrix.detach().clone()
        matrix.grad = torch.randn(shape, generator=generator)
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * matrix.grad
        ahead = MOMENTUM * momentum + (1 - MOMENTUM) * matrix.grad
        optimizer.step()
        update = before - matrix.detach()
        torch.testing.assert_close(update, scale * orthogonalize(ahead))
        values = torch.linalg.svdvals(update / scale)
        assert (values > 0.5).all()
        assert (values < 1.5).all()


def test_the_guard_takes_the_highest_rate_that_does_no_harm() -> None:
    """On w² a rate of 1 leads to and fro, and any higher one away; of 16, 4 and 1 it is the last. The rate rises over
    four steps, and w is -7 after one step at 16, 3 after two at 4: no third is made."""
    student = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        student.weight.fill_(1)
    optimizer = torch.optim.SGD(student.parameters(), lr=16.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    said: list[str] = []
    tried: list[float] = []

    def update(loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tried.append(student.weight.item())

    batches = [torch.ones(1, 1)] * 10
    settle_rate(student, lambda x: (student(x).square().mean(),), batches, optimizer, update, scheduler, said.append)
    assert optimizer.param_groups[0]["lr"] == scheduler.base_lrs[0] == 1
    assert student.weight.item() == 1
    assert len(said) == 1
    assert tried[:3] == [-7, -1, 3]
    assert len(tried) == 3 + 8


def test_a_short_phase_is_tried_at_its_whole_rate() -> None:
    """Of three batches two judge, so that there is one step to try with: w is -7 after it at a rate of 4."""
    student = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        student.weight.fill_(1)
    optimizer = torch.optim.SGD(student.parameters(), lr=4.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    tried: list[float] = []

    def update(loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tried.append(student.weight.item())

    batches = [torch.ones(1, 1)] * 3
    settle_rate(student, lambda x: (student(x).square().mean(),), batches, optimizer, update, scheduler, lambda _: None)
    assert tried == [-7, -1]
    assert optimizer.param_groups[0]["lr"] == 1


def test_the_guard_takes_no_hard_batch_for_harm() -> None:
    """At 1/16 (4w)² is level and (w/2)² falls, though the one is 64 times the other."""
    student = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(student.parameters(), lr=1 / 16)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    said: list[str] = []

    def update(loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    batches = [torch.full((1, 1), value) for value in (4.0, 0.5) * 4 + (0.5, 0.5)]
    settle_rate(student, lambda x: (student(x).square().mean(),), batches, optimizer, update, scheduler, said.append)
    assert optimizer.param_groups[0]["lr"] == 1 / 16
    assert said == []


@pytest.mark.parametrize(
    ("images", "most", "batches"), [(64, 100, 10), (8, 100, 10), (2, 100, 16), (2, 12, 12), (2, 3, 3)]
)
def test_a_rate_is_judged_by_enough_images(images: int, most: int, batches: int) -> None:
    endless = iter(lambda: torch.zeros(images, 1), None)
    assert len(some_of(endless, most)) == batches


@pytest.mark.parametrize(("images", "most"), [(64, 100), (8, 100), (2, 100), (2, 12)])
def test_a_trial_without_harm_costs_what_is_said_of_it(images: int, most: int) -> None:
    """A forward of both models is half a step, one that is learned from a whole one."""
    student = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    cost: list[float] = []

    def loss(x: torch.Tensor) -> tuple[torch.Tensor]:
        cost.append(1.0 if torch.is_grad_enabled() else 0.5)
        return (student(x).square().mean(),)

    def update(found: torch.Tensor) -> None:
        found.backward()
        optimizer.step()
        optimizer.zero_grad()

    batches = some_of(iter(lambda: torch.ones(images, 1), None), most)
    settle_rate(student, loss, batches, optimizer, update, scheduler, print)
    assert sum(cost) == steps_of_trial(images, most)
