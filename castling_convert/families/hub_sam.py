"""Hugging Face transformers' SAM, its image encoder, from a module in memory: windows, and blocks that see all.

It is read as timm's is.

Source: Kirillov et al., "Segment Anything", ICCV 2023, arXiv 2304.02643.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..attention import Reader
from ..errors import ModelError
from .base import Size
from .hub_dense import DenseHubFamily
from .hub_readers import HubSamReader


class HubSamFamily(DenseHubFamily):
    """Its image encoder; a `SamModel` is a model around it."""

    title = "Hugging Face SAM"
    module = "sam"
    names = frozenset({"SamVisionModel", "SamVisionEncoder"})
    attention: ClassVar[Mapping[str, type[Reader]]] = {
        "SamVisionAttention": HubSamReader, "SamVisionSdpaAttention": HubSamReader,
    }  # fmt: skip

    def resize_(self, model: Any, image_size: Size) -> None:
        if image_size != self.image_size(model):
            made, asked = ("{}x{}".format(*size) for size in (self.image_size(model), image_size))
            raise ModelError(
                f"{type(model).__name__} takes images of {made} alone, not of {asked}; leave out --image-size"
            )
