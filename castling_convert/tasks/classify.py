"""Classification: one label an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.loaders import eval_loader
from ..data.spec import ImageData
from ..errors import DataError, ModelError
from ..families import said_task
from .base import Outputs, Task, classes_of, standard_error


@dataclass(frozen=True)
class Accuracy:
    """Percentages over `images` images. `top1` and `top5` are None without labels, `top5` also with
    five classes or fewer; `agreement` is the share of images where the model's top class is the
    reference's, None for the reference itself. `standard_error` as in `Score`, of top-1, or without labels of
    agreement: images that both models are right or wrong about have no part in it."""

    images: int
    top1: float | None
    top5: float | None
    agreement: float | None
    standard_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Classify(Task):
    """Outputs are logits, [B, classes]."""

    name, output, distance = "classify", "logits", "nats"

    def matches(self, model: nn.Module) -> bool:
        return classes_of(model) != 0 and said_task(model) in (None, self.name)

    def classes(self, model: Any) -> int | None:
        return classes_of(model)

    def probabilities(self, output: Tensor) -> Tensor:
        return output.softmax(-1)

    def loss(self, output: Tensor, expected: Tensor, temperature: float) -> Tensor:
        if output.ndim != 2:
            raise ModelError(
                f"the model returns {list(output.shape)}, which is no logits of one class an image; say by its "
                "attribute task what it is for, segment or detect"
            )
        return logit_divergence(output, expected, temperature)

    def divergence(self, output: Tensor, expected: Tensor) -> float:
        return max(0.0, logit_divergence(output, expected, temperature=1.0).item())  # it is; rounding may not be

    def agreement(self, output: Tensor, expected: Tensor) -> float:
        return self.correct(output, expected.argmax(-1))

    def correct(self, output: Tensor, labels: Tensor) -> float:
        return 100 * (output.argmax(-1) == labels).double().mean().item()

    def answers(self, output: Tensor) -> Tensor:
        return output.argmax(-1)

    def usable(self, data: ImageData, model: Any) -> tuple[ImageData, str | None]:
        if data.classes is None:
            return data, "the data has no labels, or does not say of how many classes: agreement with the teacher only"
        classes = classes_of(model)
        if data.classes != classes:
            why = f"the data has {data.classes} classes and the model {classes}, so labels can't be compared"
            return replace(data, classes=None), f"{why}: agreement with the teacher only"
        return data, None

    def followed(self, output: Tensor, expected: Tensor, labels: Tensor | None) -> dict[str, float]:
        values = {"agreement": self.agreement(output, expected)}
        if labels is not None:
            values |= {"top1": self.correct(output, labels), "teacher_top1": self.correct(expected, labels)}
        return values

    @torch.no_grad()
    def measure(self, models: Mapping[str, Outputs], data: ImageData, limit: int | None = None) -> dict[str, Accuracy]:
        reference = next(iter(models))
        right1: dict[str, list[Tensor]] = {name: [] for name in models}
        same: dict[str, list[Tensor]] = {name: [] for name in models}
        right5 = dict.fromkeys(models, 0)
        seen, classes = 0, 0
        for images, labels in eval_loader(data):
            logits = {name: model(images).float().cpu() for name, model in models.items()}
            classes = logits[reference].shape[-1]
            if data.classes is not None and data.classes != classes:
                raise DataError(
                    f"{data.spec} has {data.classes} classes, the model has {classes}: labels can't be compared; "
                    "give the data the model was trained for"
                )
            top = {name: values.argmax(-1) for name, values in logits.items()}
            for name, values in logits.items():
                right1[name].append(top[name] == labels)
                same[name].append(top[name] == top[reference])
                if classes > 5:
                    right5[name] += int((values.topk(5).indices == labels[:, None]).any(-1).sum())
            seen += len(labels)
            if limit is not None and seen >= limit:
                break
        if seen == 0:
            raise DataError(f"{data.spec} has no images to evaluate on")
        labelled = data.classes is not None
        right, agree = ({name: 100 * torch.cat(parts).double() for name, parts in x.items()} for x in (right1, same))
        counted = right if labelled else agree
        return {
            name: Accuracy(
                images=seen,
                top1=right[name].mean().item() if labelled else None,
                top5=100 * right5[name] / seen if labelled and classes > 5 else None,
                agreement=None if name == reference else agree[name].mean().item(),
                standard_error=None if name == reference else standard_error(counted[reference] - counted[name]),
            )
            for name in models
        }


def logit_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the class distributions at `temperature`, times its square; [B, classes].

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
    """
    log_p = (student.float() / temperature).log_softmax(-1)
    log_q = (teacher.detach().float() / temperature).log_softmax(-1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2
