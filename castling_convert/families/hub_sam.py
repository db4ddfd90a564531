"""Hugging Face transformers' SAM, its image encoder, from a module in memory: windows, and blocks that see all.

It is read as timm's is.

Source: Kirillov et al., "Segment Anything", ICCV 2023, arXiv 2304.02643.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..attention import Reader
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
