"""Semantic segmentation: one label a pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..data.loaders import eval_loader
from ..data.spec import ImageData
from ..data.targets import IGNORED
from ..errors import DataError
from ..families import said_task
from .base import PLACES_AT_ONCE, Outputs, Task, classes_of, metrics, standard_error
from .classify import logit_divergence


@dataclass(frozen=True)
class Segmentation:
    """Percentages over `images` images: the intersection over union of prediction and mask, mean of the classes that
    are in either, from the pixels of all images; the share of pixels with the right class; the share of pixels with
    the reference's class. None without masks or with nothing in them, agreement for the reference itself.
    `standard_error` as in `Score`, of the mean of intersections over unions: None without masks."""

    images: int
    miou: float | None
    pixels: float | None
    agreement: float | None
    standard_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Segment(Task):
    """Outputs are logits, [B, classes, H, W]; of a smaller map than the masks they are enlarged to be compared."""

    name, output, distance = "segment", "masks", "nats a pixel"
    score, judged_by = ("miou", "mIoU"), "right pixels"
    reads_maps = True

    def matches(self, model: nn.Module) -> bool:
        return said_task(model) == self.name

    def classes(self, model: Any) -> int | None:
        return classes_of(model)

    def probabilities(self, output: Tensor) -> Tensor:
        return output.softmax(1)

    def loss(self, output: Tensor, expected: Tensor, temperature: float) -> Tensor:
        """The divergence of the classes, mean over the pixels."""
        return logit_divergence(_by_pixel(output), _by_pixel(expected), temperature)

    def divergence(self, output: Tensor, expected: Tensor) -> float:
        return max(0.0, self.loss(output, expected, temperature=1.0).item())  # it is; rounding may not be

    def agreement(self, output: Tensor, expected: Tensor) -> float:
        return _same(_classes(_at(expected, output)), _classes(expected))

    def correct(self, output: Tensor, labels: Tensor) -> float | None:
        """In how many percent of the pixels; None where all are to be ignored."""
        return _right(_classes(_at(labels, output)), labels)

    def drawn(self, picture: Image.Image, output: Tensor) -> Image.Image:
        return _painted(picture, output.argmax(0))

    def drawn_labels(self, picture: Image.Image, labels: Tensor) -> Image.Image:
        return _painted(picture, labels)

    def usable(self, data: ImageData, model: Any) -> tuple[ImageData, str | None]:
        classes = classes_of(model)
        if data.classes is None:
            return data, "the data has no masks: agreement with the teacher only"
        if data.classes > (classes or 0):
            why = f"the masks have {data.classes} classes and the model {classes}, so they can't be compared"
            return replace(data, classes=None), f"{why}: agreement with the teacher only"
        return data, None

    def reduced(self, output: Tensor, labels: Tensor | None) -> Tensor:
        """The classes, [B, H, W]: logits of a hundred classes at 512x512 pixels are a hundred megabytes an image."""
        return _classes(output if labels is None else _at(labels, output)).short()

    def followed(self, output: Tensor, expected: Tensor, labels: Tensor | None) -> dict[str, float]:
        values = {"agreement": _same(output, expected)}
        if labels is not None:
            found = {"pixels": _right(output, labels), "teacher_pixels": _right(expected, labels)}
            values |= {name: value for name, value in found.items() if value is not None}
        return values

    @torch.no_grad()
    def measure(
        self, models: Mapping[str, Outputs], data: ImageData, limit: int | None = None
    ) -> dict[str, Segmentation]:
        jaccard = metrics().classification.MulticlassJaccardIndex
        reference, labelled = next(iter(models)), data.classes is not None
        unions: dict[str, Any] = {}
        right, agree = (dict.fromkeys(models, 0) for _ in range(2))
        parts: dict[str, list[Tensor]] = {name: [] for name in models}
        seen, pixels, counted = 0, 0, 0
        for images, masks in eval_loader(data, batch_size=PLACES_AT_ONCE):
            classes: dict[str, Tensor] = {}
            for name, model in models.items():  # the logits of one at a time: of a hundred classes they are gigabytes
                logits = model(images).float().cpu()
                if labelled:
                    logits = _at(masks, logits)
                    unions.setdefault(name, jaccard(logits.shape[1], ignore_index=IGNORED))
                classes[name] = _classes(logits)
            top = classes[reference]
            for name, found in classes.items():
                agree[name] += int((found == top).sum())
                if labelled:
                    unions[name].update(found, masks)
                    parts[name].append(_overlaps(found, masks, unions[name].num_classes))
                    right[name] += int((found == masks).sum())
            counted += int((masks != IGNORED).sum()) if labelled else 0
            pixels += top.numel()
            seen += len(images)
            if limit is not None and seen >= limit:
                break
        if seen == 0:
            raise DataError(f"{data.spec} has no images to evaluate on")
        shares = {name: _shares(torch.cat(parts[name])) for name in models} if counted else {}
        return {
            name: Segmentation(
                images=seen,
                miou=100 * unions[name].compute().item() if counted else None,
                pixels=100 * right[name] / counted if counted else None,
                agreement=None if name == reference else 100 * agree[name] / pixels,
                standard_error=standard_error(shares[reference] - shares[name])
                if counted and name != reference
                else None,
            )
            for name in models
        }


def _painted(picture: Image.Image, classes: Tensor) -> Image.Image:
    """The classes [H, W] as colours over a grey picture; class 0 has none, it is the background where there is one."""
    from matplotlib import colormaps

    palette = [*colormaps["tab10"].colors, *colormaps["Set2"].colors, *colormaps["Set1"].colors]  # type: ignore[attr-defined]
    colours = 255 * np.array(palette, dtype=np.float32)
    places = Image.fromarray(classes.byte().cpu().numpy()).resize(picture.size, Image.Resampling.NEAREST)
    found, pixels = np.asarray(places), np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    painted = 0.3 * pixels + 0.7 * colours[(found.astype(int) - 1) % len(colours)]
    shown = (found != 0) & (found != IGNORED)
    return Image.fromarray(np.where(shown[..., None], painted, pixels).astype(np.uint8))


def _by_pixel(logits: Tensor) -> Tensor:
    """Logits [B, classes, H, W] as [B·H·W, classes]."""
    return logits.movedim(1, -1).flatten(0, -2)


def _classes(logits: Tensor) -> Tensor:
    """The likeliest class of every pixel, [B, H, W], of logits [B, classes, H, W]. `argmax` is slow on a CPU over
    an axis that is not the last."""
    return logits.max(1).indices


def _same(classes: Tensor, others: Tensor) -> float:
    """In how many percent of the pixels, [...], both are the same."""
    return 100 * (classes == others).double().mean().item()


def _right(classes: Tensor, labels: Tensor) -> float | None:
    """In how many percent of the pixels that are not to be ignored the label is the same; None where there are none."""
    counted = labels != IGNORED
    return _same(classes[counted], labels[counted]) if counted.any() else None


def _overlaps(found: Tensor, masks: Tensor, classes: int) -> Tensor:
    """How many pixels of each image have a class in the prediction and in the mask, and in either, of the ones that are
    not to be ignored: [B, 2, classes]."""
    count = metrics().functional.classification.multiclass_stat_scores
    counts = [count(*pair, classes, "none", ignore_index=IGNORED) for pair in zip(found, masks, strict=True)]
    right, wrong, _, missed, _ = torch.stack(counts).unbind(-1)
    return torch.stack([right, right + wrong + missed], 1)


def _shares(overlaps: Tensor) -> Tensor:
    """What each of N images adds to the mIoU of all, in percent and N times, so that their mean is it: the linear part
    of it as a function of the sums of `overlaps`, [N, 2, classes].

    Source: Taylor's linearisation of a ratio of sums, Woodruff, JASA 66 (1971), 411-414.
    """
    both, either = overlaps.double().unbind(1)
    there = either.sum(0) > 0
    both, either = both[:, there], either[:, there]
    whole = both.sum(0) / either.sum(0)
    return 100 * (whole + len(both) * (both - whole * either) / either.sum(0)).mean(1)


def _at(labels: Tensor, logits: Tensor) -> Tensor:
    """Logits at the size of the labels, [B, H, W], or of other logits."""
    if logits.shape[-2:] == labels.shape[-2:]:
        return logits
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
