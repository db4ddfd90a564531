"""What the report says first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from castling_convert.analysis.curves import POINTS, averaged, curves
from castling_convert.analysis.page import table
from castling_convert.analysis.report import verdict
from castling_convert.bench.cases import CASTLED, PLAIN, Case, Result
from castling_convert.bench.latency import Latency, Ratio
from castling_convert.errors import ExportError


def measured(*ratios: float) -> list[Result]:
    """At 32, 64, ... pixels, each certain within a tenth."""
    one = Latency(1.0, 1.0, 15)
    return [
        Result(Case("onnx", "fp32", (32 * n, 32 * n), 1), 4 * n * n, 1, {CASTLED: one, PLAIN: one}, PLAIN,
               Ratio(value, value - 0.1, value + 0.1))
        for n, value in enumerate(ratios, start=1)
    ]  # fmt: skip


def summary(**accuracy: Any) -> dict[str, Any]:
    return {"accuracy": {"measured": False, "held_out": True, **accuracy}, "pretrained_weights": True}


def scores(teacher: float, castled: float, **more: float) -> dict[str, Any]:
    return {
        "measured": True,
        "teacher": {"images": 900, "top1": teacher},
        "castled": {"images": 900, "top1": castled, "agreement": 91.26} | more,
    }


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (scores(80.0, 78.5), "1.50 points of top-1 below its teacher (78.50 % against 80.00 % of 900 held-out"),
        (scores(80.0, 80.25), "is 0.25 points of top-1 above its teacher"),
        (scores(80.0, 80.0), "is as accurate as its teacher"),
        (scores(80.0, 79.0, standard_error=0.6), "held-out images; give or take 0.60 points, one standard error), and"),
        (scores(80.0, 80.0), "% of 900 held-out images), and"),
        (scores(80.0, 80.0), "gives the same answer for 91.3 % of them"),
        ({"castled": {"images": 9, "agreement": 88.9}}, "answer for 88.9 % of 9 images; without usable labels"),
        ({"features": {"images": 9, "cosine": 0.98, "neighbours": 50.0}}, "cosine of 0.9800 with its teacher's over 9"),
        ({}, "cost in accuracy is not known"),
    ],
)  # fmt: skip
def test_what_was_lost(accuracy: dict[str, Any], words: str) -> None:
    assert words in verdict(summary(**accuracy), None)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ((0.8, 0.95), "not faster than the softmax model at the sizes measured here"),
        ((1.05, 1.02), "not faster"),  # within what was uncertain
        ((0.9, 1.3, 1.8), "faster than the softmax model from 64x64 pixels on"),
        ((1.2, 1.9), "faster than the softmax model at every size measured here"),
        ((0.9, 1.3), "times as fast: 0.90 at 32x32, 1.30 at 64x64"),
    ],
)
def test_what_was_gained(ratios: tuple[float, ...], words: str) -> None:
    assert words in verdict(summary(), measured(*ratios))


def test_what_was_not_measured_is_said() -> None:
    assert verdict(summary(), ExportError("no onnxruntime")).endswith("How fast it is was not measured here.")
    random = summary() | {"pretrained_weights": False}
    assert "good for timing, not for use" in verdict(random, None)


def test_texts_of_others_are_no_html() -> None:
    assert "<script>" not in table([("a",), ("<script>alert(1)</script>",)])


@pytest.mark.parametrize("text", ["0", "+0.5", "-3", "10.05 %", "119,194", "11.6 M", "5.4e-16", "0.57x", "32x32"])
def test_numbers_stand_below_their_head(text: str) -> None:
    assert table([("what", "n"), ("a", text), ("b", "none")]).count('class="number"') == 2


@pytest.mark.parametrize(
    "text", ["60 steps, 72 s", "5.4e-16, 3.9e-07", "020849bf202f", "af89e5", "-", "", "3 of the layers"]
)
def test_texts_may_be_broken_over_lines(text: str) -> None:
    assert 'class="number"' not in table([("what", "n"), ("a", text)])


def test_lines_of_many_steps_are_means() -> None:
    steps = [
        {
            "step": number + 1, "losses": {"attention": number % 2} | ({"logits": 4.0} if number >= 5 else {}),
            "layer_losses": {"a": float(number)}, "density": {"a": 0.0},
        }
        for number in range(7)
    ]  # fmt: skip
    found = averaged(steps, 3)
    assert [means["step"] for means in found] == [3, 6, 7]
    assert [means["layer_losses"]["a"] for means in found] == [1.0, 4.0, 6.0]
    assert [means["losses"] for means in found] == [
        {"attention": 1 / 3}, {"attention": 2 / 3, "logits": 4.0}, {"attention": 0.0, "logits": 4.0},
    ]  # fmt: skip
    assert averaged(steps, 1) == steps


def test_a_long_run_is_drawn_as_small_as_a_short_one() -> None:
    drawn = {}
    for count in (POINTS, 10 * POINTS):
        rng = np.random.default_rng(0)
        steps = [
            {"step": step, "losses": {"attention": loss}, "layer_losses": {"a": loss}, "density": {"a": 0.0}}
            for step, loss in enumerate(rng.uniform(0.1, 1.0, count).tolist(), start=1)
        ]
        drawn[count] = curves(steps)
    assert len(drawn[10 * POINTS]) < 1.1 * len(drawn[POINTS])
    assert "means of 10 steps" in drawn[10 * POINTS]
    assert "means of" not in drawn[POINTS]
