"""Images in a folder, in class subfolders or flat: found once each, and read as they are meant to be seen."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError, first_line

TYPES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF")
"""PIL's names of them, whatever a file is called: PIL has readers of other formats that start other programs."""
LARGEST = 2**27
"""Pixels of an image; in colour as many are 400 MB."""
# Up to this many files are opened before a run starts, so that a broken one can't end it halfway.
HEADERS_CHECKED = 20_000


def find_images(root: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """Every image below `root` with the index of its class, and the classes: the names of the folders that hold images.

    The order is that of timm's folder reader. Links to folders are followed, but not into a folder that is above them.

    Raises:
        DataError: there is none, a folder can't be read, or something with an image's name is no file.
    """
    from timm.utils.misc import natural_key

    try:
        paths = list(_walk(root, ()))
    except OSError as error:
        raise DataError(f"{error.filename} can't be read: {error.strerror}") from None
    if not paths:
        names = ", ".join(name[1:] for name in TYPES)
        raise DataError(f"no images in {root}; {names} files are looked for, in subfolders too")
    folders = [path.parent.name if path.parent != root else "" for path in paths]
    classes = sorted(set(folders), key=natural_key)
    places = {name: place for place, name in enumerate(classes)}
    samples = [(str(path), places[folder]) for path, folder in zip(paths, folders, strict=True)]
    return sorted(samples, key=lambda sample: natural_key(sample[0])), classes


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = folder / entry.name
        if entry.is_dir():
            yield from _walk(path, (*above, here))
        elif path.suffix.lower() in TYPES:
            if not entry.is_file():  # a pipe would be waited for
                raise DataError(f"{path} is no file that can be read; remove it from the data folder")
            yield path


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """The images of a folder; an unreadable one is an error that names it, never skipped."""

    def __init__(
        self,
        samples: list[tuple[str, int]],
        mode: str,
        transform: Callable[[Image.Image], Tensor],
        labelled: bool,
        classes: Sequence[str] = (),
    ) -> None:
        self.samples = samples
        self.classes = classes
        self.mode = mode
        self.transform = transform
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = self.samples[index][1]
        return self.transform(self.read(index)), label if self.labelled else -1

    def read(self, index: int) -> Image.Image:
        """The image as it is meant to be seen, before the transform."""
        path = self.samples[index][0]
        try:
            with opened(path) as image:
                return in_mode(image, self.mode)
        except Exception as error:  # noqa: BLE001 - every format of PIL fails in its own way
            raise _unreadable(path, error) from None

    def seen_size(self, index: int, expected: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the image as it is meant to be seen, from its header.

        Of some files only the end says that they are turned; it is read where the size is not the `expected` one.
        """
        path = self.samples[index][0]
        try:
            with opened(path) as image:
                if image.size == expected and "exif" not in image.info:
                    return image.size
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                return (image.height, image.width) if turned else image.size
        except Exception as error:  # noqa: BLE001 - the same
            raise _unreadable(path, error) from None

    def check_headers(self) -> None:
        """Raise DataError for the first file that is no image; large folders are checked as they are read."""
        if len(self.samples) > HEADERS_CHECKED:
            return
        for path, _ in self.samples:
            try:
                with opened(path):
                    continue
            except Exception as error:  # noqa: BLE001 - the same
                raise _unreadable(path, error) from None


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """An image file, read as far as its header; what PIL warns of on the way is nobody's concern.

    Raises:
        DataError: it is larger than LARGEST. Others: PIL's, of all kinds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise DataError(f"{image.width}x{image.height} are more than {LARGEST:,} pixels; make it smaller")
            yield image


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """In PIL's colour mode `mode`, turned as its EXIF data says, 16 bits scaled to 8.

    Raises:
        DataError: it holds numbers of 32 bits, and nothing says which of them is white.
    """
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")  # which has no more
    image = ImageOps.exif_transpose(image)
    if sixteen:
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError("32 bits a pixel, and nothing says which number is white; save it with 8 or 16")
    return image.convert(mode)


def _unreadable(path: str, error: Exception) -> DataError:
    what = "is no image" if isinstance(error, UnidentifiedImageError) else f"can't be read ({first_line(error)})"
    return DataError(f"{path} {what}; remove it from the data folder")
