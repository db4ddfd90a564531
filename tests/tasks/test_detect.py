"""The task of detectors, against numbers counted by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from castling_convert.artifact.parity import Tolerance, compare, noise
from castling_convert.data.spec import ImageData
from castling_convert.data.targets import crowd
from castling_convert.errors import DataError, ModelError
from castling_convert.evaluation.probe import Probe
from castling_convert.tasks import Detect, Detections, task_of, task_of_output
from tests.dense.detectors import KINDS, SIDE, Listing, detector, scenes, trained

TASK = Detect()
LEFT, RIGHT, FAR = (0.0, 0, 10, 10), (20.0, 0, 30, 10), (40.0, 40, 60, 60)
Row = tuple[tuple[float, ...], int, float]


def raw(*rows: Row, kinds: int = 2) -> Tensor:
    """Of boxes with a kind and a score, one image's output, and a place that sees nothing."""
    output = torch.full((1, len(rows) + 1, 4 + kinds), -12.0)
    output[..., :4] = torch.tensor([30.0, 30, 31, 31])
    for place, (box, kind, score) in enumerate(rows):
        output[0, place, :4] = torch.tensor(box)
        output[0, place, 4 + kind] = torch.tensor(score).logit()
    return output


def listed(*rows: Row) -> list[dict[str, Tensor]]:
    """The same as torchvision has it."""
    boxes, kinds, scores = zip(*rows, strict=True)
    return [{"boxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": torch.tensor(kinds)}]


def data(labels: Tensor, classes: int | None = 2) -> ImageData:
    """Images that are nothing but their own number."""
    numbers = torch.arange(float(len(labels)))[:, None, None, None]
    return ImageData("made up", TensorDataset(numbers, labels), classes, held_out=True)


def labels(*images: list[tuple[tuple[float, ...], int]]) -> Tensor:
    """Padded to three."""
    rows = -torch.ones(len(images), 3, 5)
    for image, boxes in zip(rows, images, strict=True):
        for row, (box, kind) in zip(image, boxes, strict=False):
            row.copy_(torch.tensor([*box, kind]))
    return rows


def says(*outputs: Any) -> Callable[[Tensor], Any]:
    """A detector that returns for image i the i-th of these."""

    def run(images: Tensor) -> Any:
        chosen = [outputs[int(image)] for image in images.flatten()]
        return torch.cat(chosen) if isinstance(chosen[0], Tensor) else [one for image in chosen for one in image]

    return run


RIGHT_ANSWERS = labels([(LEFT, 0), (RIGHT, 1)], [(FAR, 0)])
GOOD = raw((LEFT, 0, 0.9), (RIGHT, 1, 0.8))


@pytest.mark.parametrize("form", [raw, listed])
def test_precision_and_agreement_by_hand(form: Callable[..., Any]) -> None:
    far = form((FAR, 0, 0.7), (LEFT, 0, 0.1))
    teacher = says(form((LEFT, 0, 0.9), (RIGHT, 1, 0.8)), far)
    castled = says(form((LEFT, 0, 0.9), (RIGHT, 0, 0.8)), far)  # one of another kind
    results = TASK.measure({"teacher": teacher, "castled": castled}, data(RIGHT_ANSWERS))
    assert results["teacher"] == Detections(images=2, map=100.0, map50=100.0, agreement=None)
    # Of kind 0 both are found, before one that is none; of kind 1 nothing is. Three and three, two and two of them have
    # a partner.
    castled_score = results["castled"]
    assert castled_score.agreement == pytest.approx(100 * 4 / 6)
    assert castled_score.map50 == pytest.approx(100 * (0.5 * (1 + 2 / 3) * 101 / 101) / 2, abs=0.5)
    assert TASK.lost(results["teacher"], castled_score) == pytest.approx(100 - castled_score.map)


def test_what_is_found_in_a_crowd_counts_neither_way() -> None:
    """A crowd of the other kind, or none, leaves the detection false."""
    inside = raw(((41.0, 41, 45, 45), 0, 0.95), (LEFT, 0, 0.9))
    for kind, right in ((crowd(0), 100.0), (crowd(1), 50.0), (-1, 50.0)):
        wanted = labels([(LEFT, 0), (FAR, kind)])
        assert TASK.measure({"model": says(inside)}, data(wanted))["model"].map == pytest.approx(right)
        assert TASK.correct(inside, wanted) == pytest.approx(100 * 2 / 3)
    only = labels([(FAR, crowd(0))])
    assert TASK.measure({"model": says(inside)}, data(only))["model"].map is None


