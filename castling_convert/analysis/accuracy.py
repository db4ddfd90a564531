"""Top-1, top-5 and agreement of several models on the same images; how alike features are without classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distill.data import ImageData, Preprocessing, eval_loader, kept, some_batches
from ..distill.losses import has_classes
from ..errors import DataError

Classifier = Callable[[Tensor], Tensor]

PROBED_IMAGES = 500
FEWEST_FEATURES = 3
NEIGHBOURS_AT_ONCE = 1024


@dataclass(frozen=True)
class Accuracy:
    """Percentages over `images` images. `top1` and `top5` are None without labels, `top5` also with
    five classes or fewer; `agreement` is the share of images where the model's top class is the
    reference's, None for the reference itself."""

    images: int
    top1: float | None
    top5: float | None
    agreement: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Likeness:
    """How alike the features of two models without classes are, over `images` images: the mean cosine of both
    models' features of an image, and in how many percent the image nearest to it, by cosine, is the same one."""

    images: int
    cosine: float
    neighbours: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def with_usable_labels(data: ImageData, classes: int) -> tuple[ImageData, str | None]:
    """`data`, without its labels where they are not those of a model of `classes` classes, and why not."""
    if data.classes is None:
        return data, "the data has no labels: agreement with the teacher only"
    if data.classes != classes:
        why = f"the data has {data.classes} classes and the model {classes}, so labels can't be compared"
        return replace(data, classes=None), f"{why}: agreement with the teacher only"
    return data, None


class Probe:
    """Accuracy and agreement with the teacher on a fixed handful of images, to follow a student in training.

    The images are spread over the whole of `data` and kept in memory, as many as `data.kept` allows.
    Called with a student whose masks are closed, in eval mode. Returns percentages: `agreement`, and `top1`
    with labels; the mean `cosine` of the features where there are no classes.
    """

    def __init__(self, teacher: nn.Module, data: ImageData, images: int = PROBED_IMAGES) -> None:
        device = next(teacher.parameters()).device
        batches = some_batches(data, kept(images, Preprocessing.of(teacher)))
        self.images = [x for x, _ in batches]
        self.labels = torch.cat([y for _, y in batches]) if data.classes is not None else None
        self.with_classes = has_classes(teacher)
        with torch.no_grad():
            outputs = torch.cat([teacher(x.to(device)).cpu() for x in self.images])
        self.expected = outputs.argmax(-1) if self.with_classes else outputs

    @torch.no_grad()
    def __call__(self, student: nn.Module) -> dict[str, float]:
        device = next(student.parameters()).device
        outputs = torch.cat([student(x.to(device)).cpu() for x in self.images])
        if not self.with_classes:
            return {"cosine": F.cosine_similarity(outputs.float(), self.expected.float(), dim=-1).mean().item()}
        top = outputs.argmax(-1)
        values = {"agreement": 100 * (top == self.expected).float().mean().item()}
        if self.labels is not None:
            values["top1"] = 100 * (top == self.labels).float().mean().item()
            values["teacher_top1"] = 100 * (self.expected == self.labels).float().mean().item()
        return values


def refuse_too_few(data: ImageData) -> None:
    """DataError for fewer images than features can be compared on: of two there is no choice of a nearest one."""
    if not data.streamed and len(data) < FEWEST_FEATURES:
        raise DataError(
            f"{data.spec} has {len(data)} images to compare features on; at least {FEWEST_FEATURES} are needed"
        )


@torch.no_grad()
def likeness(reference: Classifier, other: Classifier, data: ImageData) -> Likeness:
    """Run two models without classes on every image once.

    Args:
        reference, other: from images [B, C, H, W] to features [B, width].
        data: opened with the evaluation transform.

    Raises:
        DataError: fewer than three images.
    """
    refuse_too_few(data)
    pairs = [(reference(images).float().cpu(), other(images).float().cpu()) for images, _ in eval_loader(data)]
    return alike(*(torch.cat(part) for part in zip(*pairs, strict=True)))


def alike(expected: Tensor, found: Tensor) -> Likeness:
    """Of the features of two models for the same images, three or more, [images, width] each."""
    same = (_nearest(expected) == _nearest(found)).float().mean().item()
    return Likeness(len(expected), F.cosine_similarity(expected, found, dim=-1).mean().item(), 100 * same)


def _nearest(features: Tensor) -> Tensor:
    """For each of the features [images, width] the place of the one most like it, itself left out."""
    units = F.normalize(features, dim=-1)
    found = []
    for places in torch.arange(len(units)).split(NEIGHBOURS_AT_ONCE):
        products = units[places] @ units.T
        products[torch.arange(len(places)), places] = -torch.inf
        found.append(products.argmax(-1))
    return torch.cat(found)


@torch.no_grad()
def measure(models: dict[str, Classifier], data: ImageData, limit: int | None = None) -> dict[str, Accuracy]:
    """Run every model on every image once; the first model is the reference for agreement.

    Args:
        models: name to a function from images [B, C, H, W] to logits [B, classes].
        data: opened with the evaluation transform.
        limit: stop after this many images.

    Raises:
        DataError: another number of classes than the model has, or no image at all.
    """
    reference = next(iter(models))
    right1 = dict.fromkeys(models, 0)
    right5 = dict.fromkeys(models, 0)
    agree = dict.fromkeys(models, 0)
    seen, classes = 0, 0
    for images, labels in eval_loader(data):
        logits = {name: model(images).float().cpu() for name, model in models.items()}
        classes = logits[reference].shape[-1]
        if data.classes is not None and data.classes != classes:
            raise DataError(
                f"{data.spec} has {data.classes} classes, the model has {classes}: labels can't be compared; "
                "give the data the model was trained for"
            )
        top = logits[reference].argmax(-1)
        for name, values in logits.items():
            right1[name] += int((values.argmax(-1) == labels).sum())
            agree[name] += int((values.argmax(-1) == top).sum())
            if classes > 5:
                right5[name] += int((values.topk(5).indices == labels[:, None]).any(-1).sum())
        seen += len(labels)
        if limit is not None and seen >= limit:
            break
    if seen == 0:
        raise DataError(f"{data.spec} has no images to evaluate on")
    labelled = data.classes is not None
    return {
        name: Accuracy(
            images=seen,
            top1=100 * right1[name] / seen if labelled else None,
            top5=100 * right5[name] / seen if labelled and classes > 5 else None,
            agreement=None if name == reference else 100 * agree[name] / seen,
        )
        for name in models
    }
