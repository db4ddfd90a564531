"""Scenes in a folder: images/ and, beside it, masks/ (a label for every pixel) or instances.json (boxes, as COCO has
them).

A mask has the name of its image and is a PNG file of indices: 0 is background, then come the kinds, 255 is ignored.
Masks and boxes lie on the image as it is meant to be seen, turned as its EXIF data says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError, first_line
from .folder import HEADERS_CHECKED, ImageFiles, find_images, opened
from .preprocessing import Labels
from .targets import IGNORED, boxes_at, crowd, mask_at

IMAGES, MASKS, INSTANCES = "images", "masks", "instances.json"
LIES_IN: dict[Labels, str] = {"masks": f"{MASKS}/", "boxes": INSTANCES}
SAYS_NOTHING_OF: dict[Labels, str] = {"masks": "pixels", "boxes": "objects"}
TASKS: dict[Labels, str] = {"masks": "--task segment", "boxes": "--task detect"}
FARTHEST = 1e9
"""Pixels; what is farther away is no place in an image."""


def open_scenes(
    folder: Path,
    labels: Labels,
    mode: str,
    transform: Callable[[Image.Image], Tensor],
    size: tuple[int, int],
    labelled: bool,
) -> tuple[Any, int | None]:
    """The images of a folder with their masks or boxes at `size`, and the number of classes, of which the background
    of masks is one. Without labels, or where they are not `labelled`, images with -1 and None.

    Raises:
        DataError: class folders, labels that are broken, missing, or not those of these images.
    """
    images = ImageFiles(_images(folder, labels), mode, transform, labelled=False)
    images.check_headers()
    notes = folder / INSTANCES
    if labelled and labels == "masks" and (folder / MASKS).is_dir():
        kinds = len(_categories(_read(notes), notes)) if notes.is_file() else None
        masked = MaskedImages(images, folder, size, kinds)
        return masked, masked.classes
    if labelled and labels == "boxes" and notes.is_file():
        boxed = BoxedImages(images, folder, size)
        return boxed, boxed.classes
    return images, None


def refuse_scenes(folder: Path) -> None:
    """Raise DataError where a folder, of which classes are wanted, holds masks or boxes."""
    there = [labels for labels in _labels_in(folder) if (folder / IMAGES).is_dir()]
    if there:
        raise DataError(
            f"{folder} holds {' and '.join(there)}, which say nothing of classes of images; give "
            f"{' or '.join(TASKS[labels] for labels in there)} with a model for it, or the images alone: "
            f"{folder / IMAGES}"
        )


def _labels_in(folder: Path) -> list[Labels]:
    there: dict[Labels, bool] = {"masks": (folder / MASKS).is_dir(), "boxes": (folder / INSTANCES).is_file()}
    return [labels for labels, is_there in there.items() if is_there]


def _images(folder: Path, labels: Labels) -> list[tuple[str, int]]:
    """Of images/ where there is one, else of the folder itself."""
    if (folder / IMAGES).is_dir():
        return find_images(folder / IMAGES)[0]
    if _labels_in(folder):
        raise DataError(f"{folder} holds {' and '.join(_labels_in(folder))} but no images/; put their images there")
    samples, classes = find_images(folder)
    if "" not in classes:
        raise DataError(
            f"{folder} holds class folders, which say nothing of {SAYS_NOTHING_OF[labels]}; give a folder with images/ "
            f"and {LIES_IN[labels]}, or one of images alone"
        )
    return samples


class MaskedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images, each with its mask, [H, W] in int64. `kinds` are those that masks may name beside the background; None
    reads all masks for the largest.

    Raises:
        DataError: a mask is missing, unreadable, of another size than its image, or names a kind that there is not;
            no mask names a kind.
    """

    def __init__(self, images: ImageFiles, folder: Path, size: tuple[int, int], kinds: int | None) -> None:
        self.images, self.size, self.kinds = images, size, kinds
        self.masks = [folder / MASKS / f"{Path(name).with_suffix('')}.png" for name in _names(images, folder)]
        self._check()
        self.classes = 1 + (kinds if kinds is not None else max(_largest(_mask(path)) for path in self.masks))
        if self.classes == 1:
            raise DataError(
                f"the masks in {folder / MASKS} have no value but 0, the background, and {IGNORED}, which is ignored: "
                f"nothing to tell apart; the kinds of objects are 1 and what follows, up to {IGNORED - 1}"
            )

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.masks[index]
        pixels, mask = self.images.read(index), _mask(path)
        _same_size(path, (mask.shape[1], mask.shape[0]), pixels.size)
        if self.kinds is not None and _largest(mask) > self.kinds:
            raise DataError(
                f"mask {path} has the value {_largest(mask)}, and {INSTANCES} lists {self.kinds} categories; masks "
                f"hold 0 for the background, 1 to {self.kinds} for these, and {IGNORED} for what is ignored"
            )
        return self.images.transform(pixels), mask_at(mask, self.size)

    def _check(self) -> None:
        """That every mask is there, and the headers of as many as of images."""
        for path in self.masks:
            if not path.is_file():
                raise DataError(f"{path} not found: every image in {IMAGES}/ has a mask of its name; add it")
        if len(self.masks) <= HEADERS_CHECKED:
            for index, path in enumerate(self.masks):
                size = _mask_size(path)
                _same_size(path, size, self.images.seen_size(index, size))