def test_half_an_overlap_counts_for_half_of_the_thresholds() -> None:
    """An overlap of 0.72 is enough for 0.5, 0.55, 0.6, 0.65 and 0.7, five of ten."""
    results = TASK.measure({"model": says(raw(((0.0, 0, 10, 7.2), 0, 0.9)))}, data(labels([(LEFT, 0)])))
    assert (results["model"].map50, results["model"].map) == (pytest.approx(100.0), pytest.approx(50.0))


def test_without_labels_only_agreement_is_known() -> None:
    models = {"teacher": says(GOOD), "castled": says(raw((LEFT, 0, 0.9)))}
    results = TASK.measure(models, data(-torch.ones(1, 3, 5), None))
    assert results["castled"] == Detections(1, None, None, pytest.approx(100 * 2 / 3))
    assert TASK.lost(results["teacher"], results["castled"]) == pytest.approx(100 / 3)
    assert (TASK.lost_in(data(RIGHT_ANSWERS)), TASK.lost_in(data(RIGHT_ANSWERS, None))) == ("mAP", "agreement")
    assert TASK.account(results)["castled"]["images"] == 1


def test_where_there_is_nothing_to_find_there_is_no_precision() -> None:
    scores = TASK.measure({"model": says(GOOD)}, data(-torch.ones(1, 3, 5)))
    assert scores["model"].map is None
    assert TASK.nothing_found(scores) == "the labels hold nothing to measure mAP on: agreement with the teacher only"


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(DataError) as error:
        TASK.measure({"model": says(GOOD)}, data(RIGHT_ANSWERS[:1]))
    assert str(error.value) == ("to measure this task pycocotools is needed: pip install castling-convert[dense]")
    assert TASK.measure({"model": says(GOOD)}, data(RIGHT_ANSWERS[:1], None))["model"].images == 1


def test_limit_and_no_images() -> None:
    nothing = raw()
    assert (
        TASK.measure({"model": says(*[nothing] * 40)}, data(labels(*[[]] * 40), None), limit=17)["model"].images == 32
    )
    with pytest.raises(DataError, match="made up has no images"):
        TASK.measure({"model": says()}, data(labels(), None))


def test_agreement_and_f1_by_hand() -> None:
    fewer, unsure = raw((LEFT, 0, 0.9)), raw((LEFT, 0, 0.9), (RIGHT, 1, 0.2))
    assert TASK.agreement(GOOD, GOOD) == TASK.agreement(raw(), raw()) == 100
    assert TASK.agreement(GOOD, fewer) == TASK.agreement(unsure, GOOD) == pytest.approx(100 * 2 / 3)
    assert TASK.agreement(raw(), GOOD) == 0
    assert TASK.correct(GOOD, RIGHT_ANSWERS[:1]) == 100
    assert TASK.correct(fewer, RIGHT_ANSWERS[:1]) == pytest.approx(100 * 2 / 3)
    assert TASK.followed(fewer, GOOD, None) == {"agreement": pytest.approx(100 * 2 / 3)}
    assert TASK.followed(fewer, GOOD, RIGHT_ANSWERS[:1])["teacher_f1"] == 100


