"""The annealing schedule as a pure function of the step."""

from __future__ import annotations

import itertools

import pytest

from castling_convert.distillation.schedule import OPEN, Mask, Schedule
from castling_convert.recipe import AlignConfig, MaskConfig, SettledDistill

TOKENS = 197


WHOLE = AlignConfig(share=0)


def thresholds(steps: int, **mask) -> list[float]:
    schedule = Schedule.of(SettledDistill(steps=steps, batch_size=4, align=WHOLE, mask=MaskConfig(**mask)), TOKENS)
    return [schedule.mask(step).threshold for step in range(steps)]


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 400])
@pytest.mark.parametrize("mask", [{}, {"closed_from": 0.99}, {"open_until": 0.0, "closed_from": 0.01}])
def test_rises_and_ends_exactly_closed(steps, mask):
    values = thresholds(steps, schedule="threshold", **mask)
    assert values[-1] == 1.0
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)


PHASES = {"schedule": "threshold", "start": 0.1, "open_until": 0.1, "closed_from": 0.6}


def test_phases_of_400_steps():
    values = thresholds(400, **PHASES)
    assert values[:40] == [0.0] * 40
    assert 0 < values[40] < 1 / TOKENS
    assert values[239] < 1.0
    assert values[240:] == [1.0] * 160


def test_rises_geometrically():
    values = thresholds(400, **PHASES)[40:240]
    ratios = [after / before for before, after in itertools.pairwise(values)]
    assert max(ratios) == pytest.approx(min(ratios))
    assert values[0] / ratios[0] == pytest.approx(0.1 / TOKENS)  # one step before the first rise
    assert values[-1] * ratios[0] == pytest.approx(1.0)  # and one after the last


def test_a_threshold_closes_over_the_first_third():
    values = thresholds(400, schedule="threshold")
    assert 1 / TOKENS < values[0] < 1.1 / TOKENS
    assert values[119] < 1.0
    assert values[120:] == [1.0] * 280


def test_one_step_is_closed_and_two_are_open_then_closed():
    assert thresholds(1) == [1.0]
    first, last = thresholds(2, schedule="threshold")
    assert first < last == 1.0


def test_none_never_opens_and_is_the_default():
    assert thresholds(20, schedule="none") == thresholds(20) == [1.0] * 20


def masks(steps: int, layers: int, **mask) -> list[list[Mask]]:
    """The masks of every layer, a list for each step."""
    schedule = Schedule.of(
        SettledDistill(steps=steps, batch_size=4, align=WHOLE, mask=MaskConfig(**mask)), TOKENS, layers
    )
    return [[schedule.mask(step, layer) for layer in range(layers)] for step in range(steps)]


def test_a_gate_falls_linearly_and_keeps_every_entry():
    falling = [step[0] for step in masks(100, 1, schedule="gate", closed_from=0.5)]
    gates = [mask.gate for mask in falling]
    assert {mask.threshold for mask in falling[:50]} == {0.0}
    assert gates[:50] == pytest.approx([1 - (step + 1) / 51 for step in range(50)])
    assert not any(mask.closed for mask in falling[:50])
    assert all(mask.closed for mask in falling[50:])


@pytest.mark.parametrize("kind", ["threshold", "gate"])
def test_layers_close_one_after_the_other(kind):
    steps = masks(100, 4, schedule=kind, order="first", closed_from=0.4)
    closing = [next(at for at, step in enumerate(steps) if step[layer].closed) for layer in range(4)]
    assert closing == [10, 20, 30, 40]
    assert steps[5][1:] == [OPEN] * 3
    reverse = masks(100, 4, schedule=kind, order="last", closed_from=0.4)
    assert [step[::-1] for step in reverse] == steps


@pytest.mark.parametrize("kind", ["threshold", "gate"])
@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_few_steps_for_many_layers_still_end_closed(kind, order, steps):
    found = masks(steps, 12, schedule=kind, order=order, closed_from=0.9)
    assert not all(mask.closed for mask in found[0])
    assert all(mask.closed for mask in found[-1])


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 400])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["threshold", "gate", "none"])
def test_the_shares_of_a_mask_are_of_what_aligning_leaves(steps, share, kind):
    config = SettledDistill(steps=steps, batch_size=4, align=AlignConfig(share=share), mask=MaskConfig(schedule=kind))
    schedule = Schedule.of(config, TOKENS)
    assert schedule.align_until == round(share * steps)
    alone = Schedule.of(
        config.model_copy(update={"steps": steps - schedule.align_until, "align": WHOLE}), TOKENS
    )  # fmt: skip
    whole = range(schedule.align_until, steps)
    assert [schedule.mask(step) for step in whole] == [alone.mask(step) for step in range(len(whole))]
