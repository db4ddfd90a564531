"""What a model wants to see of an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image
from torch import Tensor, nn

from ..errors import DataError
from ..recipe import DataConfig

Transform = Callable[[Image.Image], Tensor]
Labels = Literal["classes", "masks", "boxes"]
LABELS: dict[str, Labels] = {"segment": "masks", "detect": "boxes"}
"""Of an image, by the `task` that a model says it is for; classes where it says none."""


@dataclass(frozen=True)
class Preprocessing:
    """What the model wants to see: timm's data config with the model's present size and channels.

    `labels` is what stands beside an image. Where it is not one class, an image that is measured on is not
    cropped: it is resized to the size that the model takes, and so are its masks and boxes.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    labels: Labels = "classes"

    @classmethod
    def of(cls, model: nn.Module) -> Preprocessing:
        """From `model.pretrained_cfg` and the size the model was built for.

        Raises:
            DataError: the model takes neither one nor three channels, or has no `pretrained_cfg`.
        """
        from timm.data import resolve_model_data_config

        from ..families import input_size_of, said_task

        said = getattr(model, "pretrained_cfg", None)
        if not said or said.get("mean", ()) is None:
            raise DataError(
                f"{type(model).__name__} does not say how its images are normalised; pass a loader of tensors, or set "
                "model.pretrained_cfg = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}, with its own values"
            )
        config = resolve_model_data_config(model)
        channels, height, width = input_size_of(model)
        mean, std = tuple(config["mean"]), tuple(config["std"])
        if channels == 1 and len(mean) == 3:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        if channels not in (1, 3):
            raise DataError(f"images have 1 or 3 channels, this model takes {channels}; pass a loader of tensors")
        labels = LABELS.get(said_task(model) or "", "classes")
        whole = labels != "classes"
        return cls(
            input_size=(channels, height, width), mean=mean, std=std, interpolation=config["interpolation"],
            crop_pct=1.0 if whole else config["crop_pct"], crop_mode="squash" if whole else config["crop_mode"],
            labels=labels,
        )  # fmt: skip

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
