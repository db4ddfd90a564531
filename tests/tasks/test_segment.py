"""What is measured of a segmenter, by hand-made logits and by torchmetrics."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchmetrics.functional.classification import multiclass_jaccard_index

from castling_convert.data.spec import ImageData
from castling_convert.data.targets import IGNORED
from castling_convert.errors import DataError
from castling_convert.tasks import find_task, task_of
from castling_convert.tasks.base import said_lost
from castling_convert.tasks.segment import Segmentation, _overlaps, _shares
from tests.models import tiny

SEGMENT = find_task("segment")


class Pixels(torch.utils.data.Dataset):
    """Images of one channel whose values are the labels, and their masks."""

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.masks[index][None].float(), self.masks[index]


def says(classes: int, of: Any) -> Any:
    """A model that is sure of what `of` makes of the labels."""
    return lambda x: nn.functional.one_hot(of(x[:, 0].long() % IGNORED), classes).movedim(-1, 1).float()


@pytest.fixture
def data() -> ImageData:
    masks = torch.randint(0, 3, (20, 6, 5))
    masks[3, :2] = IGNORED
    return ImageData("made", Pixels(masks), classes=3, held_out=True)


def test_measured(data: ImageData) -> None:
    def wrong(labels: Tensor) -> Tensor:  # every 2 is taken for a 1
        return labels.clamp(max=1)

    found = SEGMENT.measure({"teacher": says(3, lambda x: x), "castled": says(3, wrong)}, data)
    teacher, castled = found["teacher"], found["castled"]
    masks = data.dataset.masks
    ones, twos = int((masks == 1).sum()), int((masks == 2).sum())
    looked_at = int((masks != IGNORED).sum())
    assert (teacher.images, teacher.miou, teacher.pixels, teacher.agreement) == (20, 100, 100, None)
    assert castled.miou == pytest.approx(100 * (1 + ones / (ones + twos) + 0) / 3)
    assert castled.pixels == pytest.approx(100 * (looked_at - twos) / looked_at)
    assert castled.agreement == pytest.approx(100 * (1 - twos / masks.numel()))
    assert SEGMENT.lost(teacher, castled) == pytest.approx(100 - castled.miou)
    assert SEGMENT.account(found)["castled"]["miou"] == castled.miou


def test_the_standard_error_is_that_of_scenes_drawn_again_and_again() -> None:
    """A bootstrap over the scenes, of torchmetrics' own mIoU; and what every scene adds makes up the whole."""
    masks = torch.randint(0, 3, (400, 4, 4))
    masks[:40] = IGNORED
    masks[40:60] = 0  # a scene without a kind
    luck = torch.rand(masks.shape)

    def guess(right: float) -> Tensor:
        return torch.where(luck < right, masks % IGNORED, 2 - masks.clamp(max=2))

    guesses = {"teacher": guess(0.9), "castled": guess(0.6)}
    numbered = ImageData("made", TensorDataset(torch.arange(400.0)[:, None, None, None], masks), 3, held_out=True)
    models = {
        name: lambda x, found=found: nn.functional.one_hot(found[x.flatten().long()], 3).movedim(-1, 1).float()
        for name, found in guesses.items()
    }
    measured = SEGMENT.measure(models, numbered)
    for name, found in guesses.items():
        shares = _shares(_overlaps(found, masks, 3))
        assert shares.mean().item() == pytest.approx(measured[name].miou, rel=1e-5)
    drawn = []
    for _ in range(300):
        again = torch.randint(0, 400, (400,))
        scores = [multiclass_jaccard_index(x[again], masks[again], 3, ignore_index=IGNORED) for x in guesses.values()]
        drawn.append(100 * (scores[0] - scores[1]))
    assert measured["castled"].standard_error == pytest.approx(torch.stack(drawn).std().item(), rel=0.12)
    assert measured["teacher"].standard_error is None
    assert said_lost(2.0, measured["castled"]).startswith("lost 2.00 points on 400 images (give or take")
    assert said_lost(-0.5, measured["castled"]).startswith("gained 0.50 points on 400 images (give or take")
    assert said_lost(-0.001, measured["castled"]).startswith("lost 0.00 points on 400 images")


def test_without_masks(data: ImageData) -> None:
    blank = ImageData("made", data.dataset, classes=None, held_out=True)
    found = SEGMENT.measure({"a": says(3, lambda x: x), "b": says(3, lambda x: 2 - x)}, blank, limit=16)
    assert found["b"].images == 16
    assert found["b"].miou is None
    assert found["b"].pixels is None
    assert SEGMENT.lost(found["a"], found["b"]) == pytest.approx(100 - found["b"].agreement)
    assert SEGMENT.lost_in(blank) == "agreement"
    assert SEGMENT.lost_in(data) == "mIoU"


