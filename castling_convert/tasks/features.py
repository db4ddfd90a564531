"""Features: a model without a head of its own, such as a backbone whose features something else reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.loaders import eval_loader
from ..data.spec import ImageData
from ..errors import DataError
from .base import Outputs, Task, classes_of

FEWEST = 3
"""Images to compare features on: of two there is no choice of a nearest one."""
AT_ONCE = 1024
"""How many images are compared with all others at once."""
UNMEASURED = "the model has no classes; its features are compared"


@dataclass(frozen=True)
class Likeness:
    """How alike the features of a model are to those of the reference, over `images` images: the mean cosine of both
    models' features of an image, and in how many percent the image nearest to it, by cosine, is the same one. None
    for the reference itself."""

    images: int
    cosine: float | None
    neighbours: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Features(Task):
    """Outputs are features, [B, width], or tokens of them, which are compared as one vector an image."""

    name, output, distance = "features", "features", "cosine distance"

    def matches(self, model: nn.Module) -> bool:
        return classes_of(model) == 0

    def loss(self, output: Tensor, expected: Tensor, temperature: float) -> None:
        """Nothing beside the last tokens, which the features are made of."""
        return None

    def divergence(self, output: Tensor, expected: Tensor) -> float:
        return max(0.0, 1 - F.cosine_similarity(output.double().flatten(1), expected.double().flatten(1)).mean().item())

    def agreement(self, output: Tensor, expected: Tensor) -> float:
        """Where the nearest of all expected features, by cosine, is the image's own."""
        output, expected = output.flatten(1), expected.flatten(1)
        indices = torch.arange(len(output), device=output.device)
        nearest = [
            (F.normalize(output[places].double(), dim=-1) @ F.normalize(expected.double(), dim=-1).T).argmax(-1)
            for places in indices.split(AT_ONCE)
        ]
        return 100 * (torch.cat(nearest) == indices).double().mean().item()

    def correct(self, output: Tensor, labels: Tensor) -> None:
        return None

    def usable(self, data: ImageData, model: nn.Module) -> tuple[ImageData, str]:
        if not data.streamed and len(data) < FEWEST:
            raise DataError(f"{data.spec} has {len(data)} images to compare features on; at least {FEWEST} are needed")
        return replace(data, classes=None), UNMEASURED

    def followed(self, output: Tensor, expected: Tensor, labels: Tensor | None) -> dict[str, float]:
        return {"cosine": F.cosine_similarity(output.float().flatten(1), expected.float().flatten(1)).mean().item()}

    @torch.no_grad()
    def measure(self, models: Mapping[str, Outputs], data: ImageData, limit: int | None = None) -> dict[str, Likeness]:
        found: dict[str, list[Tensor]] = {name: [] for name in models}
        seen = 0
        for images, _ in eval_loader(data):
            for name, model in models.items():
                found[name].append(model(images).float().cpu().flatten(1))
            seen += len(images)
            if limit is not None and seen >= limit:
                break
        if seen < FEWEST:
            raise DataError(f"{data.spec} has {seen} images to compare features on; at least {FEWEST} are needed")
        reference, *others = models
        expected = torch.cat(found[reference])
        return {reference: Likeness(seen, None, None)} | {
            name: alike(expected, torch.cat(found[name])) for name in others
        }

    def lost(self, teacher: Likeness, castled: Likeness) -> float:
        """The share of images with another nearest one."""
        return 100 - castled.neighbours  # type: ignore[operator]

    def lost_in(self, data: ImageData) -> str:
        return "nearest neighbours"

    def nothing_found(self, scores: Mapping[str, Likeness]) -> None:
        return None

    def account(self, scores: Mapping[str, Likeness]) -> dict[str, Any]:
        return {"features": scores["castled"].to_dict()}


def alike(expected: Tensor, found: Tensor) -> Likeness:
    """Of the features of two models for the same images, three or more, [images, width] each."""
    agreement = (_nearest(expected) == _nearest(found)).double().mean().item()
    return Likeness(len(expected), F.cosine_similarity(expected, found, dim=-1).mean().item(), 100 * agreement)


def _nearest(features: Tensor) -> Tensor:
    """For each of the features [images, width] the place of the one most like it, itself left out."""
    units = F.normalize(features, dim=-1)
    found = []
    for places in torch.arange(len(units)).split(AT_ONCE):
        products = units[places] @ units.T
        products[torch.arange(len(places)), places] = -torch.inf
        found.append(products.argmax(-1))
    return torch.cat(found)
