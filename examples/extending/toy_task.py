"""A task from outside the package: one file and one line in a registry.

`regress`: the model returns numbers, [B, n], and what counts is how far they are from the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from castling_convert.data.loaders import eval_loader
from castling_convert.data.spec import ImageData
from castling_convert.tasks import TASKS, Outputs, Task


@dataclass(frozen=True)
class Closeness:
    """The root mean square of the difference to the teacher's numbers, in their standard deviations; and in how many
    percent of the images all of them are within one tenth of that."""

    images: int
    error: float | None
    close: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Regress(Task):
    name, output, distance = "regress", "numbers", "standard deviations"

    def matches(self, model: nn.Module) -> bool:
        return getattr(model, "regresses", False)

    def loss(self, output: Tensor, expected: Tensor, temperature: float) -> Tensor:
        return (output - expected).square().mean() / expected.var().clamp_min(1e-12)

    def divergence(self, output: Tensor, expected: Tensor) -> float:
        return self.loss(output, expected, 1.0).sqrt().item()

    def agreement(self, output: Tensor, expected: Tensor) -> float:
        return 100 * ((output - expected).abs() <= 0.1 * expected.std()).all(-1).double().mean().item()

    def correct(self, output: Tensor, labels: Tensor) -> None:
        return None

    def usable(self, data: ImageData, model: nn.Module) -> tuple[ImageData, str]:
        return replace(data, classes=None), "classes say nothing of numbers: they are compared with the teacher's"

    def followed(self, output: Tensor, expected: Tensor, labels: Tensor | None) -> dict[str, float]:
        return {"error": self.divergence(output, expected)}

    @torch.no_grad()
    def measure(self, models: Mapping[str, Outputs], data: ImageData, limit: int | None = None) -> dict[str, Closeness]:
        parts: dict[str, list[Tensor]] = {name: [] for name in models}
        for images, _ in eval_loader(data):
            for name, model in models.items():
                parts[name].append(model(images).float().cpu())
        found = {name: torch.cat(outputs) for name, outputs in parts.items()}
        reference, expected = next(iter(found.items()))
        return {
            name: Closeness(
                len(expected),
                None if name == reference else self.divergence(output, expected),
                None if name == reference else self.agreement(output, expected),
            )
            for name, output in found.items()
        }

    def lost(self, teacher: Closeness, castled: Closeness) -> float:
        return 100 - castled.close  # type: ignore[operator]

    def lost_in(self, data: ImageData) -> str:
        return "numbers close to the teacher's"

    def account(self, scores: Mapping[str, Closeness]) -> dict[str, Any]:
        return {"numbers": scores["castled"].to_dict()}


TASKS["regress"] = Regress()
