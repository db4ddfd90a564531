"""How far an artifact is from the model it was made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..tasks import Task


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
    """Compare what two models for `task` return, [B, ...]. Anything that is not finite, or of another shape, does not
    hold."""
    if actual.shape != expected.shape:
        far = float("inf")
        return Parity(images=len(expected), max_error=far, mean_error=far, noise=far, agreement=0.0, holds=False)
    actual, expected = actual.double(), expected.double()
    parts, wanted = (
        torch.cat([part.flatten() for part in task.parts(values, expected)]) for values in (actual, expected)
    )
    difference = (parts - wanted).abs()
    found = noise(actual, expected, task)
    if tolerance.noise is not None:
        within = found <= tolerance.noise
    else:
        within = bool((difference <= tolerance.atol + tolerance.rtol * wanted.abs()).all())
    error = difference.nan_to_num(nan=float("inf"), posinf=float("inf"))
    holds = bool(difference.isfinite().all()) and within
    return Parity(
        images=len(expected), max_error=error.max().item(), mean_error=error.mean().item(), noise=found,
        agreement=task.agreement(actual, expected), holds=holds,
    )  # fmt: skip


def noise(actual: Tensor, expected: Tensor, task: Task) -> float:
    """Of what two models for `task` return: the root mean square of the difference over that of `expected` about its
    mean, in the part of `Task.parts` where it is greatest; infinite for NaN."""
    pairs = zip(task.parts(actual, expected), task.parts(expected, expected), strict=True)
    return max(_noise(*pair) for pair in pairs)


def _noise(actual: Tensor, expected: Tensor) -> float:
    spread = (expected - expected.mean()).square().mean().sqrt().clamp_min(1e-30)
    return ((actual - expected).square().mean().sqrt() / spread).nan_to_num(nan=float("inf")).item()
