"""Boxes in images: x1, y1, x2, y2 in pixels, each with a score and the number of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from ..data.targets import NO_BOX, crowd
from ..errors import ModelError, described

CORNERS = 4
"""Numbers of a box; in a raw output they stand before the logits of its kinds."""
OVERLAP = 0.5
"""Intersection over union from which on two boxes of a kind are the same thing, as in Pascal VOC."""
LEAST = 0.05
"""Score that a detection has more than."""
MOST = 100
"""Detections of a kind in an image, as many as COCO counts."""
CANDIDATES = 5000
"""Boxes with their kinds, of one image, that the best are looked for among."""


class Found(NamedTuple):
    """What was detected in one image, by falling score: boxes [n, 4], scores [n], kinds [n]."""

    boxes: Tensor
    scores: Tensor
    kinds: Tensor

    def above(self, score: float) -> Found:
        return self._chosen(self.scores > score)

    def _chosen(self, which: Tensor) -> Found:
        return Found(self.boxes[which], self.scores[which], self.kinds[which])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, [n, m], of boxes [n, 4] and [m, 4]. One narrower than a pixel counts as a pixel wide, so
    that one without any area is still the same as itself."""
    return box_iou(_of_pixels(a), _of_pixels(b))


def _of_pixels(boxes: Tensor) -> Tensor:
    low, high = boxes.double().split(CORNERS // 2, -1)
    more = (1 - (high - low)).clamp_min(0) / 2
    return torch.cat([low - more, high + more], -1)


def found(output: Any) -> list[Found]:
    """What a detector's output says of each image: of raw boxes what `suppressed` leaves of them, of a list of dicts
    `boxes`, `scores` and `labels`, torchvision's form, what is in them. On the CPU.

    Raises:
        ModelError: it is neither.
    """
    if isinstance(output, Tensor) and output.ndim == 3 and output.shape[-1] > CORNERS:
        return [suppressed(raw) for raw in output.detach().float().cpu()]
    if isinstance(output, Sequence) and all(
        isinstance(one, dict) and {"boxes", "scores", "labels"} <= {*one} for one in output
    ):
        return [_listed(*(one[name].detach().cpu() for name in ("boxes", "scores", "labels"))) for one in output]
    raise ModelError(
        f"a detector returns boxes and logits [B, N, {CORNERS} + kinds], or for each image a dict of boxes, scores and "
        f"labels, not {described(output)}"
    )


def _listed(boxes: Tensor, scores: Tensor, kinds: Tensor) -> Found:
    return Found(boxes.float(), scores.float(), kinds)._chosen(scores.argsort(descending=True, stable=True))


def suppressed(raw: Tensor, candidates: int | None = CANDIDATES) -> Found:
    """The detections among raw boxes and logits of one image, [N, 4 + kinds]: every box with every kind that it has a
    score, the sigmoid of its logit, of more than LEAST for, without those that overlap a better one of their kind by
    more than OVERLAP; the best MOST of a kind.

    Args:
        candidates: how many, the best ones, are looked at; None for all.
    """
    boxes, scores = raw[:, :CORNERS], raw[:, CORNERS:].sigmoid()
    places, kinds = (scores > LEAST).nonzero(as_tuple=True)
    values = scores[places, kinds]
    if candidates is not None and len(values) > candidates:
        values, best = values.topk(candidates)
        places, kinds = places[best], kinds[best]
    kept = batched_nms(boxes[places], values, kinds, OVERLAP)
    kept = kept[_rank(kinds[kept]) < MOST]
    return Found(boxes[places[kept]], values[kept], kinds[kept])


def _rank(kinds: Tensor) -> Tensor:
    """How many of the same kind stand before each."""
    order = kinds.argsort(stable=True)
    _, counts = kinds.unique(return_counts=True)
    ranks = torch.cat([torch.arange(int(count)) for count in counts]) if len(counts) else order
    return torch.empty_like(order).scatter(0, order, ranks.to(order))


def labelled(boxes: Tensor) -> list[Found]:
    """Labels [B, M, 5], of each box its corners and its kind, as detections that are certain; rows of a kind below zero
    are none."""
    rows = [image[image[:, CORNERS] >= 0] for image in boxes.detach().float().cpu()]
    return [Found(row[:, :CORNERS], torch.ones(len(row)), row[:, CORNERS].long()) for row in rows]


def crowds(boxes: Tensor) -> list[Found]:
    """The crowds among labels [B, M, 5], in the same form, with the kinds of their objects."""
    rows = [image[image[:, CORNERS] < NO_BOX] for image in boxes.detach().float().cpu()]
    return [Found(row[:, :CORNERS], torch.ones(len(row)), crowd(row[:, CORNERS]).long()) for row in rows]


def by_image(rows: Tensor, images: int) -> list[dict[str, Tensor]]:
    """Detections [M, 7] of a batch, image, x1, y1, x2, y2, kind and score, in torchvision's form."""
    each = [rows[rows[:, 0] == index] for index in range(images)]
    return [{"boxes": one[:, 1:5], "scores": one[:, 6], "labels": one[:, 5].long()} for one in each]


def matched(a: Found, b: Found) -> int:
    """How many of `a` have a partner in `b`, each for itself, of the same kind and with an overlap of OVERLAP or more;
    those that overlap most find each other first."""
    if not len(a.scores) or not len(b.scores):
        return 0
    overlaps = iou(a.boxes, b.boxes) * (a.kinds[:, None] == b.kinds)
    pairs = (overlaps >= OVERLAP).nonzero()
    order = overlaps[pairs[:, 0], pairs[:, 1]].argsort(descending=True, stable=True)
    taken_a: set[int] = set()
    taken_b: set[int] = set()
    for first, second in pairs[order].tolist():
        if first not in taken_a and second not in taken_b:
            taken_a.add(first)
            taken_b.add(second)
    return len(taken_a)


def shared(a: Sequence[Found], b: Sequence[Found]) -> tuple[int, int]:
    """Over images: how many detections of both have a partner in the other's, and how many there are."""
    partners = sum(2 * matched(mine, other) for mine, other in zip(a, b, strict=True))
    return partners, sum(len(one.scores) for one in (*a, *b))
