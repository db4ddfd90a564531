"""Detection: boxes and their kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from ..data.loaders import eval_loader
from ..data.spec import ImageData
from ..dense.boxes import CORNERS, Found, crowds, found, labelled, shared
from ..errors import DataError
from .base import PLACES_AT_ONCE, Outputs, Task, classes_of, metrics

CERTAIN = 0.3
"""Score above which a detection is one that models are asked to agree on."""


@dataclass(frozen=True)
class Detections:
    """Percentages over `images` images: COCO's mean average precision over overlaps of 0.5 to 0.95, that at 0.5, and
    how many of the detections that have a score above CERTAIN, the model's and the reference's, have a partner in the
    other's, of the same kind and with an overlap of at least 0.5. The first two are None without labels, or without a
    box in them; agreement for the reference itself."""

    images: int
    map: float | None
    map50: float | None
    agreement: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Detect(Task):
    """Outputs are boxes and logits, [B, N, 4 + kinds], as of `dense.Detector`.

    A detector of somebody else's may return torchvision's form, for each image a dict of `boxes`, `scores` and
    `labels`. Only its layers and feature maps are matched then. Its labels are held against those of the data as they
    are: torchvision's own count from 1, with 0 for the background, and so has the data to.
    """

    name, output, distance = "detect", "boxes", "nats and overlap a detection"
    score, judged_by = ("map", "mAP"), "F1"
    reads_maps = True

    def matches(self, model: nn.Module) -> bool:
        return getattr(model, "task", None) == self.name

    def classes(self, model: Any) -> int | None:
        return classes_of(model)

    def joined(self, outputs: Sequence[Any]) -> Any:
        if all(isinstance(output, Tensor) for output in outputs):
            return super().joined(outputs)
        return [image for output in outputs for image in output]

    def parts(self, output: Tensor, expected: Tensor) -> list[Tensor]:
        """Boxes as seen from the middles of the expected ones, in units of the median of their sides, and logits, in
        float64. The spread of the first is then half the side of a box, and not that of the places in the image."""
        output, expected = output.double(), expected.double()
        low, high = expected[..., :CORNERS].split(CORNERS // 2, -1)
        middles, side = torch.cat(2 * [(low + high) / 2], -1), (high - low).abs().median()
        return [(output[..., :CORNERS] - middles) / side.clamp_min(1), output[..., CORNERS:]]

    def loss(self, output: Any, expected: Any, temperature: float) -> Tensor | None:
        """The divergence of every kind at every place, KL(teacher || student) of being it or not, at `temperature` and
        times its square, and one minus the generalised intersection over union of the boxes, weighted by the teacher's
        best score there. Both over the sum of these scores, at least 1 an image: what the teacher sees counts, however
        many places see nothing."""
        if not (isinstance(output, Tensor) and isinstance(expected, Tensor)):
            return None
        output, expected = output.float(), expected.detach().float()
        logits, wanted = (x[..., CORNERS:] / temperature for x in (output, expected))
        likely = wanted.sigmoid()
        kinds = _cross_entropy(logits, likely) - _cross_entropy(wanted, likely)
        overlap = generalized_box_iou_loss(output[..., :CORNERS], expected[..., :CORNERS])
        score = expected[..., CORNERS:].sigmoid().amax(-1)
        error = temperature**2 * kinds.sum(-1) + score * overlap
        return (error.sum(1) / score.sum(1).clamp_min(1)).mean()

    def divergence(self, output: Any, expected: Any) -> float:
        """The loss; of lists of detections the share that has no partner."""
        loss = self.loss(output, expected, temperature=1.0)
        if loss is None:
            return 1 - self.agreement(output, expected) / 100
        return max(0.0, loss.item())  # it is; rounding may not be

    def agreement(self, output: Any, expected: Any) -> float:
        """How many percent of the detections above CERTAIN of both have a partner in the other's; 100 where there are
        none."""
        return _share(*shared(_certain(output), _certain(expected)))

    def correct(self, output: Any, labels: Tensor) -> float:
        """As `agreement`, with the labels [B, M, 5] in the other's place: the F1 score at an overlap of 0.5."""
        return _share(*shared(_certain(output), labelled(labels)))

    def drawn(self, picture: Image.Image, output: Tensor | dict[str, Tensor]) -> Image.Image:
        image = found(output[None] if isinstance(output, Tensor) else [output])[0].above(CERTAIN)
        return _framed(picture, image)

    def drawn_labels(self, picture: Image.Image, labels: Tensor) -> Image.Image:
        return _framed(picture, labelled(labels[None])[0])

    def usable(self, data: ImageData, model: Any) -> tuple[ImageData, str | None]:
        kinds = classes_of(model)
        if data.classes is None:
            return data, "the data has no boxes: agreement with the teacher only"
        if kinds is not None and data.classes > kinds:
            why = f"the boxes have {data.classes} kinds and the model {kinds}, so they can't be compared"
            return replace(data, classes=None), f"{why}: agreement with the teacher only"
        return data, None

    def followed(self, output: Any, expected: Any, labels: Tensor | None) -> dict[str, float]:
        values = {"agreement": self.agreement(output, expected)}
        if labels is not None:
            values |= {"f1": self.correct(output, labels), "teacher_f1": self.correct(expected, labels)}
        return values

    @torch.no_grad()
    def measure(
        self, models: Mapping[str, Outputs], data: ImageData, limit: int | None = None
    ) -> dict[str, Detections]:
        reference, is_labelled = next(iter(models)), data.classes is not None
        precision: dict[str, Any] = {}
        if is_labelled:
            precision = {name: metrics("pycocotools").detection.MeanAveragePrecision() for name in models}
        for metric in precision.values():
            metric.warn_on_many_detections = False
        partners, counted = (dict.fromkeys(models, 0) for _ in range(2))
        seen = 0
        for images, labels in eval_loader(data, batch_size=PLACES_AT_ONCE):
            outputs = {name: found(model(images)) for name, model in models.items()}
            expected = [image.above(CERTAIN) for image in outputs[reference]]
            for name, detections in outputs.items():
                both = shared([image.above(CERTAIN) for image in detections], expected)
                partners[name] += both[0]
                counted[name] += both[1]
                if is_labelled:
                    precision[name].update([_listed(image) for image in detections], _wanted(labels))
            seen += len(images)
            if limit is not None and seen >= limit:
                break
        if seen == 0:
            raise DataError(f"{data.spec} has no images to evaluate on")
        averages = {name: metric.compute() for name, metric in precision.items()}
        return {
            name: Detections(
                images=seen,
                map=_percent(averages[name]["map"]) if is_labelled else None,
                map50=_percent(averages[name]["map_50"]) if is_labelled else None,
                agreement=None if name == reference else _share(partners[name], counted[name]),
            )
            for name in models
        }


