"""Images that int8 ranges are taken from."""

from __future__ import annotations

import torch
from torch import Tensor

from ..artifact.options import ExportOptions
from ..artifact.prepare import Deployable
from ..data.loaders import some_images
from ..data.preprocessing import Preprocessing
from ..data.spec import GENERATED, open_data
from ..errors import ExportError

CALIBRATION_IMAGES, FEWEST_IMAGES, LATENCY_IMAGES = 128, 100, 4
RANKED_BY = 8
"""Images that tell which layers int8 hurts most: each layer is run on them."""
TARGET_NOISE = 0.05
"""Noise on the logits, relative to their spread, above which layers are left in float."""
NO_CALIBRATION = (
    "int8 ranges were taken from generated images; give yours with --calibration SPEC for accuracy that holds"
)


def calibration_images(prepared: Deployable, options: ExportOptions) -> Tensor:
    """CALIBRATION_IMAGES of what is asked for, spread evenly, [B, C, H, W]."""
    preprocessing = Preprocessing.of(prepared.model).at(prepared.signature.input_size[1:])
    if options.latency_only:
        return some_images(open_data(GENERATED, preprocessing, "train"), LATENCY_IMAGES)
    data = open_data(options.calibration or GENERATED, preprocessing, "train")
    images = some_images(data, CALIBRATION_IMAGES)
    if len(images) < FEWEST_IMAGES:
        raise ExportError(
            f"--calibration {options.calibration} has {len(images)} images, {FEWEST_IMAGES} are needed; give more"
        )
    return images


def calibration_batches(images: Tensor, options: ExportOptions) -> list[Tensor]:
    """One image each, or batches of the only size that the graph takes; the last is filled up with the first images."""
    size = options.fixed_batch or 1
    missing = -len(images) % size
    return list(torch.cat([images, images.repeat(1 + missing // len(images), 1, 1, 1)[:missing]]).split(size))


def say_search(options: ExportOptions, noise: float) -> None:
    """That layers are looked for, which takes minutes at high resolution."""
    if options.console is not None:
        options.console.print(
            f"int8 in every layer: noise {noise:.1%} of the outputs' spread, {TARGET_NOISE:.0%} are allowed; "
            "finding the layers to leave in float ..."
        )
