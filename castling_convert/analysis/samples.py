"""A dozen validation images with the answers of teacher and castled model, and what was lost class by class."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from .. import bundle
from ..data.loaders import count_in_memory, some_batches
from ..data.preprocessing import Preprocessing
from ..data.spec import GENERATED, ImageData, open_data
from ..errors import CastlingError
from ..evaluation.teacher import teacher_of
from ..tasks import Task, task_of
from .page import table

SHOWN, LOOKED_AT = 12, 512
"""Images that are shown, and of how many; those that the two models disagree about first."""
PICTURES, PICTURES_OF = 9, 64
"""The same of what is drawn into images."""
THUMBNAIL, LARGER, GAP = 144, 1.5, 4
CLASSES = 20
"""Rows of the table by class: those that lost most."""


@torch.no_grad()
def samples(path: Path, summary: dict[str, Any], console: Console | None) -> str:
    """HTML; one sentence where the images or the teacher can't be had, or are of no use."""
    spec = summary["identity"]["data"]
    if spec == GENERATED:
        return ""
    folded = bundle.load(path)
    task, preprocessing = task_of(folded), Preprocessing.of(folded)
    try:
        data = open_data(spec, preprocessing, "validation")
        names = getattr(data.dataset, "classes", ())
        data, _ = task.usable(data, folded)
        if preprocessing.labels != "classes":
            return _pictures(task, teacher_of(path, folded, console=console), folded, data, preprocessing)
        batches = some_batches(data, count_in_memory(LOOKED_AT, preprocessing))
        castled = answers(task, folded, batches)
        if castled is None:
            return ""
        teacher = teacher_of(path, folded, console=console)
    except CastlingError as error:
        return f"<h2>Images</h2><p>None are shown: {html.escape(str(error))}</p>"
    pixels, true = (torch.cat(part) for part in zip(*batches, strict=True))
    true = true if data.classes is not None else torch.full_like(true, -1)
    wanted = answers(task, teacher, batches)
    assert wanted is not None

    def name(index: int) -> str:
        return str(names[index]) if index < len(names) else f"class {index}"

    order = torch.argsort((castled == wanted).int(), stable=True)[:SHOWN].tolist()
    figures = "".join(
        _figure(_thumbnail(pixels[i], preprocessing), int(true[i]), int(wanted[i]), int(castled[i]), name)
        for i in order
    )
    disagree = int((castled != wanted).sum())
    head = (
        f"<h2>Images</h2><p>Of {len(castled)} validation images the two models disagree about {disagree}; "
        f"{'those come first' if disagree else 'some of the others'}.</p>"
    )
    return f'{head}<div class="samples">{figures}</div>' + _by_class(true, wanted, castled, name)


def _pictures(
    task: Task, teacher: nn.Module, folded: nn.Module, data: ImageData, preprocessing: Preprocessing
) -> str:  # fmt: skip
    """Images with what the two models say of them side by side, those that they agree about least first."""
    found = []
    for images, labels in some_batches(data, count_in_memory(PICTURES_OF, preprocessing)):
        known = labels if data.classes is not None else len(images) * [None]
        for image, label in zip(images.split(1), known, strict=True):
            wanted, said = (task.run(model, image) for model in (teacher, folded))
            picture = in_a_row(task, image[0], label, (wanted[0], said[0]), preprocessing)
            found.append((task.agreement(said, wanted), picture))
    found.sort(key=lambda pair: pair[0])
    figures = "".join(
        f'<figure><img src="{_url(picture)}" alt=""><figcaption>agreement {agreement:.1f} %</figcaption></figure>'
        for agreement, picture in found[:PICTURES]
    )
    what = "labels, teacher, castled" if data.classes is not None else "teacher, castled"
    head = f"<h2>Images</h2><p>Of {len(found)} validation images those with the least agreement; {what}.</p>"
    return f'{head}<div class="samples wide">{figures}</div>'


def in_a_row(
    task: Task, image: Tensor, labels: Tensor | None, outputs: Iterable[Any], preprocessing: Preprocessing
) -> Image.Image:  # fmt: skip
    """One image, [C, H, W], with its labels where there are some and with what each of several models returned for it,
    from left to right."""
    picture = _pixels(image, preprocessing).convert("RGB")
    drawn = [] if labels is None else [task.drawn_labels(picture, labels)]
    drawn += [task.drawn(picture, output) for output in outputs]
    parts = [_shrunk(part, LARGER * THUMBNAIL) for part in drawn]
    width, height = parts[0].width + GAP, parts[0].height
    whole = Image.new("RGB", (len(parts) * width - GAP, height), "white")
    for place, part in enumerate(parts):
        whole.paste(part, (place * width, 0))
    return whole


def answers(task: Task, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """What `model` says of every image; None where its task says nothing of that kind."""
    found = [task.answers(model(images)) for images, _ in batches]
    said = [part for part in found if part is not None]
    return torch.cat(said) if said else None


def _figure(source: str, label: int, teacher: int, castled: int, name: Any) -> str:
    lines = [f"labelled {html.escape(name(label))}"] if label >= 0 else []
    for who, answer in (("teacher", teacher), ("castled", castled)):
        right = "" if label < 0 else "good" if answer == label else "bad"
        lines.append(f'{who}: <span class="{right}">{html.escape(name(answer))}</span>')
    return f'<figure><img src="{source}" alt=""><figcaption>{"<br>".join(lines)}</figcaption></figure>'


def _thumbnail(image: Tensor, preprocessing: Preprocessing) -> str:
    """A data URL of a normalised image, [C, H, W]."""
    return _url(_shrunk(_pixels(image, preprocessing), THUMBNAIL))


def _pixels(image: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """A normalised image, [C, H, W], as it looks."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    values = ((image * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.squeeze(values, 2) if values.shape[2] == 1 else values)


def _shrunk(picture: Image.Image, side: float) -> Image.Image:
    """The longer side as long as that."""
    factor = side / max(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _url(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.convert("RGB").save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _by_class(labels: Tensor, teacher: Tensor, castled: Tensor, name: Any) -> str:
    """Top-1 of each class, the greatest loss first."""
    rows = []
    for label in labels.unique().tolist():
        of_it = labels == label
        if label >= 0:
            scores = [100 * (answers[of_it] == label).double().mean().item() for answers in (teacher, castled)]
            rows.append((scores[1] - scores[0], name(label), int(of_it.sum()), *scores))
    if not rows:
        return ""
    rows.sort()
    shown = [
        (label, str(count), f"{before:.1f} %", f"{after:.1f} %", f"{drop:+.1f}")
        for drop, label, count, before, after in rows[:CLASSES]
    ]
    head = ("class", "images", "teacher", "castled", "points")
    more = (
        f"<p class='faint'>and {len(rows) - CLASSES} further classes, which lost less</p>"
        if len(rows) > CLASSES
        else ""
    )
    return f"<h2>By class</h2>{table([head, *shown])}{more}"
