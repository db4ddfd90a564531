"""Masks and boxes of an image as tensors, at the size that a model takes: the whole image is resized to it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IGNORED = 255
"""Pixels of a mask that have no label."""
NO_BOX = -1.0
"""What fills the rows behind an image's last box."""
Kind = TypeVar("Kind", float, Tensor)


def crowd(kind: Kind) -> Kind:
    """The kind that the row of a crowd has, COCO's box around objects of this kind that were not told apart: below
    NO_BOX, so that whoever looks for objects passes over it. Of such a number, the kind."""
    return NO_BOX - 1 - kind


def mask_at(mask: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A mask, [h, w] in uint8, as [H, W] in int64: every pixel has the label of the nearest one."""
    height, width = size
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized, dtype=np.int64))


def boxes_at(boxes: np.ndarray, seen: tuple[int, int], size: tuple[int, int], rows: int) -> Tensor:
    """Boxes, [n, 5] with x1, y1, x2, y2 in pixels of an image of (height, width) `seen` and their kind, as
    [rows, 5] in float32 and in pixels of `size`.

    They are clipped to the image; those that lie outside or have no size are left out. Rows of NO_BOX follow.
    """
    (height, width), result = seen, torch.full((rows, 5), NO_BOX)
    corners = boxes[:, :4].clip(0, [width, height, width, height])
    there = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    scaled = corners * [size[1] / width, size[0] / height, size[1] / width, size[0] / height]
    kept = np.concatenate([scaled, boxes[:, 4:]], axis=1)[there]
    result[: len(kept)] = torch.from_numpy(kept)
    return result
