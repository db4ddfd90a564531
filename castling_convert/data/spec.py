"""Images for distillation and evaluation, from the `--data` spec.

A spec is a folder (class subfolders, or flat and unlabelled), `digits` (scikit-learn's handwritten
digits, shipped with it), `relations` (scenes made here, where the label is a relation), `generated`
(images made here, unlabelled), or a timm dataset name with its root after a colon: `torch/cifar10:ROOT`,
`wds/NAME:ROOT`, `hfds/NAME`.
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
from .digits import Digits
from .folder import ImageFiles, find_images, in_mode
from .generated import GeneratedImages
from .preprocessing import Preprocessing, Transform
from .relations import Relations

Split = Literal["train", "validation"]


EMBEDDED: dict[str, Any] = {"digits": Digits, "relations": Relations}
"""Labelled data sets that need no files."""
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

    Raises:
        DataError: nothing there, no images, an unreadable image, an unknown timm data set.
    """
    if training is not None and spec in EMBEDDED:
        training = EMBEDDED[spec].augmentation(training)
    transform = preprocessing.train_transform(training) if training is not None else preprocessing.eval_transform()
    mode = preprocessing.image_mode
    if spec in EMBEDDED:
        dataset = EMBEDDED[spec](split, mode, transform)
        return ImageData(spec, dataset, len(dataset.classes), held_out=True)
    if spec == GENERATED:
        size = preprocessing.input_size[1:]
        return ImageData(spec, GeneratedImages(size, mode, transform, seed=seed), None, held_out=False)
    if spec.startswith(TIMM_PREFIXES):
        return _open_timm(spec, mode, transform, split, seed if training is not None else None)
    return _open_folder(expanded(spec), mode, transform, split)


def _open_folder(root: Path, mode: str, transform: Transform, split: Split) -> ImageData:
    if not root.exists():
        raise DataError(f"data folder {root} not found; give a folder of images, digits, relations, or a timm data set")
    if not root.is_dir():
        raise DataError(f"--data {root} is a file; give the folder that holds the images")
    samples, classes = find_images(_split_folder(root, split))
    labelled = "" not in classes  # images lying loose beside class folders belong to no class
    files = ImageFiles(samples, mode, transform, labelled, classes if labelled else ())
    files.check_headers()
    return ImageData(str(root), files, len(classes) if labelled else None, _has_parts(root))


def _split_folder(root: Path, split: Split) -> Path:
    names = ("train", "training") if split == "train" else ("validation", "val", "valid", "test", "eval")
    return next((root / name for name in names if (root / name).is_dir()), root)


def _has_parts(root: Path) -> bool:
    """Whether training and validation have a folder each; one alone lies inside what the other reads."""
    return root not in (_split_folder(root, "train"), _split_folder(root, "validation"))


def _open_timm(spec: str, mode: str, transform: Transform, split: Split, shuffled: int | None) -> ImageData:
    """A stream is `shuffled` by this seed, or in its own order; what can be read by index is shuffled by its reader."""
    from timm.data import create_dataset

    name, _, root = spec.partition(":")
    root = str(expanded(root)) if root else root
    order = {} if shuffled is None else {"is_training": True, "seed": shuffled}
    try:
        with redirect_stdout(io.StringIO()):  # some libraries print their advice
            dataset = create_dataset(name, root=root or None, split=split, input_img_mode=mode, download=False, **order)
    except Exception as error:  # noqa: BLE001 - every data set library fails in its own way
        if isinstance(error, ImportError) or "Please install" in str(error):
            raise DataError(f"data set {name} needs a package that is not installed: {first_line(error)}") from None
        raise DataError(f"timm data set {spec} can't be opened: {first_line(error)}; use NAME:ROOT") from None
    dataset.transform = partial(_in_mode, transform, mode)  # torchvision's sets know no colour mode
    classes = getattr(dataset, "classes", None)
    if not isinstance(dataset, IterableDataset):
        dataset = _Readable(dataset, spec)
    one_folder = name.lower() in ("torch/image_folder", "torch/folder")
    held_out = _has_parts(Path(root)) if one_folder else True
    return ImageData(spec, dataset, len(classes) if classes else None, held_out)


def _in_mode(transform: Transform, mode: str, image: Image.Image) -> Tensor:
    return transform(in_mode(image, mode))


class _Readable(Dataset[tuple[Tensor, int]]):
    """A data set whose broken images are a DataError that names the sample."""

    def __init__(self, dataset: Any, spec: str) -> None:
        self.dataset, self.spec = dataset, spec

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            return self.dataset[index]
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"sample {index} of {self.spec} can't be read ({first_line(error)}); remove it") from None
