"""Top-1, top-5 and agreement against numbers counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

import castling_convert as cc
from castling_convert.castling import close_masks
from castling_convert.data.spec import ImageData
from castling_convert.errors import DataError
from castling_convert.evaluation.probe import Probe, spread
from castling_convert.recipe import SettledRecipe
from castling_convert.tasks import Accuracy, Classify, Features, Likeness
from tests.models import tiny

measure = Classify().measure


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
    # 0, 100, 100 and 0 points lost of an image: a mean of 50 with a variance of 10,000 / 3, over N - 1.
    error = pytest.approx((10_000 / 3 / 4) ** 0.5)
    assert results["castled"] == Accuracy(images=4, top1=25.0, top5=50.0, agreement=50.0, standard_error=error)


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
    assert results["castled"] == Accuracy(2, None, None, 50.0, standard_error=pytest.approx(50.0))


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


def test_the_probe_counts_what_is_measured():
    teacher = tiny()
    student = cc.castle(teacher, "castling-fast").eval()
    close_masks(student)
    x = torch.randn(70, 3, 32, 32)
    labels = torch.arange(70) % 10
    values = Probe(teacher, ImageData("made up", TensorDataset(x, labels), 10, held_out=True))(student)
    with torch.no_grad():
        expected, top = teacher(x).argmax(-1), student(x).argmax(-1)
    share = {"agreement": top == expected, "top1": top == labels, "teacher_top1": expected == labels}
    assert values == pytest.approx({name: 100 * hits.float().mean().item() for name, hits in share.items()})
    assert 0 < values["agreement"] < 100


def test_the_probe_takes_images_from_the_whole_set():
    """A set sorted by class is not judged by its first class alone."""
    images = torch.arange(1000.0)[:, None, None, None].expand(-1, 3, 32, 32)
    sorted_by_class = ImageData("made up", TensorDataset(images, torch.arange(1000) // 100), 10, held_out=True)
    probe = Probe(tiny(), sorted_by_class, images=50)
    assert torch.bincount(probe.labels).tolist() == [5] * 10
    unlabelled = Probe(tiny(), ImageData("made up", sorted_by_class.dataset, None, held_out=True), images=3)
    assert set(unlabelled(cc.castle(tiny()))) == {"agreement"}


@pytest.mark.parametrize(
    ("images", "sizes", "expected"),
    [
        (100_000, None, (20, 500)),
        (25_600, None, (20, 256)),
        (4_000, None, (20, 40)),
        (4_000, [16], (6, 33)),  # a quarter of the area
        (4_000, [16, 32], (15, 33)),
        (400, [16], (2, 10)),
        (8, None, (2, 8)),
    ],
)
def test_one_image_is_looked_at_for_five_that_are_learned_from(images, sizes, expected):
    values = cc.Recipe.load("castling", ["distill.batch_size=4", f"distill.steps={images // 4}"]).model_dump()
    values["data"]["sizes"] = sizes
    assert spread(SettledRecipe.parse(values, "a recipe"), tiny()) == expected


def points(*angles: float) -> ImageData:
    """Images whose features, on the unit circle, are these angles in degrees."""
    return ImageData("points", TensorDataset(torch.tensor(angles).view(-1, 1, 1, 1), torch.zeros(len(angles))), None,
                     held_out=True)  # fmt: skip


def circle(x: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    angle = (x.flatten() * factor).deg2rad()
    return 3 * torch.stack([angle.cos(), angle.sin()], -1)


def likeness(reference, other, data: ImageData) -> Likeness:
    return Features().measure({"teacher": reference, "castled": other}, data)["castled"]


def test_likeness_is_the_cosine_and_whether_the_nearest_neighbour_is_the_same(monkeypatch):
    data = points(0.0, 10.0, 30.0, 40.0)
    assert likeness(circle, circle, data) == Likeness(4, pytest.approx(1.0), 100.0)
    # Turned as a whole the cosine falls, and every neighbour stays.
    turned = likeness(circle, lambda x: circle(x + 60), data)
    assert turned == Likeness(4, pytest.approx(0.5), 100.0)
    # The second and third go towards each other: two of four neighbours change.
    moved = {10.0: 19.0, 30.0: 21.0}
    other = likeness(circle, lambda x: circle(torch.tensor([moved.get(v, v) for v in x.flatten().tolist()])), data)
    assert other.neighbours == 50.0
    monkeypatch.setattr("castling_convert.tasks.features.AT_ONCE", 3)
    assert likeness(circle, circle, data).neighbours == 100.0


def test_two_images_have_no_choice_of_a_neighbour():
    with pytest.raises(DataError, match="at least 3"):
        likeness(circle, circle, points(0.0, 10.0))


def test_what_is_lost():
    task = Classify()
    teacher = Accuracy(10, top1=90.0, top5=None, agreement=None)
    assert task.lost(teacher, Accuracy(10, top1=91.5, top5=None, agreement=80.0)) == -1.5
    unlabelled = Accuracy(10, top1=None, top5=None, agreement=None)
    assert task.lost(unlabelled, Accuracy(10, top1=None, top5=None, agreement=97.0)) == 3.0
    assert Features().lost(Likeness(10, None, None), Likeness(10, 0.9, 80.0)) == 20.0


def test_features_agree_where_the_nearest_teachers_feature_is_the_images_own():
    task, x = Features(), torch.eye(4)
    assert task.agreement(2 * x, x) == 100.0
    assert task.agreement(x[[1, 0, 2, 3]], x) == 50.0
    assert task.agreement(x[:1] + 0.1, x[:1]) == 100.0
    assert task.divergence(x, x) == pytest.approx(0.0, abs=1e-6)
    assert task.divergence(-x, x) == pytest.approx(2.0)
