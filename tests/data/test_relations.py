"""The generated set whose label is a relation."""

from __future__ import annotations

import numpy as np
import pytest

from castling_convert.data import relations
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.relations import CELL, SHAPES, SIDE, Relations, scene
from castling_convert.data.spec import open_data

RING = len(SHAPES)


def identity(image):
    return np.asarray(image)


def clean_scene(index: int, monkeypatch) -> tuple[np.ndarray, int]:
    """A scene without its noise."""
    monkeypatch.setattr(relations, "NOISE", 0.0)
    return scene(np.random.default_rng((0, index)))


def objects(image: np.ndarray) -> list[tuple[int, int, int]]:
    """(cell, texture, shape) of every object, recognised by comparing its cell with every drawing."""
    masks, patterns = relations._shapes(), relations._textures()
    found = []
    for cell in range(SIDE * SIDE):
        top, left = (CELL * place for place in divmod(cell, SIDE))
        view = image[top : top + CELL, left : left + CELL]
        for shape, mask in enumerate(masks):
            for texture, pattern in enumerate(patterns):
                if (view == np.where(mask[..., None], pattern, 90.0).astype(np.uint8)).all():
                    found.append((cell, texture, shape))
    return found


@pytest.mark.parametrize("index", range(25))
def test_the_label_is_the_shape_of_the_far_object_with_the_texture_of_the_ring(monkeypatch, index):
    image, label = clean_scene(index, monkeypatch)
    found = objects(image)
    assert len(found) == relations.OBJECTS + 1
    [(ring, texture, _)] = [entry for entry in found if entry[2] == RING]
    [(twin, _, shape)] = [entry for entry in found if entry[1] == texture and entry[2] != RING]
    assert shape == label
    (row, column), (other_row, other_column) = divmod(ring, SIDE), divmod(twin, SIDE)
    assert max(abs(row - other_row), abs(column - other_column)) >= 2
    textures = [entry[1] for entry in found if entry[2] != RING]
    assert len(set(textures)) == len(textures)


def test_scenes_depend_on_part_and_index_alone():
    train, again, held_out = (Relations(part, "RGB", identity) for part in ("train", "train", "validation"))
    assert (len(train), len(held_out)) == (100_000, 2_000)
    assert np.array_equal(train[5][0], again[5][0])
    assert train[5][1] == again[5][1]
    assert not np.array_equal(train[5][0], train[6][0])
    assert not np.array_equal(train[5][0], held_out[5][0])


def test_no_label_is_rare():
    labels = [Relations("validation", "RGB", identity)[index][1] for index in range(400)]
    assert min(np.bincount(labels, minlength=4)) > 70


def test_opened_by_its_name(vit):
    preprocessing = Preprocessing.of(vit())
    data = open_data("relations", preprocessing, "train")
    assert (data.classes, data.held_out, tuple(data.dataset[0][0].shape)) == (4, True, (3, 32, 32))
