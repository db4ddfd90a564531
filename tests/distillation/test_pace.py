"""How long a run takes, and how many steps fit into a time."""

from __future__ import annotations

import copy

import pytest

import castling_convert as cc
from castling_convert.distillation.budget import settled
from castling_convert.distillation.guard import steps_of_trial
from castling_convert.distillation.pace import Pace, measure_pace
from castling_convert.errors import RecipeError
from castling_convert.recipe import AlignConfig, OptimizerConfig, Recipe, SettledDistill

CONFIG = SettledDistill(steps=100, batch_size=64, align=AlignConfig(share=0.75))


def test_minutes_and_steps_are_inverse():
    pace = Pace(align=0.4, student=1.2, look=0.05)
    trial = (8 + 2) * 1.5 * 1.2
    assert pace.minutes(CONFIG) == pytest.approx((100 * (0.75 * 0.4 + 0.25 * 1.2) + trial) / 60)
    assert pace.minutes(CONFIG, looked_at=2) == pytest.approx(pace.minutes(CONFIG) + 100 * 2 * 0.05 / 60)
    for steps in (1, 7, 33, 100, 5000):
        minutes = pace.minutes(CONFIG.model_copy(update={"steps": steps}), looked_at=2)
        assert pace.steps(minutes + 1e-9, CONFIG, looked_at=2) == steps
        if steps > 1:
            assert pace.steps(minutes - 1e-9, CONFIG, looked_at=2) == steps - 1


def test_without_a_trial_its_steps_are_not_counted():
    pace = Pace(align=0.4, student=1.2)
    alone = CONFIG.model_copy(update={"align": AlignConfig(share=1.0)})
    unguarded = CONFIG.model_copy(update={"optimizer": OptimizerConfig(guard=False)})
    assert pace.minutes(alone) == pytest.approx(100 * 0.4 / 60)
    assert pace.minutes(unguarded) == pytest.approx(100 * (0.75 * 0.4 + 0.25 * 1.2) / 60)
    assert steps_of_trial(2, 1000) == (8 + 8) * 1.5
    assert steps_of_trial(64, 9) == (8 + 1) * 1.5
    assert steps_of_trial(64, 3) == 3 * 1.5
    assert steps_of_trial(64, 0) == 0


def test_less_than_a_step_is_refused_with_a_way_out():
    with pytest.raises(RecipeError, match=r"one step takes 60 s here, more than --minutes 0\.5; .*batch_size"):
        Pace(align=60.0, student=60.0).steps(0.5, CONFIG)


def test_what_is_said():
    line = Pace(align=0.4, student=1.2).explain(CONFIG)
    assert line.startswith("100 steps of 64 images: about 1.3 min here (0.40 s a step of layers alone, 1.20 s")


@pytest.mark.parametrize(("share", "measured"), [(0.0, (False, True)), (0.5, (True, True)), (1.0, (True, False))])
def test_a_phase_that_is_not_there_is_not_timed(student, teacher, batches, share, measured):
    recipe = Recipe.load("castling", [f"distill.align.share={share}", "distill.steps=1000"])
    before = copy.deepcopy(student.state_dict())
    recipe = settled(recipe, student, teacher)
    pace = measure_pace(student, teacher, batches, recipe, "cpu")
    assert (pace.align is not None, pace.student is not None) == measured
    assert 0 < pace.minutes(recipe.distill) < 60
    assert all(tensor.equal(before[name]) for name, tensor in student.state_dict().items())


def test_convert_takes_as_many_steps_as_fit(teacher, tmp_path, monkeypatch):
    import castling_convert.pipeline.conversion as pipeline

    monkeypatch.setattr(pipeline, "measure_pace", lambda *_: Pace(align=10.0, student=10.0))
    summary = cc.convert(
        teacher, tmp_path / "bundle", minutes=0.76, recipe=Recipe.load("castling", ["distill.batch_size=2"])
    )
    assert summary["distill"]["steps"] == 3
    assert Recipe.load(tmp_path / "bundle" / "recipe.yaml").distill.steps == 3
    for minutes in (0, -1, float("nan")):
        with pytest.raises(RecipeError, match="--minutes"):
            cc.convert(teacher, tmp_path / "other", minutes=minutes)
    assert not (tmp_path / "other").exists()
