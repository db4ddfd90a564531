"""Images for distillation and evaluation, from the `--data` spec.

A spec is a folder (class subfolders, or flat and unlabelled), `digits` (scikit-learn's handwritten
digits, shipped with it), `relations` (scenes made here, where the label is a relation), `generated`
(images made here, unlabelled), or a timm dataset name with its root after a colon: `torch/cifar10:ROOT`,
`wds/NAME:ROOT`, `hfds/NAME`.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset

from ..errors import DataError, first_line
from ..files import expanded
from ..recipe import DataConfig
from .digits import Digits
from .folder import ImageFiles, find_images, in_mode
from .generated import GeneratedImages
from .randomness import randomness_of
from .relations import Relations

Split = Literal["train", "validation"]
Transform = Callable[[Image.Image], Tensor]

EMBEDDED: dict[str, Any] = {"digits": Digits, "relations": Relations}
"""Labelled data sets that need no files."""

GENERATED = "generated"
"""The spec of images that are made here and mean nothing."""

TIMM_PREFIXES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
EVAL_BATCH = 64
KEPT_BYTES = 2**28
"""How much of images is kept in memory for as long as a run lasts."""


@dataclass(frozen=True)
class Preprocessing:
    """What the model wants to see: timm's data config with the model's present size and channels."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    @classmethod
    def of(cls, model: nn.Module) -> Preprocessing:
        """From `model.pretrained_cfg` and the size the model was built for.

        Raises:
            DataError: the model takes neither one nor three channels.
        """
        from timm.data import resolve_model_data_config
        from timm.models import get_model_input_config

        config = resolve_model_data_config(model)
        channels, height, width = get_model_input_config(model)["input_size"]
        mean, std = tuple(config["mean"]), tuple(config["std"])
        if channels == 1 and len(mean) == 3:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        if channels not in (1, 3):
            raise DataError(f"images have 1 or 3 channels, this model takes {channels}; pass a loader of tensors")
        return cls(
            (channels, height, width),
            mean,
            std,
            config["interpolation"],
            config["crop_pct"],
            config["crop_mode"],
        )

    def at(self, size: tuple[int, int] | None) -> Preprocessing:
        """For another (H, W); None changes nothing."""
        return self if size is None else replace(self, input_size=(self.input_size[0], *size))

    @property
    def image_mode(self) -> str:
        """PIL's name of the colour mode."""
        return "L" if self.input_size[0] == 1 else "RGB"

    def eval_transform(self) -> Transform:
        from timm.data import create_transform

        return create_transform(
            self.input_size,
            is_training=False,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )

    def train_transform(self, config: DataConfig) -> Transform:
        from timm.data import create_transform

        return create_transform(
            self.input_size,
            is_training=True,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            scale=(config.scale, 1.0),
            hflip=config.hflip,
            color_jitter=None,
        )


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
        seed: of generated images.

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
        return _open_timm(spec, mode, transform, split)
    return _open_folder(expanded(spec), mode, transform, split)


def _open_folder(root: Path, mode: str, transform: Transform, split: Split) -> ImageData:
    if not root.exists():
        raise DataError(f"data folder {root} not found; give a folder of images, digits, relations, or a timm data set")
    if not root.is_dir():
        raise DataError(f"--data {root} is a file; give the folder that holds the images")
    samples, classes = find_images(_split_folder(root, split))
    labelled = "" not in classes  # images lying loose beside class folders belong to no class
    files = ImageFiles(samples, mode, transform, labelled)
    files.check_headers()
    return ImageData(str(root), files, len(classes) if labelled else None, _has_parts(root))


def _split_folder(root: Path, split: Split) -> Path:
    names = ("train", "training") if split == "train" else ("validation", "val", "valid", "test", "eval")
    return next((root / name for name in names if (root / name).is_dir()), root)


def _has_parts(root: Path) -> bool:
    """Whether training and validation have a folder each; one alone lies inside what the other reads."""
    return root not in (_split_folder(root, "train"), _split_folder(root, "validation"))


def _open_timm(spec: str, mode: str, transform: Transform, split: Split) -> ImageData:
    from timm.data import create_dataset

    name, _, root = spec.partition(":")
    root = str(expanded(root)) if root else root
    try:
        with redirect_stdout(io.StringIO()):  # some libraries print their advice
            dataset = create_dataset(name, root=root or None, split=split, input_img_mode=mode, download=False)
    except ImportError as error:
        raise DataError(f"data set {name} needs a package that is not installed: {error}") from None
    except Exception as error:  # noqa: BLE001 - every data set library fails in its own way
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


class Resumable(Sampler[tuple[int, int]]):
    """Draws `start` to `samples`, each with its index: a fresh seeded permutation every epoch.

    A resumed run draws what the interrupted one would have drawn, without reading what it has seen.
    """

    def __init__(self, size: int, samples: int, start: int, seed: int) -> None:
        self.size, self.samples, self.start, self.seed = size, samples, start, seed

    def __len__(self) -> int:
        return max(0, self.samples - self.start)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for draw in range(self.start, self.samples):
            epoch, place = divmod(draw, self.size)
            if place == 0 or draw == self.start:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
            yield draw, int(order[place])


class Draws(Dataset[tuple[Tensor, int]]):
    """A data set by draw and index: how an image is augmented depends on the seed and its draw alone, and neither on
    what was drawn before nor on which process reads it."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int]:
        draw, index = place
        with randomness_of(self.seed, draw):
            return self.dataset[index]


def training_loader(data: ImageData, batch_size: int, steps: int, start: int, seed: int, workers: int) -> Any:
    """A loader of exactly `steps - start` batches of [B, C, H, W] and labels; -1 is no label."""
    # Its own generator: starting the loader must not move the random state that a resumed run restores.
    generator = torch.Generator().manual_seed(seed)
    if data.streamed:
        return DataLoader(data.dataset, batch_size, num_workers=workers, drop_last=True, generator=generator)
    sampler = Resumable(len(data), batch_size * steps, batch_size * start, seed)
    return DataLoader(
        Draws(data.dataset, seed), batch_size, sampler=sampler, num_workers=workers, drop_last=True,
        generator=generator,
    )  # fmt: skip


def eval_loader(data: ImageData, batch_size: int = EVAL_BATCH, workers: int = 0) -> Any:
    """The whole data set in order."""
    generator = torch.Generator()  # its own, so that an evaluation during training changes nothing there
    return DataLoader(data.dataset, batch_size, num_workers=workers, generator=generator)


def some_images(data: ImageData, count: int) -> Tensor:
    """`count` images, [count, C, H, W], spread evenly over the data set (fewer if it is smaller)."""
    return torch.cat([images for images, _ in some_batches(data, count)])


def kept(count: int, preprocessing: Preprocessing) -> int:
    """`count`, or as many images as KEPT_BYTES hold, at least one."""
    return max(1, min(count, KEPT_BYTES // (4 * math.prod(preprocessing.input_size))))


def some_batches(data: ImageData, count: int) -> list[tuple[Tensor, Tensor]]:
    """As `some_images`, in batches of images and labels."""
    if data.streamed:
        batches = itertools.islice(eval_loader(data, min(count, EVAL_BATCH)), math.ceil(count / EVAL_BATCH))
        return [(images, labels) for images, labels in batches]
    indices = np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)
    return [(images, labels) for images, labels in eval_loader(data.only(list(dict.fromkeys(indices.tolist()))))]
