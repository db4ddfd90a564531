"""Segmenters and detectors to try castling on: a head trained on the maps of a frozen backbone, or a small one trained
whole."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor

from ..data.loaders import eval_loader, training_loader
from ..data.preprocessing import Preprocessing
from ..data.spec import ImageData, open_data
from ..errors import DataError
from ..tasks import task_of

BATCH = 16
TRAINING = {"segment": (40, 1e-2), "detect": (20, 2e-3)}
"""Of a head: epochs, and AdamW's rate, by task."""
SEED, RATE = 0, 2e-3
"""The rate of what is trained whole."""


def train_head(model: Any, data: str, *, epochs: int | None = None, console: Console | None = None) -> float:
    """Train what `model`, a `Segmenter` or a `Detector`, has around its backbone, in place.

    The backbone is not trained, so that its maps of every image are computed once and kept, in half precision: 600
    images of 400 patches of 384 channels are 184 MB.

    Args:
        data: a spec with masks or boxes. epochs: those of TRAINING when left out.

    Returns:
        What the task measures first, in percent, on the validation part.

    Raises:
        DataError: labels that are none of the model's, or none at all.
    """
    set_seed(SEED)
    model.eval()
    started = time.monotonic()
    kept, wanted = _maps(model, _labelled(data, model))
    count = len(wanted)
    if console is not None:
        console.print(f"maps of {count} images in {time.monotonic() - started:.0f} s; training the head ...")
    inside = {id(parameter) for parameter in model.backbone.parameters()}
    head = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    asked, lr = TRAINING[task_of(model).name]
    epochs = epochs or asked
    optimizer = torch.optim.AdamW(head, lr, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * -(-count // BATCH))
    for epoch in range(epochs):
        model.train()
        model.backbone.eval()
        for chosen in torch.randperm(count).split(BATCH):
            loss = model.loss_of([maps[chosen].float() for maps in kept], wanted[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        if console is not None and (epoch + 1) % max(1, epochs // 5) == 0:
            console.print(f"  epoch {epoch + 1}/{epochs} loss {loss.item():.3f}")
    return _measured(model, data, console)


def train_whole(
    model: Any, data: str, *, steps: int, batch_size: int = 32, console: Console | None = None
) -> float:  # fmt: skip
    """Train a small `Segmenter` or `Detector` as a whole, in place, from the weights that it has, on the training part
    of a data set with masks or boxes; returns what `train_head` does."""
    set_seed(SEED)
    opened = _labelled(data, model)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    model.train()
    for step, (images, labels) in enumerate(training_loader(opened, batch_size, steps, 0, SEED, workers=0), start=1):
        loss = model.loss_of(model.backbone(images), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if console is not None and step % max(1, steps // 5) == 0:
            console.print(f"  step {step}/{steps} loss {loss.item():.3f}")
    return _measured(model, data, console)


def _labelled(data: str, model: Any) -> ImageData:
    """The training part, with labels that the model can learn."""
    opened, why = task_of(model).usable(open_data(data, Preprocessing.of(model), "train"), model)
    if why is not None:
        raise DataError(f"{data} can't be trained on: {why.partition(':')[0]}")
    return opened


def _measured(model: Any, data: str, console: Console | None) -> float:
    model.eval()
    task = task_of(model)
    score = task.measure({"teacher": model}, open_data(data, Preprocessing.of(model), "validation"))["teacher"]
    reached = score.to_dict()[task.score[0]]
    if reached is None:
        raise DataError(f"the labels of {data} hold nothing to measure {task.score[1]} on; give others to validate on")
    if console is not None:
        console.print(f"teacher: {task.score[1]} {reached:.2f} % on {score.images} held-out images")
    return reached


@torch.no_grad()
def _maps(model: Any, data: Any) -> tuple[list[Tensor], Tensor]:
    """The backbone's maps of all images, in half precision, and what is to be found in them."""
    maps: list[list[Tensor]] = []
    wanted = []
    for images, labels in eval_loader(data, BATCH):
        maps.append([found.half() for found in model.backbone(images)])
        wanted.append(labels)
    return [torch.cat(parts) for parts in zip(*maps, strict=True)], torch.cat(wanted)
