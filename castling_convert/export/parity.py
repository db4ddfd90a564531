"""How far an artifact is from the model it was made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Tolerance:
    """Parity holds when |artifact - model| <= atol + rtol·|model| on every logit, or, where `noise` is
    given, when the root mean square of the difference is at most `noise` times that of the logits about
    their mean: quantisation moves every logit, by an amount that goes with their spread."""

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
    logits' spread (`noise`), and top-1 agreement in percent."""

    images: int
    max_error: float
    mean_error: float
    noise: float
    top1_agreement: float
    holds: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(actual: Tensor, expected: Tensor, tolerance: Tolerance) -> Parity:
    """Compare logits [B, classes]. Anything that is not finite, or of another shape, does not hold."""
    if actual.shape != expected.shape:
        return Parity(len(expected), float("inf"), float("inf"), float("inf"), 0.0, holds=False)
    actual, expected = actual.double(), expected.double()
    difference = (actual - expected).abs()
    found = noise(actual, expected)
    if tolerance.noise is not None:
        within = found <= tolerance.noise
    else:
        within = bool((difference <= tolerance.atol + tolerance.rtol * expected.abs()).all())
    agreement = 100 * (actual.argmax(-1) == expected.argmax(-1)).double().mean()
    error = difference.nan_to_num(nan=float("inf"), posinf=float("inf"))
    holds = bool(difference.isfinite().all()) and within
    return Parity(len(expected), error.max().item(), error.mean().item(), found, agreement.item(), holds)


def noise(actual: Tensor, expected: Tensor) -> float:
    """The root mean square of the difference over that of `expected` about its mean; infinite for NaN."""
    spread = (expected - expected.mean()).square().mean().sqrt().clamp_min(1e-30)
    return ((actual - expected).square().mean().sqrt() / spread).nan_to_num(nan=float("inf")).item()


def probe_images(model: nn.Module, count: int, seed: int = 0, size: tuple[int, int] | None = None) -> Tensor:
    """`count` generated images with the model's own preprocessing, [count, C, H, W], float32; of `size`
    (H, W), or the model's own when left out.

    A model that takes neither one nor three channels gets noise.
    """
    from timm.models import get_model_input_config

    from ..distill.data import Preprocessing, open_data, some_images
    from ..errors import DataError

    try:
        data = open_data("generated", Preprocessing.of(model).at(size), "validation", seed=seed)
    except DataError:
        channels, *own = get_model_input_config(model)["input_size"]
        return torch.randn(count, channels, *(size or own), generator=torch.Generator().manual_seed(seed))
    return some_images(data, count)
