"""Interleaved timing and ratios, on calls whose length the test decides."""

from __future__ import annotations

import numpy as np
import pytest

from castling_convert.bench.latency import FEWEST_ROUNDS, WARM_UP, Latency, interleave, ratio


def test_variants_are_called_in_turn_and_the_order_turns_round():
    called: list[str] = []
    times = interleave({name: lambda name=name: called.append(name) for name in "abc"}, seconds=0)
    assert "".join(called[: 3 * WARM_UP]) == "abc" * WARM_UP
    measured = "".join(called[3 * WARM_UP :])
    assert measured == ("abccba" * FEWEST_ROUNDS)[: 3 * FEWEST_ROUNDS]
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", FEWEST_ROUNDS)
    assert all(value > 0 for values in times.values() for value in values)


def test_latency_is_in_milliseconds():
    found = Latency.of([0.001 * value for value in range(1, 102)])
    assert (found.median, found.p95, found.rounds) == (pytest.approx(51), pytest.approx(96), 101)


def test_the_ratio_is_baseline_over_variant_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    drift = rng.uniform(1, 3, 200)  # what slows both down together does not show
    baseline, variant = 2 * drift * rng.normal(1, 0.01, 200), drift * rng.normal(1, 0.01, 200)
    found = ratio(list(baseline), list(variant))
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(2, rel=0.02)
    assert found.high - found.low < 0.1
    assert ratio(list(baseline), list(variant)) == found
    same = ratio(list(baseline), list(baseline))
    assert (same.value, same.low, same.high) == (1, 1, 1)
