from __future__ import annotations

import math

import pytest
import torch

from castling_convert.dense.boxes import (
    LEAST,
    MOST,
    Found,
    by_image,
    found,
    iou,
    labelled,
    matched,
    shared,
    suppressed,
)  # fmt: skip
from castling_convert.errors import ModelError


def boxes(*corners: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def detections(*rows: tuple[float, ...]) -> Found:
    """Of rows x1, y1, x2, y2, kind, with falling scores."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return Found(values[:, :4], torch.linspace(0.9, 0.5, len(values)), values[:, 4].long())


def test_overlaps_by_hand() -> None:
    overlaps = iou(boxes((0, 0, 10, 10), (0, 0, 10, 5)), boxes((0, 0, 10, 10), (5, 5, 15, 15), (20, 0, 30, 10)))
    expected = torch.tensor([[1, 25 / 175, 0], [0.5, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(overlaps, expected)


def test_a_box_without_area_is_the_same_as_itself() -> None:
    assert iou(boxes((3, 3, 3, 3)), boxes((3, 3, 3, 3), (9, 3, 9, 3))).tolist() == [[1.0, 0.0]]


def test_suppression_keeps_the_best_of_a_kind_that_overlap() -> None:
    raw = torch.tensor(
        [
            [0, 0, 10, 10, logit(0.6), logit(0.01)],
            [0, 0, 10, 9, logit(0.9), logit(0.7)],  # the same thing of the first kind; of the second one too
            [0, 0, 10, 4, logit(0.5), logit(0.01)],  # overlaps it by 4 of 9 alone
            [30, 0, 40, 10, logit(LEAST - 1e-3), logit(0.01)],
        ]
    )
    image = suppressed(raw)
    torch.testing.assert_close(image.boxes, boxes((0, 0, 10, 9), (0, 0, 10, 9), (0, 0, 10, 4)))
    torch.testing.assert_close(image.scores, torch.tensor([0.9, 0.7, 0.5]))
    assert image.kinds.tolist() == [0, 1, 0]
    assert image.above(0.6).kinds.tolist() == [0, 1]


def test_no_more_than_so_many_of_a_kind_and_the_best_candidates() -> None:
    corners = 20.0 * torch.arange(MOST + 5)[:, None]
    raw = torch.cat([corners, corners, corners + 10, corners + 10], 1)
    scores = torch.linspace(0.9, 0.2, MOST + 5)[:, None].logit()
    assert len(suppressed(torch.cat([raw, scores, scores - 9], 1)).scores) == MOST
    image = suppressed(torch.cat([raw, scores, scores], 1), candidates=7)
    assert image.kinds.bincount().tolist() in ([4, 3], [3, 4])
    assert image.scores.min() > 0.85


def test_nothing_is_found_in_nothing() -> None:
    assert len(suppressed(torch.zeros(0, 6)).scores) == 0
    assert len(suppressed(torch.full((5, 6), -9.0)).scores) == 0


def test_lists_as_torchvision_has_them_are_put_in_order() -> None:
    output = [
        {"boxes": boxes((0, 0, 1, 1), (2, 2, 3, 3)), "scores": torch.tensor([0.1, 0.2]), "labels": torch.tensor([5, 7])}
    ]
    (image,) = found(output)
    assert image.kinds.tolist() == [7, 5]
    assert image.boxes[0].tolist() == [2, 2, 3, 3]


@pytest.mark.parametrize("output", [torch.zeros(2, 3), torch.zeros(1, 9, 4), {"logits": 1}, [torch.zeros(3)], None])
def test_an_output_that_says_nothing_of_boxes(output: object) -> None:
    with pytest.raises(
        ModelError, match=r"a detector returns boxes and logits \[B, N, 4 \+ kinds\], or for each image"
    ):
        found(output)


def test_partners_are_of_one_kind_and_have_one_each() -> None:
    a = detections((0, 0, 10, 10, 0), (0, 0, 10, 9, 0), (50, 50, 60, 60, 1), (80, 80, 90, 90, 2))
    assert matched(a, a) == 4
    b = detections((0, 0, 10, 10, 0), (50, 50, 60, 60, 0), (80, 80, 90, 84, 2))
    assert matched(a, b) == matched(b, a) == 1  # one of another kind, one overlaps too little
    assert matched(a, detections()) == matched(detections(), a) == 0
    assert shared([a, b], [b, b]) == (2 + 6, 7 + 6)


def test_those_that_overlap_most_find_each_other() -> None:
    a = detections((0, 0, 10, 7, 0), (0, 0, 10, 10, 0))
    b = detections((0, 0, 10, 10, 0), (0, 0, 10, 5.5, 0))
    assert matched(a, b) == 2


def test_labels_are_detections_and_padding_is_none() -> None:
    first, second = labelled(torch.tensor([[[1.0, 2, 3, 4, 0], [-1] * 5], [[-1] * 5, [-1] * 5]]))
    assert (first.boxes.tolist(), first.kinds.tolist(), first.scores.tolist()) == ([[1, 2, 3, 4]], [0], [1])
    assert len(second.scores) == 0


def test_rows_of_an_artifact_image_by_image() -> None:
    rows = torch.tensor([[0, 1, 2, 3, 4, 2, 0.5], [2, 5, 6, 7, 8, 0, 0.25]])
    first, second, third = by_image(rows, 3)
    assert (first["boxes"].tolist(), first["labels"].tolist(), first["scores"].tolist()) == ([[1, 2, 3, 4]], [2], [0.5])
    assert len(second["boxes"]) == 0
    assert third["labels"].tolist() == [0]