def _framed(picture: Image.Image, image: Found) -> Image.Image:
    """The boxes over a picture of the size that they were found at, a colour for each kind."""
    from matplotlib import colormaps

    framed = picture.convert("RGB")
    draw, width = ImageDraw.Draw(framed), max(2, picture.width // 100)
    for box, kind in zip(image.boxes.tolist(), image.kinds.tolist(), strict=True):
        colour = tuple(round(255 * part) for part in colormaps["tab20"](int(kind) % 20)[:3])
        draw.rectangle((min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])),
                       outline=colour, width=width)  # fmt: skip
    return framed


def _certain(output: Any) -> list[Found]:
    return [image.above(CERTAIN) for image in found(output)]


def _share(partners: int, counted: int) -> float:
    return 100 * partners / counted if counted else 100.0


def _percent(precision: Tensor) -> float | None:
    """torchmetrics has -1 where there is nothing to find."""
    return 100 * precision.item() if precision >= 0 else None


def _listed(image: Found) -> dict[str, Tensor]:
    return {"boxes": image.boxes, "scores": image.scores, "labels": image.kinds}


def _wanted(labels: Tensor) -> list[dict[str, Tensor]]:
    """In torchmetrics' form. What is detected within a crowd is neither right nor wrong."""
    return [
        {
            "boxes": torch.cat([objects.boxes, crowd.boxes]),
            "labels": torch.cat([objects.kinds, crowd.kinds]),
            "iscrowd": torch.tensor([0] * len(objects.kinds) + [1] * len(crowd.kinds)),
        }
        for objects, crowd in zip(labelled(labels), crowds(labels), strict=True)
    ]


def _cross_entropy(logits: Tensor, likely: Tensor) -> Tensor:
    """Of being a kind or not, at every place, in nats."""
    return F.binary_cross_entropy_with_logits(logits, likely, reduction="none")
