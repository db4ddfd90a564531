"""Layers alone: which batches they meet, and how often."""

from __future__ import annotations

import collections

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.distillation.align import HELD_BATCHES, Echo, Lessons
from castling_convert.distillation.budget import settled
from castling_convert.distillation.device import make_accelerator
from castling_convert.distillation.losses import Taps

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}


def met(echo: Echo) -> list[int]:
    """The batch of every step."""
    return [echo.first_batch(step) + echo.order(step // echo.part)[step % echo.part] for step in range(echo.steps)]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 5, 24, 25, 71])
def test_every_batch_is_met_so_often_and_no_batch_is_left_out(times, steps):
    echo = Echo(steps, times, held=4)
    counts = collections.Counter(met(echo))
    assert sorted(counts) == list(range(echo.batches))
    assert max(counts.values()) <= times
    assert echo.batches == pytest.approx(steps / times, abs=1)


def test_batches_come_in_an_order_of_chance_that_the_seed_decides():
    assert met(Echo(16, 2, held=8)) != sorted(met(Echo(16, 2, held=8)))
    assert met(Echo(16, 2, held=8)) == met(Echo(16, 2, held=8))
    assert met(Echo(16, 2, held=8)) != met(Echo(16, 2, held=8, seed=1))


def test_more_often_than_there_are_steps():
    echo = Echo(5, 10**9, held=4)
    assert met(echo) == [0] * 5


def test_once_is_in_order():
    assert met(Echo(7, 1, held=1)) == list(range(7))


def test_the_second_phase_reads_on_where_the_first_ended():
    echo = Echo(10, 2, held=3)  # parts of six steps: three batches, then two
    assert echo.batches == 5
    assert [echo.first_batch(step) for step in (0, 5, 6, 9, 10, 11)] == [0, 0, 3, 3, 5, 6]


def test_what_is_kept_has_a_limit():
    teacher = timm.create_model("vit_tiny_patch16_224", **SMALL)
    student = cc.castle(teacher)

    def held(*changes: str) -> int:
        return Echo.of(settled(cc.Recipe.load("castling", changes), student, teacher).distill, student, 100).held

    one = 2 * 2 * 17 * 32 * 4  # bytes an image: in and out, two layers, 17 tokens of width 32
    assert held() == HELD_BATCHES
    assert held(f"distill.batch_size={2**30 // (5 * one)}") == 5
    assert held(f"distill.batch_size={2**31 // one}") == 1
    assert held("distill.align.echo=1") == 1


def test_the_teacher_runs_once_a_batch():
    teacher = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    runs = []
    teacher.register_forward_hook(lambda *_: runs.append(1))
    recipe = cc.Recipe.load("castling", ["distill.steps=12", "distill.align.share=1", "distill.align.echo=3",
                                         "distill.batch_size=4"])  # fmt: skip
    student = cc.castle(teacher, recipe)
    result = cc.distill(student, teacher, [torch.randn(4, 3, 32, 32) for _ in range(4)], recipe, device="cpu")
    assert result.steps == 12
    assert len(runs) == 4 + 1  # and once to calibrate


def test_a_lesson_says_how_long_it_read_for_others():
    """Over a part it comes to nothing; after a resume in the middle of one the rest had been paid for in vain."""
    teacher = timm.create_model("vit_tiny_patch16_224", **SMALL)
    lessons = Lessons(teacher, Taps(), Echo(12, 2, held=3), make_accelerator("cpu"))
    batches = iter([torch.zeros(1, 3, 32, 32)] * 9)
    early = [(lessons.at(step, batches), lessons.early)[1] for step in range(6)]
    assert early[0] == pytest.approx(5 * lessons.share)
    assert early[1:] == [-lessons.share] * 5
    assert sum(early) == pytest.approx(0, abs=1e-9)
