"""What a task has to answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..data.spec import ImageData
from ..errors import DataError
from ..families import family_of, known_family

Outputs = Callable[[Tensor], Tensor]
"""From images, [B, C, H, W], to what a model or an artifact returns."""


def classes_of(model: nn.Module) -> int | None:
    """How many classes a model tells apart: 0 where what it returns is features, None where nobody says."""
    family = known_family(model)
    said = family.classes(model) if family is not None else None
    return getattr(model, "num_classes", None) if said is None else said


def metrics(*more: str) -> Any:
    """torchmetrics, which for some metrics needs `more` packages.

    Raises:
        DataError: one of them is not installed.
    """
    try:
        for package in more:
            import_module(package)
        import torchmetrics
        import torchmetrics.classification
        import torchmetrics.detection
    except ImportError as error:
        raise DataError(f"to measure this task {error.name} is needed: pip install castling-convert[dense]") from None
    return torchmetrics


PLACES_AT_ONCE = 16
"""Images at once of a model whose outputs are larger than they are."""


def standard_error(values: Tensor) -> float | None:
    """Of the mean of what each of N images adds to it, [N]: sqrt(var / N), var over N - 1; None of one image."""
    return (values.double().std() / len(values) ** 0.5).item() if len(values) > 1 else None


class Score(Protocol):
    """What was measured of one model over a number of images; values are percentages where nothing else is said.
    It may have a `standard_error`, where that is known: of the points lost against the reference, see `Task.lost`, as
    another choice of as many images would show it; None for the reference itself."""

    @property
    def images(self) -> int: ...

    def to_dict(self) -> dict[str, Any]: ...


def said_lost(points: float, castled: Score, images: str = "images") -> str:
    """What `Task.lost` found, in words, with what another choice of `images` could make of it."""
    sure: float | None = getattr(castled, "standard_error", None)
    beside = "" if sure is None else f" (give or take {sure:.2f}, one standard error)"
    word = "gained" if round(points, 2) < 0 else "lost"
    return f"{word} {abs(points):.2f} points on {castled.images} {images}{beside}"


class Task(ABC):
    """What a model is for: what a student is asked to match, what is measured of it, how two outputs are compared.

    Attributes:
        name: on the command line.
        output: what artifacts call the output.
        distance: in which unit `divergence` is.
        score: what `measure` finds first, by its name in a score and in words.
        judged_by: what `correct` counts, in words.
        reads_maps: whether it is the values of the features that a head reads, at every place, and not only their
            direction; a student's maps are then held against the teacher's channel by channel, too.
    """

    name: str
    output: str
    distance: str
    score: ClassVar[tuple[str, str]] = ("top1", "top-1")
    judged_by: ClassVar[str] = "top-1"
    reads_maps: ClassVar[bool] = False

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Whether `model` is for this."""

    def classes(self, model: nn.Module) -> int | None:
        """How many classes the model tells apart; None where it tells none."""
        return None

    def features(self, model: Any, images: Tensor) -> Tensor:
        """The last tokens, [B, N, C], of images [B, C, H, W]; what `head` takes."""
        return family_of(model).features(model, images)

    def head(self, model: Any, features: Tensor) -> Tensor:
        """What `model` returns for images with these `features`."""
        return family_of(model).head(model, features)

    def run(self, model: nn.Module, images: Tensor) -> Any:
        """What `model` returns for images [B, C, H, W]; of several things the one that it is for."""
        return self.head(model, self.features(model, images))

    def probabilities(self, output: Tensor) -> Tensor:
        """What an artifact with its preprocessing baked in returns in place of `output`."""
        return output

    def joined(self, outputs: Sequence[Any]) -> Any:
        """What a model returned for several batches as if it were for one."""
        return torch.cat(list(outputs))

    def parts(self, output: Tensor, expected: Tensor) -> list[Tensor]:
        """What is held against what a model returned, or that itself, in parts of one unit each, in which their values
        are of the order of one. `expected` is what it is held against."""
        return [output]

    @abstractmethod
    def loss(self, output: Tensor, expected: Tensor, temperature: float) -> Tensor | None:
        """What a student's outputs are trained on beside its layers and features; None where nothing is added."""

    @abstractmethod
    def divergence(self, output: Tensor, expected: Tensor) -> float:
        """How far outputs are from those of a teacher; zero is a match."""

    @abstractmethod
    def agreement(self, output: Tensor, expected: Tensor) -> float:
        """In how many percent of the images two outputs say the same."""

    @abstractmethod
    def correct(self, output: Tensor, labels: Tensor) -> float | None:
        """In how many percent of the images the outputs say what the labels do; None where labels say nothing."""

    def answers(self, output: Tensor) -> Tensor | None:
        """For each image the number of what it is said to be, [B]; None where nothing of that kind is said."""
        return None

    def drawn(self, picture: Image.Image, output: Any) -> Image.Image:
        """A picture with what a model says of its places, the `output` of one image."""
        return picture

    def drawn_labels(self, picture: Image.Image, labels: Tensor) -> Image.Image:
        """As `drawn`, of what the labels of one image say."""
        return picture

    @abstractmethod
    def usable(self, data: ImageData, model: nn.Module) -> tuple[ImageData, str | None]:
        """`data`, without its labels where they are not those of `model`, and in words why accuracy is unmeasured.

        Raises:
            DataError: there are too few images to compare anything on.
        """

    def reduced(self, output: Any, labels: Tensor | None) -> Any:
        """What `followed` reads of an output, where that is much less."""
        return output

    @abstractmethod
    def followed(self, output: Any, expected: Any, labels: Tensor | None) -> dict[str, float]:
        """What is recorded of a student on the way, from what is left of both outputs on a handful of images."""

    @abstractmethod
    def measure(self, models: Mapping[str, Outputs], data: ImageData, limit: int | None = None) -> Mapping[str, Any]:
        """Run every model on every image once, or on the first `limit`; the first model is the reference.

        Raises:
            DataError: no image, too few, or labels of other classes than the model's.
        """

    def lost(self, teacher: Any, castled: Any) -> float:
        """The points that the score of a castled model is below that of its teacher, as --max-drop counts them; without
        labels those of agreement."""
        before, after = (getattr(score, self.score[0]) for score in (teacher, castled))
        return before - after if before is not None and after is not None else 100 - castled.agreement

    def lost_in(self, data: ImageData) -> str:
        """What `lost` counts on such data: `top-1`, say."""
        return self.score[1] if data.classes is not None else "agreement"

    def nothing_found(self, scores: Mapping[str, Any]) -> str | None:
        """In words why accuracy is unmeasured though there are labels of the model's kind: there is nothing in them."""
        if getattr(next(iter(scores.values())), self.score[0]) is not None:
            return None
        return f"the labels hold nothing to measure {self.score[1]} on: agreement with the teacher only"

    def account(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        """The scores of `teacher` and `castled` as they stand in a summary."""
        return {name: score.to_dict() for name, score in scores.items()}
