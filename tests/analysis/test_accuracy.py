"""Top-1, top-5 and agreement against numbers counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from castling_convert.analysis.accuracy import Accuracy, measure
from castling_convert.distill.data import ImageData
from castling_convert.errors import DataError


def data(labels: list[int], classes: int | None) -> ImageData:
    """Images that are nothing but their own number."""
    numbers = torch.arange(float(len(labels)))[:, None, None, None]
    return ImageData("made up", TensorDataset(numbers, torch.tensor(labels)), classes, held_out=True)


def answers(*rankings: list[int], classes: int):
    """A classifier that ranks the classes of image i as `rankings[i]` says, best first."""

    def run(images: torch.Tensor) -> torch.Tensor:
        logits = torch.full((len(images), classes), -100.0)
        for row, image in enumerate(images.flatten().int().tolist()):
            for place, chosen in enumerate(rankings[image]):
                logits[row, chosen] = -place
        return logits

    return run


def test_by_hand():
    last = [3, 0, 1, 2, 4]  # wrong: the label is 7
    teacher = answers([0], [1], [2], last, classes=8)
    castled = answers([0], [4, 1], [5, 4, 3, 1, 0, 2], last, classes=8)  # right in place 1, 2, 6
    results = measure({"teacher": teacher, "castled": castled}, data([0, 1, 2, 7], 8))
    assert results["teacher"] == Accuracy(images=4, top1=75.0, top5=75.0, agreement=None)
    assert results["castled"] == Accuracy(images=4, top1=25.0, top5=50.0, agreement=50.0)


def test_top5_ends_after_the_fifth_place():
    ranked = [list(range(7)), list(range(7))]
    results = measure({"model": answers(*ranked, classes=7)}, data([4, 5], 7))
    assert (results["model"].top1, results["model"].top5) == (0.0, 50.0)


def test_five_classes_have_no_top5():
    assert measure({"model": answers([0], classes=5)}, data([0], 5))["model"].top5 is None


def test_without_labels_only_agreement_is_known():
    models = {"teacher": answers([0], [1], classes=8), "castled": answers([0], [2], classes=8)}
    results = measure(models, data([-1, -1], None))
    assert results["teacher"] == Accuracy(2, None, None, None)
    assert results["castled"] == Accuracy(2, None, None, 50.0)


def test_every_image_counts_once_over_batches():
    labels = [index % 3 for index in range(130)]  # more than two batches
    right = answers(*([label] for label in labels), classes=6)
    results = measure({"model": right}, data(labels, 6))
    assert results["model"].images == 130
    assert results["model"].top1 == 100.0


def test_limit_stops_early():
    labels = [0] * 200
    model = answers(*([0] for _ in labels), classes=6)
    assert 10 <= measure({"model": model}, data(labels, 6), limit=10)["model"].images < 200


def test_labels_beyond_the_model():
    with pytest.raises(DataError, match="9 classes, the model has 8"):
        measure({"model": answers([0], classes=8)}, data([8], 9))


def test_no_images():
    with pytest.raises(DataError, match="no images"):
        measure({"model": answers(classes=8)}, data([], 8))
