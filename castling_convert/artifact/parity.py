"""How far an artifact is from the model it was made of."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..tasks import Task

AT_ONCE = 2**22
"""Values that are compared at once."""


@dataclass(frozen=True)
class Tolerance:
    """Parity holds when |artifact - model| <= atol + rtol·|model| on every logit, or, where `noise` is
    given, when the root mean square of the difference is at most `noise` times that of the logits about
    their mean: quantisation moves every logit, by an amount that goes with their spread. Boxes are held
    to the same, in units of their sides (`Task.parts`), apart from the logits."""

    atol: float = 0.0
    rtol: float = 0.0
    noise: float | None = None

    def __str__(self) -> str:
        if self.noise is not None:
            return f"{self.noise:.0%} of the logits' spread"
        return f"{self.atol:.0e}" + (f" + {self.rtol:.0e}*|logit|" if self.rtol else "")


@dataclass(frozen=True)
class Parity:
    """Errors on the logits of `images` images: largest and mean absolute, root mean square relative to the
    logits' spread (`noise`), and in how many percent of them both say the same (`Task.agreement`)."""

    images: int
    max_error: float
    mean_error: float
    noise: float
    agreement: float
    holds: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(actual: Tensor, expected: Tensor, tolerance: Tolerance, task: Task) -> Parity:
    """Compare what two models for `task` return, [B, ...]."""
    comparison = Comparison(tolerance, task)
    comparison.add(actual, expected)
    return comparison.parity()


class Comparison:
    """Of what two models for `task` return, batch by batch, so that no more than a batch is held: a segmenter says a
    hundred megabytes of one image. Anything that is not finite, or of another shape, does not hold."""

    def __init__(self, tolerance: Tolerance, task: Task) -> None:
        self.tolerance, self.task = tolerance, task
        self.images, self.same, self.other_shape = 0, 0.0, False
        self.errors: dict[int, _Errors] = {}

    def add(self, actual: Tensor, expected: Tensor) -> None:
        """The next batch, [B, ...]."""
        self.images += len(expected)
        if actual.shape != expected.shape:
            self.other_shape = True
            return
        self.same += len(expected) * self.task.agreement(actual, expected)
        parts = zip(self.task.parts(actual, expected), self.task.parts(expected, expected), strict=True)
        for part, pair in enumerate(parts):
            self.errors.setdefault(part, _Errors()).add(*pair, self.tolerance)

    def parity(self) -> Parity:
        """Of at least one batch."""
        if self.other_shape:
            far = float("inf")
            return Parity(self.images, max_error=far, mean_error=far, noise=far, agreement=0.0, holds=False)
        found = list(self.errors.values())
        noise, allowed = max(part.noise for part in found), self.tolerance.noise
        within = noise <= allowed if allowed is not None else all(part.within for part in found)
        return Parity(
            images=self.images, max_error=max(part.largest for part in found),
            mean_error=sum(part.total for part in found) / sum(part.count for part in found), noise=noise,
            agreement=self.same / self.images, holds=within and all(part.finite for part in found),
        )  # fmt: skip


def noise(actual: Tensor, expected: Tensor, task: Task) -> float:
    """Of what two models for `task` return: the root mean square of the difference over that of `expected` about its
    mean, in the part of `Task.parts` where it is greatest; infinite for NaN."""
    return compare(actual, expected, Tolerance(), task).noise


class _Errors:
    """Of one part, in float64: `largest` and `total` absolute error of `count` values, and their `noise`; whether all
    are `finite`, and `within` the tolerance."""

    def __init__(self) -> None:
        self.count, self.largest, self.total, self.finite, self.within = 0, 0.0, 0.0, True, True
        self._squares, self._mean, self._spread = 0.0, 0.0, 0.0

    def add(self, actual: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
        for got, wanted in zip(actual.flatten().split(AT_ONCE), expected.flatten().split(AT_ONCE), strict=True):
            self._add(got.double(), wanted.double(), tolerance)

    def _add(self, actual: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
        difference = (actual - expected).abs()
        self.finite &= bool(difference.isfinite().all())
        self.within &= bool((difference <= tolerance.atol + tolerance.rtol * expected.abs()).all())
        self._squares += difference.square().sum().item()
        error = difference.nan_to_num(nan=float("inf"), posinf=float("inf"))
        self.largest = max(self.largest, error.max().item())
        self.total += error.sum().item()
        # Mean and sum of squares about it, put together from two samples: Chan et al., "Updating Formulae and a
        # Pairwise Algorithm for Computing Sample Variances", 1979.
        more, mean = expected.numel(), expected.mean().item()
        apart, whole = mean - self._mean, self.count + more
        self._spread += (expected - mean).square().sum().item() + apart**2 * self.count * more / whole
        self._mean += apart * more / whole
        self.count = whole

    @property
    def noise(self) -> float:
        spread = max(1e-30, math.sqrt(self._spread / self.count)) if math.isfinite(self._spread) else math.nan
        found = math.sqrt(self._squares / self.count) / spread if math.isfinite(self._squares) else math.inf
        return math.inf if math.isnan(found) else found