def test_the_loss_is_zero_at_a_match_alone() -> None:
    expected = trained()(scenes(2)[0]).detach()
    for temperature in (1.0, 2.0):
        assert TASK.loss(expected, expected, temperature).item() == pytest.approx(0, abs=1e-5)
    assert TASK.divergence(expected, expected) >= 0
    for part, step in ((slice(0, 4), 3.0), (slice(4, None), 1.0)):
        other = expected.clone()
        other[..., part] += step
        assert TASK.divergence(other, expected) > 0.05
    output = (expected + torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = TASK.loss(output, expected, 1.0)
    loss.backward()
    assert TASK.divergence(output.detach() - 0.5 * output.grad, expected) < loss.item()


def test_the_loss_by_hand() -> None:
    """One place that is sure of one of two kinds, and a student that has another score there and a box beside it."""
    teacher, student = raw((LEFT, 0, 0.8)), raw(((10.0, 0, 20, 10), 0, 0.5))
    teacher, student = teacher[:, :1], student[:, :1]
    kinds = 0.8 * torch.tensor(0.8 / 0.5).log() + 0.2 * torch.tensor(0.2 / 0.5).log()
    overlap = 0.8 * 1.0  # side by side: no overlap, and nothing between them
    assert TASK.loss(student, teacher, 1.0).item() == pytest.approx(kinds.item() + overlap, abs=1e-4)


def test_places_where_the_teacher_sees_nothing_do_not_count_for_their_boxes() -> None:
    moved = GOOD.clone()
    moved[0, -1, :4] += 1000
    assert TASK.divergence(moved, GOOD) < 1e-2
    moved[0, 0, :4] += 1000
    assert TASK.divergence(moved, GOOD) > 0.5


def test_lists_have_no_loss() -> None:
    one, other = listed((LEFT, 0, 0.9)), listed((LEFT, 1, 0.9))
    assert TASK.loss(one, one, 1.0) is None
    assert (TASK.divergence(one, one), TASK.divergence(one, other)) == (0, 1)
    assert TASK.joined([one, other]) == [*one, *other]
    assert TASK.joined([GOOD, GOOD]).shape == (2, *GOOD.shape[1:])


def test_a_detector_of_somebody_elses_is_followed_and_measured() -> None:
    model = Listing(detector()).eval()
    x, boxes = scenes(5)
    found = ImageData("scenes", TensorDataset(x, boxes), KINDS, held_out=True)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, SIDE, SIDE)}
    assert task_of(model).name == "detect"
    assert Probe(model, found, images=4)(model)["agreement"] == 100
    assert task_of(model).usable(found, model) == (found, None)
    assert TASK.measure({"teacher": model, "castled": model}, found)["castled"].agreement == 100


def test_an_output_that_is_of_no_detector() -> None:
    with pytest.raises(ModelError, match="a detector returns boxes and logits"):
        TASK.measure({"model": lambda images: torch.zeros(len(images), 7)}, data(RIGHT_ANSWERS))


def test_labels_of_other_kinds_are_not_used() -> None:
    model = detector()
    assert TASK.usable(data(RIGHT_ANSWERS, KINDS), model)[1] is None
    found, why = TASK.usable(data(RIGHT_ANSWERS, KINDS + 1), model)
    assert found.classes is None
    assert why == "the boxes have 4 kinds and the model 3, so they can't be compared: agreement with the teacher only"
    assert "no boxes" in TASK.usable(data(RIGHT_ANSWERS, None), model)[1]


class TestParity:
    """Boxes are held to what they are around, logits to what they are."""

    def test_the_task_is_known_by_the_output(self) -> None:
        assert task_of_output("boxes").name == "detect"

    def test_boxes_in_units_of_their_sides(self) -> None:
        """20 pixels wide and 10 high, so of a median of 15 where both sides are as many, 10 by torch's."""
        expected = torch.cat([torch.tensor([[500.0, 500, 520, 510]] * 3), torch.zeros(3, 2)], 1)[None]
        moved = expected.clone()
        moved[0, 0, 0] += 0.005
        found = compare(moved, expected, Tolerance(atol=1e-3), TASK)
        assert found.max_error == pytest.approx(5e-4, rel=1e-2)
        assert found.holds
        assert not compare(moved, expected, Tolerance(atol=1e-4), TASK).holds
        moved = expected.clone()
        moved[0, 0, 5] += 0.005
        assert compare(moved, expected, Tolerance(), TASK).max_error == pytest.approx(0.005)

    def test_noise_is_that_of_the_worse_part(self) -> None:
        """Boxes of 10 pixels all over an image of 1000, each off by one, and logits that are right: a fifth."""
        low = 1000 * torch.rand(1, 500, 2, generator=torch.Generator().manual_seed(0))
        expected = torch.cat([low, low + 10, torch.randn(1, 500, 3)], -1)
        moved = expected.clone()
        moved[..., :4] += 1
        assert noise(moved, expected, TASK) == pytest.approx(0.2, rel=1e-3)
        assert noise(expected, expected, TASK) == 0
        assert compare(moved, expected, Tolerance(noise=0.3), TASK).holds
        assert not compare(moved, expected, Tolerance(noise=0.1), TASK).holds

    def test_what_is_not_finite_does_not_hold(self) -> None:
        for place in (0, 5):
            bad = GOOD.clone()
            bad[0, 0, place] = torch.nan
            for actual, expected in ((bad, GOOD), (GOOD, bad)):
                for tolerance in (Tolerance(1e9), Tolerance(noise=1e9)):
                    assert not compare(actual, expected, tolerance, TASK).holds

    def test_another_number_of_places_does_not_hold(self) -> None:
        assert not compare(GOOD[:, :2], GOOD, Tolerance(1e9), TASK).holds
