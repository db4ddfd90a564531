"""The generated set with masks and boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from castling_convert.data import scenes
from castling_convert.data.loaders import some_batches, training_loader
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.scenes import KINDS, SIZE, scene
from castling_convert.data.spec import open_data
from castling_convert.errors import DataError
from castling_convert.recipe import DataConfig


def opened(labels, split="train", size=(SIZE, SIZE), channels=3, **options):
    half = (0.5,) * channels
    preprocessing = Preprocessing((channels, *size), half, half, "bicubic", 1.0, "squash", labels)
    return open_data("scenes", preprocessing, split, **options)


def drawn(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return scene(np.random.default_rng((0, index)))


def test_scenes_depend_on_part_and_index_alone():
    train, again, held_out = opened("masks"), opened("masks"), opened("masks", "validation")
    assert (len(train), len(held_out), train.classes, train.held_out) == (20_000, 200, 5, True)
    assert all(torch.equal(*pair) for pair in zip(train.dataset[5], again.dataset[5], strict=True))
    assert not torch.equal(train.dataset[5][0], train.dataset[6][0])


def test_no_part_shares_a_scene_with_another():
    seen = [{scene(np.random.default_rng((part, index)))[0].tobytes() for index in range(50)} for part in (0, 1)]
    assert len(seen[0] | seen[1]) == 100
    image = opened("boxes", "validation").dataset[3][0]
    expected = torch.from_numpy(scene(np.random.default_rng((1, 3)))[0]).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)


def test_every_kind_and_every_number_of_objects_is_frequent():
    found = [drawn(index)[2] for index in range(300)]
    assert min(np.bincount([len(boxes) for boxes in found])[1:]) > 60
    assert min(np.bincount(np.concatenate(found)[:, 4].astype(int), minlength=4)) > 100


@pytest.mark.parametrize("index", range(40))
def test_boxes_are_the_frames_of_the_objects(index):
    """What is seen of each lies in its box, and where nothing covers it, fills the box."""
    pixels, mask, boxes = drawn(index)
    assert (pixels.shape, mask.shape, boxes.shape[1]) == ((SIZE, SIZE, 3), (SIZE, SIZE), 5)
    assert boxes[:, :4].min() >= 0
    assert boxes[:, :4].max() <= SIZE
    inside = np.zeros((SIZE, SIZE), bool)
    for number, (x1, y1, x2, y2, kind) in enumerate(boxes.astype(int)):
        assert 15 <= max(x2 - x1, y2 - y1) <= scenes.LARGEST
        inside[y1:y2, x1:x2] = True
        others = [other for place, other in enumerate(boxes) if place != number]
        if all(x2 <= other[0] or other[2] <= x1 or y2 <= other[1] or other[3] <= y1 for other in others):
            frame = mask[y1:y2, x1:x2]
            rows, columns = np.nonzero(frame == kind + 1)
            assert set(np.unique(frame)) <= {0, kind + 1}
            assert (rows.min(), columns.min()) == (0, 0)
            assert (rows.max() + 1, columns.max() + 1) == frame.shape
    assert not mask[~inside].any()


def test_no_object_is_covered_by_more_than_half(monkeypatch):
    """As many are seen in masks as in boxes; with COVERED at one, some would be hidden."""

    def least_seen() -> float:
        shares = []
        for index in range(150):
            _, mask, boxes = drawn(index)
            if len(np.unique(boxes[:, 4])) == len(boxes):  # then a kind is an object
                for x1, y1, x2, y2, kind in boxes.astype(int):
                    fewest = {"disc": 0.78, "square": 1.0, "triangle": 0.45, "ring": 0.54}[KINDS[kind]]  # of its frame
                    shares.append((mask == kind + 1).sum() / ((x2 - x1) * (y2 - y1)) / fewest)
        return min(shares)

    assert least_seen() > 0.48
    monkeypatch.setattr(scenes, "COVERED", 1.0)
    assert least_seen() < 0.4


def test_an_object_stands_out_from_what_it_covers():
    rng = np.random.default_rng(0)
    for covered in rng.uniform(0, 255, (50, 3)):
        assert np.linalg.norm(scenes._colour(rng, covered) - covered) > scenes.CONTRAST


def test_masks_and_boxes_at_the_size_of_the_model():
    """Half as high, twice as wide."""
    _, mask, boxes = drawn(2)
    image, half = opened("masks", size=(48, 192)).dataset[2]
    assert (image.shape, half.shape, half.dtype) == ((3, 48, 192), (48, 192), torch.int64)
    assert np.array_equal(half.numpy(), np.repeat(mask[1::2], 2, axis=1))
    _, scaled = opened("boxes", size=(48, 192)).dataset[2]
    assert (scaled.shape, scaled.dtype) == ((scenes.OBJECTS, 5), torch.float32)
    expected = torch.from_numpy(boxes * [2, 0.5, 2, 0.5, 1]).float()
    assert torch.equal(scaled[: len(boxes)], expected)
    assert (scaled[len(boxes) :] == -1).all()


def test_a_grayscale_model_gets_grey_scenes():
    assert opened("boxes", channels=1).dataset[0][0].shape == (1, SIZE, SIZE)


def test_batches_of_labels():
    for labels, shape in (("masks", (7, 32, 48)), ("boxes", (7, 3, 5))):
        data = opened(labels, "validation", size=(32, 48))
        ((images, found),) = some_batches(data, 7)
        assert (images.shape, found.shape) == ((7, 3, 32, 48), shape)
        assert data.classes == {"masks": 5, "boxes": 4}[labels]


def test_nothing_is_trained_on_labels():
    data = opened("masks", training=DataConfig(), size=(32, 32))
    (batch,) = training_loader(data, 4, 1, start=0, seed=0, workers=0)
    assert (batch[0].shape, batch[1].tolist(), data.classes) == ((4, 3, 32, 32), [-1] * 4, None)


def test_scenes_have_no_classes():
    with pytest.raises(DataError) as refused:
        opened("classes")
    assert str(refused.value) == (
        "scenes has masks and boxes, no classes; give a folder with a subfolder for each class, or digits or relations"
    )


@pytest.mark.parametrize("spec", ["digits", "relations"])
def test_sets_of_classes_have_no_masks(spec):
    preprocessing = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "squash", "masks")
    with pytest.raises(DataError) as refused:
        open_data(spec, preprocessing, "train", training=DataConfig())
    assert str(refused.value) == (f"{spec} has classes, no masks; give a folder with images/ and masks/, or scenes")
