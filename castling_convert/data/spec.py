"""Images for distillation and evaluation, from the `--data` spec.

A spec is a folder (class subfolders, or flat and unlabelled, or images/ with masks/ or instances.json),
`digits` (scikit-learn's handwritten digits, shipped with it), `relations` (scenes made here, where the
label is a relation), `scenes` (made here, with masks and boxes), `generated` (images made here,
unlabelled), or a timm dataset name with its root after a colon: `torch/cifar10:ROOT`, `wds/NAME:ROOT`,
`hfds/NAME`. Which labels are read is the model's matter: see `Preprocessing.labels`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from ..errors import DataError, first_line
from ..files import expanded
from ..recipe import DataConfig
from .annotated import IMAGES, open_scenes, refuse_scenes
from .digits import Digits
from .folder import ImageFiles, find_images, in_mode
from .generated import TO_COMPARE_ON, TO_LEARN_FROM, GeneratedImages
from .preprocessing import Labels, Preprocessing, Transform
from .relations import Relations
from .scenes import Scenes

Split = Literal["train", "validation"]


EMBEDDED: dict[str, Any] = {"digits": Digits, "relations": Relations, "scenes": Scenes}
"""Labelled data sets that need no files. Of which kinds their labels are stands in `holds`."""
GENERATED = "generated"
"""The spec of images that are made here and mean nothing."""


TIMM_PREFIXES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")


@dataclass(frozen=True)
class ImageData:
    """A data set with what is known of it. `classes` is None when it has no labels; `held_out` says
    whether its validation part holds other images than its training part."""

    spec: str
    dataset: Any
    classes: int | None
    held_out: bool

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def streamed(self) -> bool:
        return isinstance(self.dataset, IterableDataset)

    def only(self, indices: Sequence[int]) -> ImageData:
        """The images with these indices."""
        return replace(self, dataset=Subset(self.dataset, indices))


def open_data(
    spec: str, preprocessing: Preprocessing, split: Split, training: DataConfig | None = None, seed: int = 0
) -> ImageData:
    """Open `spec` with the transforms for `preprocessing`.

    Args:
        split: which part, where the data set has parts; a folder without `train` and `val` subfolders
            is used whole.
        training: augment as this section of the recipe says; None gives the evaluation transform.
        seed: of generated images, and of the order in which a stream is trained on.

    An item is an image and its class. For a model that wants masks or boxes it is an image and a mask, [H, W] in int64,
    or boxes, [M, 5] in float32; see `annotated`. Those are never trained on: with `training` they are -1.

    Raises:
        DataError: nothing there, no images, an unreadable image, an unknown timm data set, labels of another task.
    """
    if spec in EMBEDDED:
        return _open_embedded(spec, preprocessing, split, training)
    transform = preprocessing.train_transform(training) if training is not None else preprocessing.eval_transform()
    mode = preprocessing.image_mode
    if spec == GENERATED:
        size = preprocessing.input_size[1:]
        count = TO_LEARN_FROM if split == "train" else TO_COMPARE_ON
        return ImageData(spec, GeneratedImages(size, mode, transform, count, seed), None, held_out=False)
    if spec.startswith(TIMM_PREFIXES):
        if preprocessing.labels != "classes":
            raise DataError(f"of {spec} no {preprocessing.labels} are read; give {_WITH[preprocessing.labels]}")
        return _open_timm(spec, mode, transform, split, seed if training is not None else None)
    return _open_folder(expanded(spec), preprocessing, transform, split, labelled=training is None)


_WITH: dict[Labels, str] = {
    "classes": "a folder with a subfolder for each class, or digits or relations",
    "masks": "a folder with images/ and masks/, or scenes",
    "boxes": "a folder with images/ and instances.json, or scenes",
}
"""What has such labels."""


def _open_embedded(spec: str, preprocessing: Preprocessing, split: Split, training: DataConfig | None) -> ImageData:
    made, labels, mode = EMBEDDED[spec], preprocessing.labels, preprocessing.image_mode
    if labels not in made.holds:
        raise DataError(f"{spec} has {' and '.join(made.holds)}, no {labels}; give {_WITH[labels]}")
    asked = made.augmentation(training) if training is not None else None
    transform = preprocessing.train_transform(asked) if asked is not None else preprocessing.eval_transform()
    if labels == "classes":
        dataset = made(split, mode, transform)
    else:
        dataset = made(split, mode, transform, labels if training is None else None, preprocessing.input_size[1:])
    return ImageData(spec, dataset, len(dataset.classes) or None, held_out=True)


def _open_folder(
    root: Path, preprocessing: Preprocessing, transform: Transform, split: Split, labelled: bool
) -> ImageData:
    """`labelled` says whether masks and boxes are read."""
    if not root.exists():
        raise DataError(
            f"data folder {root} not found; give a folder of images, digits, relations, scenes, or a timm data set"
        )
    if not root.is_dir():
        raise DataError(f"--data {root} is a file; give the folder that holds the images")
    labels, mode = preprocessing.labels, preprocessing.image_mode
    if labels != "classes":
        size, folder = preprocessing.input_size[1:], _scenes_folder(root, split)
        scenes, number = open_scenes(folder, labels, mode, transform, size, labelled)
        return ImageData(str(root), scenes, number, _has_parts(root))
    refuse_scenes(_scenes_folder(root, split))
    samples, classes = find_images(_split_folder(root, split))
    named = "" not in classes  # images lying loose beside class folders belong to no class
    files = ImageFiles(samples, mode, transform, named, classes if named else ())
    files.check_headers()
    return ImageData(str(root), files, len(classes) if named else None, _has_parts(root))


def _split_folder(root: Path, split: Split) -> Path:
    names = ("train", "training") if split == "train" else ("validation", "val", "valid", "test", "eval")
    return next((root / name for name in names if (root / name).is_dir()), root)


def _scenes_folder(root: Path, split: Split) -> Path:
    """As `_split_folder`; without a folder of its own and without root/images, the folder of the other part."""
    folder = _split_folder(root, split)
    if folder != root or (root / IMAGES).is_dir():
        return folder
    return _split_folder(root, "validation" if split == "train" else "train")


def _has_parts(root: Path) -> bool:
    """Whether training and validation have a folder each; one alone lies inside what the other reads."""
    return root not in (_split_folder(root, "train"), _split_folder(root, "validation"))


def _open_timm(spec: str, mode: str, transform: Transform, split: Split, shuffled: int | None) -> ImageData:
    """A stream is `shuffled` by this seed, or in its own order; what can be read by index is shuffled by its reader."""
    from timm.data import create_dataset

    name, _, root = spec.partition(":")
    root = str(expanded(root)) if root else root
    one_folder = name.lower() in ("torch/image_folder", "torch/folder")
    held_out = _has_parts(Path(root)) if one_folder else True
    if one_folder and root:
        root = str(_split_folder(Path(root), split))  # timm does not take `test` for one
    order = {} if shuffled is None else {"is_training": True, "seed": shuffled}
    try:
        with redirect_stdout(io.StringIO()):  # some libraries print their advice
            dataset = create_dataset(name, root=root or None, split=split, input_img_mode=mode, download=False, **order)
    except Exception as error:  # noqa: BLE001 - every data set library fails in its own way
        if isinstance(error, ImportError) or "Please install" in str(error):
            raise DataError(f"data set {name} needs a package that is not installed: {first_line(error)}") from None
        raise DataError(f"timm data set {spec} can't be opened: {first_line(error)}; use NAME:ROOT") from None
    dataset.transform = partial(_in_mode, transform, mode)  # torchvision's sets know no colour mode
    reader = getattr(dataset, "reader", None)
    classes = getattr(dataset, "classes", None) or getattr(reader, "class_to_idx", None)
    if not isinstance(dataset, IterableDataset):
        dataset = _Readable(dataset, spec)
    return ImageData(spec, dataset, len(classes) if classes else None, held_out)


def _in_mode(transform: Transform, mode: str, image: Image.Image) -> Tensor:
    return transform(in_mode(image, mode))


class _Readable(Dataset[tuple[Tensor, int]]):
    """A data set whose broken images are a DataError that names the sample. timm would take the next one for it."""

    def __init__(self, dataset: Any, spec: str) -> None:
        self.dataset, self.spec = dataset, spec
        if hasattr(dataset, "_max_retries"):
            dataset._max_retries = 1

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            return self.dataset[index]
        except (OSError, UnidentifiedImageError, RuntimeError) as error:
            raise DataError(f"sample {index} of {self.spec} can't be read ({first_line(error)}); remove it") from None
        except KeyError as error:
            raise DataError(
                f"sample {index} of {self.spec} has no field {error}; give its images as a folder"
            ) from None
