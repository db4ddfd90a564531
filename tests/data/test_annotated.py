"""Folders of scenes: masks and boxes beside images, and what is wrong with some."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from castling_convert.data.loaders import eval_loader, some_batches, some_images, training_loader
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.spec import open_data
from castling_convert.data.targets import crowd
from castling_convert.errors import DataError
from castling_convert.recipe import DataConfig

HEIGHT, WIDTH = 24, 40
"""Of the images."""
MASKS = [[[0, 1], [2, 255]], [[0, 0], [0, 3]]]
"""Of two images, each number a quarter of the image."""
BOXES = [[(7, [4, 6, 10, 12])], [(3, [0, 0, 40, 24]), (9, [20, 12, 100, 100]), (7, [50, 50, 5, 5])]]
"""Of two images: categories and x, y, width, height."""


def opened(root, labels="masks", split="train", size=(HEIGHT, WIDTH), **options):
    preprocessing = Preprocessing((3, *size), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "squash", labels)
    return open_data(str(root), preprocessing, split, **options)


def save_mask(path, quarters) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.kron(np.array(quarters, np.uint8), np.ones((HEIGHT // 2, WIDTH // 2), np.uint8))
    Image.fromarray(mask).save(path)


def save_image(path, grey: int = 0, size=(WIDTH, HEIGHT), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey,) * 3).save(path, **options)


def coco() -> dict:
    images = [{"id": 10 + i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(2)]
    notes = [
        {"id": 1, "image_id": 10 + image, "category_id": category, "bbox": box, "iscrowd": 0}
        for image, boxes in enumerate(BOXES)
        for category, box in boxes
    ]
    notes.append({"id": 2, "image_id": 10, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1})
    categories = [{"id": number, "name": name} for number, name in ((9, "bee"), (3, "cat"), (7, "ant"))]
    return {"images": images, "annotations": notes, "categories": categories}


@pytest.fixture
def scenes(tmp_path):
    """Two images with masks and boxes."""
    for index, quarters in enumerate(MASKS):
        save_image(tmp_path / f"images/{index}.jpg", grey=100 * index)
        save_mask(tmp_path / f"masks/{index}.png", quarters)
    (tmp_path / "instances.json").write_text(json.dumps(coco()))
    return tmp_path


def changed(scenes, key: str, index: int, **values) -> None:
    """instances.json with other values in one entry."""
    data = coco()
    data[key][index] |= values
    (scenes / "instances.json").write_text(json.dumps(data))


def refused(root, labels="masks", **options) -> str:
    with pytest.raises(DataError) as error:
        data = opened(root, labels, **options)
        _ = [data.dataset[index] for index in range(len(data))]
    return str(error.value)


def test_masks(scenes):
    data = opened(scenes)
    assert (len(data), data.classes, data.held_out, data.spec) == (2, 4, False, str(scenes))
    image, mask = data.dataset[0]
    assert (image.shape, mask.shape, mask.dtype) == ((3, HEIGHT, WIDTH), (HEIGHT, WIDTH), torch.int64)
    assert torch.equal(mask, torch.tensor(MASKS[0]).repeat_interleave(12, 0).repeat_interleave(20, 1))
    assert (image == -1).all()


@pytest.mark.parametrize("size", [(12, 40), (48, 20), (7, 99)])
def test_masks_at_another_size(scenes, size):
    """Whatever its sides, an image becomes as large as the model takes, and its mask with it."""
    image, mask = opened(scenes, size=size).dataset[0]
    assert image.shape[1:] == mask.shape == size
    assert mask.unique().tolist() == [0, 1, 2, 255]
    assert (mask[: size[0] // 2, : size[1] // 2] == 0).all()
    assert (mask[-(size[0] // 2) :, -(size[1] // 2) :] == 255).all()


def test_without_instances_the_largest_value_counts(scenes):
    (scenes / "instances.json").unlink()
    assert opened(scenes).classes == 4
    (scenes / "images/1.jpg").unlink()
    assert opened(scenes).classes == 3


@pytest.mark.parametrize("values", [[0, 255], [0, 0]])
def test_masks_of_background_alone(scenes, values):
    (scenes / "instances.json").unlink()
    for index in range(2):
        save_mask(scenes / f"masks/{index}.png", [values, values])
    assert refused(scenes) == (
        f"the masks in {scenes}/masks have no value but 0, the background, and 255, which is ignored: nothing "
        "to tell apart; the kinds of objects are 1 and what follows, up to 254"
    )


def test_masks_with_a_palette(scenes):
    before = opened(scenes).dataset[0][1]
    with Image.open(scenes / "masks/0.png") as mask:
        coloured = mask.convert("L")
    coloured.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    coloured.save(scenes / "masks/0.png")
    with Image.open(scenes / "masks/0.png") as mask:
        assert mask.mode == "P"
    assert torch.equal(opened(scenes).dataset[0][1], before)


def test_images_in_subfolders_have_masks_there(tmp_path):
    save_image(tmp_path / "images/a/0.x.jpg")
    save_mask(tmp_path / "masks/a/0.x.png", MASKS[0])
    assert opened(tmp_path).classes == 3


def test_boxes(scenes):
    data = opened(scenes, "boxes", size=(48, 20))
    assert (len(data), data.classes) == (2, 3)
    image, boxes = data.dataset[0]
    assert (image.shape, boxes.shape, boxes.dtype) == ((3, 48, 20), (3, 5), torch.float32)
    assert boxes.tolist() == [[2, 12, 7, 36, 1], [0, 0, 4.5, 18, crowd(0)], [-1] * 5]


def test_boxes_are_clipped_to_the_image(scenes):
    boxes = opened(scenes, "boxes").dataset[1][1]
    assert boxes.tolist() == [[0, 0, 40, 24, 0], [20, 12, 40, 24, 2], [-1] * 5]


@pytest.mark.parametrize("box", [[5, 5, 0, 4], [5, 5, 4, -3], [-9, 0, 9, 9], [0, 24, 9, 9]])
def test_boxes_of_nothing_are_left_out(scenes, box):
    changed(scenes, "annotations", 0, bbox=box)
    assert opened(scenes, "boxes").dataset[0][1].tolist() == [[0, 0, 9, 9, crowd(0)], [-1] * 5, [-1] * 5]


def test_no_objects_at_all(scenes):
    (scenes / "instances.json").write_text(json.dumps(coco() | {"annotations": []}))
    ((_, boxes),) = eval_loader(opened(scenes, "boxes"))
    assert boxes.shape == (2, 0, 5)


def test_batches(scenes):
    for labels, shape in (("masks", (2, HEIGHT, WIDTH)), ("boxes", (2, 3, 5))):
        data = opened(scenes, labels)
        ((images, found),) = some_batches(data, 2)
        assert found.shape == shape
        assert torch.equal(some_images(data, 2), images)
        assert [batch[1].shape for batch in eval_loader(data, batch_size=1)] == [(1, *shape[1:])] * 2


@pytest.mark.parametrize("labels", ["masks", "boxes"])
def test_nothing_is_trained_on_labels(scenes, labels):
    """Which may be broken then."""
    (scenes / "instances.json").write_text("{")
    shutil.rmtree(scenes / "masks")
    (scenes / "masks").mkdir()
    data = opened(scenes, labels, training=DataConfig())
    ((images, found),) = training_loader(data, 2, 1, start=0, seed=0, workers=0)
    assert (images.shape, found.tolist(), data.classes) == ((2, 3, HEIGHT, WIDTH), [-1, -1], None)


@pytest.mark.parametrize("labels", ["masks", "boxes"])
@pytest.mark.parametrize("place", [".", "images", "train", "train/images"])
def test_images_alone(tmp_path, labels, place):
    save_image(tmp_path / place / "0.png")
    for split in ("train", "validation"):
        data = opened(tmp_path, labels, split)
        assert (data.classes, data.dataset[0][1], len(data), data.held_out) == (None, -1, 1, False)


def test_one_kind_of_labels_says_nothing_of_the_other(scenes):
    shutil.rmtree(scenes / "masks")
    assert (opened(scenes, "masks").classes, opened(scenes, "boxes").classes) == (None, 3)


def test_parts(scenes, tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    shutil.copytree(scenes, root / "train")
    assert [len(opened(root, split=split)) for split in ("train", "validation")] == [2, 2]
    shutil.copytree(scenes, root / "val")
    (root / "val/images/1.jpg").unlink()
    data = opened(root, split="validation")
    assert (len(data), data.held_out, len(opened(root))) == (1, True, 2)


@pytest.mark.parametrize("labels", ["masks", "boxes"])
def test_labels_lie_on_the_image_as_it_is_meant_to_be_seen(scenes, labels):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    save_image(scenes / "images/0.jpg", size=(HEIGHT, WIDTH), exif=exif)
    image, found = opened(scenes, labels).dataset[0]
    assert image.shape == (3, HEIGHT, WIDTH)
    expected = {"masks": [0, 1, 2, 255], "boxes": [crowd(0), -1, 0, 1, 4, 6, 9, 14, 18]}
    assert found.unique().tolist() == expected[labels]
    save_image(scenes / "images/0.jpg", exif=exif)
    assert "is 40x24" in refused(scenes, labels)


def test_classes_are_not_in_masks_and_boxes(scenes):
    assert refused(scenes, "classes") == (
        f"{scenes} holds masks and boxes, which say nothing of classes of images; give --task segment or --task detect "
        f"with a model for it, or the images alone: {scenes}/images"
    )
    assert opened(scenes / "images", "classes").classes is None
    (scenes / "instances.json").unlink()
    assert "holds masks, which say nothing of classes of images; give --task segment with" in refused(scenes, "classes")


def test_classes_are_not_in_a_part_of_masks_either(scenes, tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    shutil.copytree(scenes, root / "train")
    assert refused(root, "classes", split="validation").startswith(f"{root}/train holds masks and boxes, which")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("masks", "pixels; give a folder with images/ and masks/"),
        ("boxes", "objects; give a folder with images/ and i"),
    ],
)
def test_class_folders_hold_neither(tmp_path, labels, words):
    save_image(tmp_path / "ant/0.png")
    save_image(tmp_path / "bee/0.png")
    assert refused(tmp_path, labels).startswith(f"{tmp_path} holds class folders, which say nothing of {words}")


def test_labels_without_a_folder_of_images(scenes):
    shutil.move(scenes / "images/0.jpg", scenes / "0.jpg")
    shutil.rmtree(scenes / "images")
    assert refused(scenes) == f"{scenes} holds masks and boxes but no images/; put their images there"


@pytest.mark.parametrize("labels", ["masks", "boxes"])
def test_timms_sets_hold_neither(tmp_path, labels):
    what = {"masks": "masks/", "boxes": "instances.json"}[labels]
    spec = f"torch/image_folder:{tmp_path}"
    assert refused(spec, labels) == f"of {spec} no {labels} are read; give a folder with images/ and {what}, or scenes"


def test_a_mask_that_is_not_there(scenes):
    (scenes / "masks/1.png").unlink()
    assert refused(scenes) == f"{scenes}/masks/1.png not found: every image in images/ has a mask of its name; add it"


def test_a_mask_of_another_size(scenes):
    Image.new("L", (20, 24)).save(scenes / "masks/1.png")
    with pytest.raises(DataError) as error:
        opened(scenes)
    assert str(error.value) == (f"mask {scenes}/masks/1.png is 20x24 and its image 40x24; make it of the image's size")


@pytest.mark.parametrize("mode", ["RGB", "LA", "I;16", "1"])
def test_a_mask_that_holds_no_indices(scenes, mode):
    Image.new(mode, (WIDTH, HEIGHT)).save(scenes / "masks/0.png")
    words = f"mask {scenes}/masks/0.png can't be read (its mode is {mode}, not L or P); save it as a PNG file of 8-bit"
    assert refused(scenes).startswith(words)


@pytest.mark.parametrize("length", [0, 20, 60])
def test_a_mask_that_is_cut_off(scenes, length):
    noise = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH), np.uint8)
    Image.fromarray(noise).save(scenes / "masks/0.png")
    whole = (scenes / "masks/0.png").read_bytes()
    (scenes / "masks/0.png").write_bytes(whole[:length])
    assert refused(scenes).startswith(f"mask {scenes}/masks/0.png can't be read (")


def test_a_mask_of_a_kind_that_there_is_not(scenes):
    save_mask(scenes / "masks/0.png", [[0, 1], [4, 255]])
    assert refused(scenes) == (
        f"mask {scenes}/masks/0.png has the value 4, and instances.json lists 3 categories; masks hold 0 for the "
        "background, 1 to 3 for these, and 255 for what is ignored"
    )


def test_an_image_that_is_broken(scenes):
    (scenes / "images/0.jpg").write_text("no image")
    assert refused(scenes) == f"{scenes}/images/0.jpg is no image; remove it from the data folder"


@pytest.mark.parametrize("labels", ["masks", "boxes"])
def test_instances_that_are_cut_off(scenes, labels):
    path = scenes / "instances.json"
    path.write_text(path.read_text()[:200])
    message = refused(scenes, labels)
    assert message.startswith(f"{path} can't be read (")
    assert message.endswith("); write it anew, as a COCO file")


@pytest.mark.parametrize("content", ["[]", "{}", '{"categories": 3}', '{"categories": [3]}'])
def test_instances_that_are_none(scenes, content):
    (scenes / "instances.json").write_text(content)
    assert refused(scenes, "boxes").endswith(
        "has no list of categories; it has to be a COCO file, with images, annotations and categories"
    )


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("categories", {"id": "x"}, "has a category whose id is 'x'; correct it"),
        ("categories", {"id": 3}, "lists a category twice; list each once"),
        ("images", {"id": None}, "has an image whose id is None; correct it"),
        ("images", {"id": 11}, "lists the image 1.jpg or its id 11 twice; list each once"),
        ("images", {"file_name": "1.jpg"}, "lists the image 1.jpg or its id 11 twice; list each once"),
        ("images", {"file_name": "2.jpg"}, "lists 2.jpg, which is not in {root}/images; add the file, or take it out"),
        ("images", {"width": 41}, "says that {root}/images/0.jpg is 41x24, and it is 40x24; correct it"),
        ("annotations", {"category_id": 4}, "has an annotation of category 4, which it does not list; correct it"),
        ("annotations", {"image_id": 4}, "has an annotation of image 4, which it does not list; correct it"),
        ("annotations", {"bbox": [1, 2, 3]}, "has an annotation whose bbox is [1, 2, 3], not [x, y, width, height]"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, "has an annotation whose bbox is [1, 2, 3, nan], not"),
        ("annotations", {"bbox": [1, 2, 3, 10**400]}, "has an annotation whose bbox is [1, 2, 3, 1000"),
        ("annotations", {"bbox": None}, "has an annotation whose bbox is None, not [x, y, width, height]; correct it"),
    ],
)
def test_instances_with_an_error(scenes, key, values, words):
    changed(scenes, key, 0, **values)
    assert refused(scenes, "boxes").startswith(f"{scenes}/instances.json {words.format(root=scenes)}")


def test_instances_without_categories(scenes):
    (scenes / "instances.json").write_text(json.dumps(coco() | {"categories": []}))
    assert refused(scenes, "boxes") == f"{scenes}/instances.json lists no categories; list each kind of object"


def test_an_image_that_is_not_listed(scenes):
    save_image(scenes / "images/2.jpg")
    assert refused(scenes, "boxes") == (
        f"{scenes}/images/2.jpg is not listed in {scenes}/instances.json; list it, with or without objects"
    )
