"""What goes into an artifact and what comes out of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

DETECTIONS = "detections"
"""The output of a detector with non-maximum suppression in the artifact."""


@dataclass(frozen=True)
class Signature:
    """What goes into an artifact and what comes out of it.

    Attributes:
        input_size: (C, H, W); the best one where the size is dynamic.
        smallest, largest: (H, W) that a dynamic size lies between; empty when it is fixed.
        stride: what H and W are multiples of where they are dynamic.
        input: `images`, float [B, C, H, W] normalised by the model's mean and std; or `pixels`, uint8
            [B, H, W, C] as decoded, when the preprocessing is part of the artifact.
        output: `logits`, or `probabilities` when the softmax is part of it, [B, classes]; `features`, [B, width], of a
            model without classes; `boxes`, [B, N, 4 + kinds], or `detections`, [M, 7], of a detector.
        dtype: of a float input and of the output.
        mean, std: for one channel each, of pixels in 0..1.
    """

    input_size: tuple[int, int, int]
    input: str = "images"
    output: str = "logits"
    dtype: str = "float32"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    smallest: tuple[int, ...] = ()
    largest: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    def shape(self, size: tuple[int, ...] | None = None) -> tuple[int, int, int]:
        """Of one image of `size` (H, W), `input_size` when left out, as the artifact takes it."""
        channels, (height, width) = self.input_size[0], size or self.input_size[1:]
        return (height, width, channels) if self.input == "pixels" else (channels, height, width)

    @property
    def spatial(self) -> tuple[int, int]:
        """Which axes of the input [B, ...] are height and width."""
        return (1, 2) if self.input == "pixels" else (2, 3)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether images of `shape` [...] without the batch can be given."""
        if not self.stride or len(shape) != 3:
            return shape == self.shape()
        height, width = (shape[axis - 1] for axis in self.spatial)
        sides = zip((height, width), self.smallest, self.largest, self.stride, strict=True)
        inside = all(low <= side <= high and side % stride == 0 for side, low, high, stride in sides)
        return inside and shape == self.shape((height, width))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Signature:
        values: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(text).items()}
        return cls(**values)

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 pixels [B, H, W, C] of normalised images [B, C, H, W]; exact for images that were pixels."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def rows(self, output: np.ndarray, start: int, count: int) -> np.ndarray:
        """What belongs to the first `count` images of a call of the runtime; detections with the numbers that their
        images have when the first one is number `start`."""
        if self.output != DETECTIONS:
            return output[:count]
        rows = output[output[:, 0] < count]
        rows[:, 0] += start
        return rows

    def logits(self, output: Tensor) -> Tensor:
        """What an artifact gave, [B, classes], as logits up to a constant an image; probabilities below what its type
        holds well count as the smallest that it does."""
        if self.output != "probabilities":
            return output
        return output.clamp_min(torch.finfo(getattr(torch, self.dtype)).tiny).log()

    def inputs(self, images: Tensor) -> Tensor:
        """What the artifact takes, for normalised float32 images [B, C, H, W]."""
        return self.pixels(images) if self.input == "pixels" else images.to(getattr(torch, self.dtype))
