from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch

import castling_convert as cc
from castling_convert.dense.boxes import found
from castling_convert.dense.detector import PRIOR, detection_loss
from castling_convert.distillation.loop import distill
from castling_convert.folding import certify
from castling_convert.tasks import task_of
from tests.dense.detectors import KINDS, SIDE, Listing, detector, learn_, scenes, trained
from tests.models import closed_student, images, recipe, shake_


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96)])
def test_a_box_at_every_place_of_the_grid(height: int, width: int) -> None:
    model = detector(img_size=(height, width))
    with torch.no_grad():
        model.distances.weight.zero_()
        model.distances.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).expm1().log())  # of softplus
        output = model(images(2, height, width))
    assert output.shape == (2, height * width // 64, 4 + KINDS)
    # One place after the other in a row, then the next row; strides of 8, and so many of them to each side.
    torch.testing.assert_close(output[0, 0, :4], torch.tensor([4.0 - 8, 4 - 16, 4 + 24, 4 + 32]))
    torch.testing.assert_close(output[1, 1, :4] - output[1, 0, :4], torch.tensor([8.0, 0, 8, 0]))
    below = output[1, width // 8, :4] - output[1, 0, :4]
    torch.testing.assert_close(below, torch.tensor([0.0, 8, 0, 8]))


def test_before_it_is_trained_nothing_is_found() -> None:
    scores = detector()(images(2, SIDE, SIDE))[..., 4:].sigmoid()
    assert scores.mean().item() == pytest.approx(PRIOR, rel=0.2)
    assert all(len(image.scores) == 0 for image in found(detector()(images(2, SIDE, SIDE))))


def test_timm_makes_it_with_maps_of_several_blocks_and_normalised_as_the_backbone() -> None:
    model = detector(out_indices=(0, 1), in_chans=1)
    assert model.num_features == 2 * 64
    assert model(images(1, SIDE, SIDE)[:, :1]).shape == (1, 64, 4 + KINDS)
    assert model.classifier.weight.shape[0] == model.num_classes == KINDS
    assert task_of(model).name == "detect"
    assert tuple(model.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)


def test_maps_of_a_hierarchy_are_put_at_the_size_of_the_first() -> None:
    model = detector(backbone="swin_tiny_patch4_window7_224", **HIERARCHY)
    assert model.stride == 4
    assert model(images(1, SIDE, SIDE)).shape == (1, 16 * 16, 4 + KINDS)


HIERARCHY = {
    "img_size": 64, "patch_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 1), "depth": None,
    "window_size": 4, "out_indices": (0, 1),
}  # fmt: skip


MIDDLES = torch.tensor([(x + 0.5, y + 0.5) for y in range(4) for x in range(4)]) * 4


def perfect(boxes: torch.Tensor, places: dict[int, int]) -> torch.Tensor:
    """An output for the 16 places of MIDDLES: of these places the box with this number, nothing elsewhere."""
    output = torch.cat([torch.rand(16, 2), 5 + torch.rand(16, 2), torch.full((16, 2), -12.0)], 1)
    for place, number in places.items():
        output[place, :4] = boxes[number, :4]
        output[place, 4 + int(boxes[number, 4])] = 12.0
    return output[None]


BOXES = torch.tensor([[0.0, 0, 17, 17, 0], [0, 0, 7, 7, 1], [-1, -1, -1, -1, -1]])
LEARN = {0: 1, 1: 1, 4: 1, 5: 1} | dict.fromkeys((6, 7, 9, 10, 11, 13, 14, 15), 0)
"""Of 4x4 places four lie in the small box, the last of which is one of the nine near the middle of the large one."""


def test_a_place_learns_the_smallest_box_around_it_and_near_its_middle() -> None:
    learned = detection_loss(perfect(BOXES, LEARN), BOXES[None], MIDDLES, stride=4)
    assert learned.item() == pytest.approx(0, abs=1e-3)
    for place in range(16):
        others = {**LEARN, place: 1 - LEARN[place]} if place in LEARN else {**LEARN, place: 0}
        wrong = detection_loss(perfect(BOXES, others), BOXES[None], MIDDLES, stride=4)
        assert wrong.item() > 0.1, place


def test_a_box_in_which_no_place_has_its_middle_is_learned_by_the_next() -> None:
    boxes = torch.tensor([[3.0, 3, 3.5, 5, 1]])
    assert detection_loss(perfect(boxes, {0: 0, 4: 0}), boxes[None], MIDDLES, stride=4).item() < 1e-3


@pytest.mark.parametrize("boxes", [torch.zeros(2, 0, 5), -torch.ones(2, 3, 5)])
def test_images_without_boxes_are_learned_from(boxes: torch.Tensor) -> None:
    model = detector().train()
    loss = model.loss(images(2, SIDE, SIDE), boxes)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.classifier.bias.grad.abs().max() > 0


def test_it_learns_a_handful_of_scenes_by_heart() -> None:
    x, boxes = scenes(8)
    model = trained()
    task = task_of(model)
    with torch.no_grad():
        assert task.correct(model(x), boxes) > 90
        assert task.correct(detector()(x), boxes) == 0
        assert task.correct(model(x), boxes.roll(1, 0)) < 50


def test_a_castled_one_with_open_masks_is_the_teacher_and_folding_is_exact() -> None:
    teacher = copy.deepcopy(trained())
    x, _ = scenes(3)
    with torch.no_grad():
        student = cc.castle(teacher, recipe()).eval()
        torch.testing.assert_close(student(x), teacher(x), rtol=0, atol=1e-4)
    assert len(student.castling.castled) == 2
    model, certificate = certify(closed_student(shake_(teacher)), x)
    assert certificate.holds
    assert task_of(model).name == "detect"


@pytest.mark.parametrize("listing", [False, True])
def test_distilling_lowers_the_error_of_the_layers(tmp_path: Path, listing: bool) -> None:
    """Also of a detector of somebody else's, whose detections nothing is asked of."""
    teacher = copy.deepcopy(trained())
    if listing:
        teacher = Listing(teacher).eval()
    settings = ["distill.steps=24", "distill.batch_size=4", "distill.align.share=0.8", "distill.optimizer.guard=false"]
    run = cc.Recipe.load("castling", settings)
    batches = list(scenes(4)[0].split(4))
    student = cc.castle(teacher, run)
    distill(student, teacher, batches, run, device="cpu", workdir=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["losses"] for line in lines if "losses" in line]
    alone, whole = losses[:19], losses[-1]
    assert alone[-1]["attention"] < 0.9 * alone[0]["attention"]
    assert whole["features"] > 0
    assert ("logits" in whole) is not listing
    model, certificate = certify(student, scenes(2)[0])
    assert certificate.holds
    assert len(found(model(scenes(2)[0]))) == 2


def test_training_a_copy_leaves_the_model_as_it_was() -> None:
    model = detector()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learn_(copy.deepcopy(model), *scenes(2), steps=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