def test_loss_and_agreement() -> None:
    logits = torch.randn(2, 4, 3, 5)
    assert SEGMENT.loss(logits, logits, 1.0).item() == pytest.approx(0, abs=1e-6)
    other = torch.randn(2, 4, 3, 5)
    p, q = logits.softmax(1), other.softmax(1)
    by_hand = (q * (q.log() - p.log())).sum(1).mean()
    torch.testing.assert_close(SEGMENT.loss(logits, other, 1.0), by_hand)
    assert SEGMENT.divergence(logits, other) == pytest.approx(by_hand.item(), rel=1e-5)
    assert SEGMENT.agreement(logits, other) == pytest.approx(
        100 * (logits.argmax(1) == other.argmax(1)).float().mean().item()
    )
    labels = logits.argmax(1)
    labels[0, 0] = IGNORED
    assert SEGMENT.correct(logits, labels) == 100
    torch.testing.assert_close(SEGMENT.probabilities(logits).sum(1), torch.ones(2, 3, 5))
    found, expected = SEGMENT.reduced(other, labels), SEGMENT.reduced(logits, labels)
    assert SEGMENT.followed(found, expected, None) == {"agreement": SEGMENT.agreement(other, logits)}
    by_hand = {"pixels": SEGMENT.correct(other, labels), "teacher_pixels": 100}
    assert SEGMENT.followed(found, expected, labels) == {"agreement": SEGMENT.agreement(other, logits)} | by_hand


def test_masks_with_nothing_in_them(data: ImageData) -> None:
    """Where nothing is to be looked at no mIoU is known, and of a batch of such images nothing either."""
    nothing = ImageData("made", Pixels(torch.full((3, 6, 5), IGNORED)), classes=3, held_out=True)
    found = SEGMENT.measure({"a": says(3, lambda x: x)}, nothing)
    assert found["a"] == Segmentation(3, miou=None, pixels=None, agreement=None)
    assert SEGMENT.nothing_found(found) == "the labels hold nothing to measure mIoU on: agreement with the teacher only"
    assert SEGMENT.nothing_found(SEGMENT.measure({"a": says(3, lambda x: x)}, data, limit=16)) is None
    classes = torch.zeros(1, 4, 4, dtype=torch.short)
    assert SEGMENT.followed(classes, classes, torch.full((1, 4, 4), IGNORED)) == {"agreement": 100}


def test_a_model_may_have_a_class_of_the_number_of_what_is_ignored() -> None:
    """Between models no pixel is ignored."""
    expected = torch.zeros(1, IGNORED + 1, 2, 2)
    expected[:, IGNORED, 0] = 1
    other = torch.zeros(1, IGNORED + 1, 2, 2)
    other[:, 3, 0, 0] = 1
    assert SEGMENT.agreement(other, expected) == 50
    classes = (SEGMENT.reduced(logits, None) for logits in (other, expected))
    assert SEGMENT.followed(*classes, None) == {"agreement": 50}


def test_labels_that_are_not_the_models(data: ImageData) -> None:
    model = nn.Conv2d(1, 2, 1)
    model.task, model.num_classes = "segment", 2
    opened, why = SEGMENT.usable(data, model)
    assert opened.classes is None
    assert why == "the masks have 3 classes and the model 2, so they can't be compared: agreement with the teacher only"
    model.num_classes = 13
    assert SEGMENT.usable(data, model) == (data, None)  # not every class is in every set


def test_nothing_to_measure(data: ImageData) -> None:
    with pytest.raises(DataError, match="made has no images"):
        SEGMENT.measure({"a": says(3, lambda x: x)}, data.only([]))


def test_whose_task_it_is() -> None:
    classifier = tiny()
    assert task_of(classifier).name == "classify"
    assert task_of(tiny(num_classes=0)).name == "features"
    classifier.task = "segment"
    assert task_of(classifier).name == "segment"


def test_without_torchmetrics() -> None:
    """One line, and nothing of the package needs it before."""
    code = "import sys; sys.modules['torchmetrics'] = None\nfrom castling_convert.tasks.base import metrics\nmetrics()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DataError: to measure this task torchmetrics is needed: pip install castling-convert[dense]" in run.stderr
