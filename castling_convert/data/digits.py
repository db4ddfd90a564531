"""scikit-learn's handwritten digits as a data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..recipe import DataConfig

Transform = Callable[[Image.Image], Tensor]


class Digits(Dataset[tuple[Tensor, int]]):
    """scikit-learn's 1,797 scanned digits, 8x8, ten classes: 1,200 to train on, 597 held out."""

    holds = ("classes",)
    classes = tuple("0123456789")

    def __init__(self, split: str, mode: str, transform: Transform) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        train, held_out = train_test_split(np.arange(len(labels)), train_size=1200, random_state=0, stratify=labels)
        chosen = train if split == "train" else held_out
        pixels = (images[chosen].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
        self.images = [Image.fromarray(image).convert(mode) for image in pixels]
        self.labels = [int(label) for label in labels[chosen]]
        self.transform = transform

    @staticmethod
    def augmentation(asked: DataConfig) -> DataConfig:
        """What was asked for but mirroring: a mirrored digit is another sign."""
        return asked.model_copy(update={"hflip": 0.0})

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]