def _names(images: ImageFiles, folder: Path) -> list[str]:
    """Of the files, below images/."""
    return [Path(path).relative_to(folder / IMAGES).as_posix() for path, _ in images.samples]


def _mask(path: Path) -> np.ndarray:
    """Its indices, [h, w] in uint8."""
    try:
        with opened(str(path)) as image:
            _is_mask(image)
            return np.array(image)
    except Exception as error:  # noqa: BLE001 - every format of PIL fails in its own way
        raise _broken_mask(path, error) from None


def _mask_size(path: Path) -> tuple[int, int]:
    """(width, height), from the header."""
    try:
        with opened(str(path)) as image:
            _is_mask(image)
            return image.size
    except Exception as error:  # noqa: BLE001 - the same
        raise _broken_mask(path, error) from None


def _is_mask(image: Image.Image) -> None:
    if image.mode not in ("L", "P"):
        raise DataError(f"its mode is {image.mode}, not L or P")


def _broken_mask(path: Path, error: Exception) -> DataError:
    return DataError(f"mask {path} can't be read ({first_line(error)}); save it as a PNG file of 8-bit indices")


def _largest(mask: np.ndarray) -> int:
    """Of its labels."""
    return int(np.where(mask == IGNORED, 0, mask).max())


def _same_size(mask: Path, found: tuple[int, int], seen: tuple[int, int]) -> None:
    if found != seen:
        raise DataError(f"mask {mask} is {_by(found)} and its image {_by(seen)}; make it of the image's size")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


class BoxedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images, each with its boxes, [M, 5] in float32: x1, y1, x2, y2 in pixels of what the model takes, and the index
    of the kind, in the order of the categories' ids; of a crowd `crowd` of it. M is the most that instances.json lists
    for one image; the rows behind an image's last box are -1.

    Raises:
        DataError: instances.json is broken or doesn't list exactly the images that are there.
    """

    def __init__(self, images: ImageFiles, folder: Path, size: tuple[int, int]) -> None:
        path = folder / INSTANCES
        scenes, self.classes = read_instances(path)
        names = _names(images, folder)
        for name in sorted(scenes.keys() - set(names)):
            raise DataError(f"{path} lists {name}, which is not in {folder / IMAGES}; add the file, or take it out")
        for name in names:
            if name not in scenes:
                raise DataError(f"{folder / IMAGES / name} is not listed in {path}; list it, with or without objects")
        self.images, self.size, self.path = images, size, path
        self.scenes = [scenes[name] for name in names]
        self.rows = max(len(scene.boxes) for scene in self.scenes)
        if len(self.scenes) <= HEADERS_CHECKED:
            for index, scene in enumerate(self.scenes):
                if scene.size is not None:
                    self._same_size(index, scene.size, images.seen_size(index, scene.size))

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene, pixels = self.scenes[index], self.images.read(index)
        if scene.size is not None:
            self._same_size(index, scene.size, pixels.size)
        boxes = boxes_at(scene.boxes, (pixels.height, pixels.width), self.size, self.rows)
        return self.images.transform(pixels), boxes

    def _same_size(self, index: int, said: tuple[int, int], seen: tuple[int, int]) -> None:
        if said != seen:
            image = self.images.samples[index][0]
            raise DataError(f"{self.path} says that {image} is {_by(said)}, and it is {_by(seen)}; correct it")


@dataclass(frozen=True)
class Scene:
    """What is listed of an image: (width, height) where that is said, and boxes, [n, 5] with x1, y1, x2, y2 in its
    pixels and the index of the kind."""

    size: tuple[int, int] | None
    boxes: np.ndarray


def read_instances(path: Path) -> tuple[dict[str, Scene], int]:
    """What a COCO file lists, by the names of the images, and its number of categories.

    Raises:
        DataError: it is no whole JSON file, or no COCO file; an annotation of a category or of an image that it does
            not list; a box that is none.
    """
    data = _read(path)
    kinds = {category: kind for kind, category in enumerate(_categories(data, path))}
    names: dict[Any, str] = {}
    sizes: dict[str, tuple[int, int] | None] = {}
    for entry in _entries(data, "images", path):
        name = PurePosixPath(_value(entry, "file_name", str, "an image", path)).as_posix()
        image = _value(entry, "id", (int, str), "an image", path)
        if name in sizes or image in names:
            raise DataError(f"{path} lists the image {name} or its id {image} twice; list each once")
        names[image] = name
        sizes[name] = (entry["width"], entry["height"]) if {"width", "height"} <= entry.keys() else None
    boxes: dict[str, list[list[float]]] = {name: [] for name in sizes}
    for entry in _entries(data, "annotations", path):
        image = _value(entry, "image_id", (int, str), "an annotation", path)
        category = _value(entry, "category_id", int, "an annotation", path)
        if image not in names:
            raise DataError(f"{path} has an annotation of image {image}, which it does not list; correct it")
        if category not in kinds:
            raise DataError(f"{path} has an annotation of category {category}, which it does not list; correct it")
        kind = kinds[category]
        boxes[names[image]].append([*_corners(entry, path), crowd(kind) if entry.get("iscrowd") else kind])
    scenes = {
        name: Scene(sizes[name], np.array(found, dtype=np.float64).reshape(-1, 5)) for name, found in boxes.items()
    }
    return scenes, len(kinds)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} can't be read ({first_line(error)}); write it anew, as a COCO file") from None


def _categories(data: Any, path: Path) -> list[int]:
    """Their ids, in order."""
    ids = [_value(entry, "id", int, "a category", path) for entry in _entries(data, "categories", path)]
    if not ids:
        raise DataError(f"{path} lists no categories; list each kind of object")
    if len(set(ids)) < len(ids):
        raise DataError(f"{path} lists a category twice; list each once")
    return sorted(ids)


def _entries(data: Any, key: str, path: Path) -> Iterator[dict[str, Any]]:
    entries = data.get(key) if isinstance(data, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(
            f"{path} has no list of {key}; it has to be a COCO file, with images, annotations and categories"
        )
    return iter(entries)


def _value(entry: dict[str, Any], key: str, kind: type | tuple[type, ...], what: str, path: Path) -> Any:
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{path} has {what} whose {key} is {value!r}; correct it")
    return value


def _corners(entry: dict[str, Any], path: Path) -> list[float]:
    """x1, y1, x2, y2 of COCO's x, y, width, height."""
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_length(number) for number in box):
        raise DataError(f"{path} has an annotation whose bbox is {box!r}, not [x, y, width, height]; correct it")
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _is_length(number: Any) -> bool:
    """Whether it is a number, and not one of those that only fill a field."""
    return isinstance(number, int | float) and -FARTHEST < number < FARTHEST
