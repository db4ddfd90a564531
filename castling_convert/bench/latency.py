"""Latency, measured fairly: variants in turn within one process, and ratios with their intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP = 3
FEWEST_ROUNDS = 15
RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """Median of the baseline over median of the variant: above 1 the variant is faster. `low` and `high`
    bound the 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: median and 95th percentile over `rounds` calls."""

    median: float
    p95: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        return cls(1e3 * float(np.median(seconds)), 1e3 * float(np.percentile(seconds, 95)), len(seconds))


def interleave(
    variants: Mapping[str, Callable[[], object]], seconds: float, rounds: int = FEWEST_ROUNDS
) -> dict[str, list[float]]:
    """Seconds of every call of every variant: A B A B ... for about `seconds`, at least that many `rounds`.

    Whatever the machine does meanwhile, it does to all of them; every other round runs backwards, so that
    none is always the one after another.
    """
    order = list(variants)
    for _ in range(WARM_UP):
        for name in order:
            variants[name]()
    times: dict[str, list[float]] = {name: [] for name in order}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[order[-1]]) < rounds:
        for name in order:
            started = time.perf_counter()
            variants[name]()
            times[name].append(time.perf_counter() - started)
        order.reverse()
    return times


def ratio(baseline: Sequence[float], variant: Sequence[float], seed: int = 0) -> Ratio:
    """The ratio of the medians; whole rounds are resampled, as they were measured in pairs."""
    pairs = np.array([baseline, variant])
    generator, count = np.random.default_rng(seed), pairs.shape[1]
    medians = [np.median(pairs[:, generator.integers(0, count, count)], axis=1) for _ in range(RESAMPLES)]
    resampled = np.stack(medians, axis=1)
    low, high = np.percentile(resampled[0] / resampled[1], (2.5, 97.5))
    middle = np.median(pairs, axis=1)
    return Ratio(float(middle[0] / middle[1]), float(low), float(high))
