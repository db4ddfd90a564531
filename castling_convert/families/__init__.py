"""Model families: how to find attention layers and read their weights, one small file each.

A new family is one new file with a subclass of `Family` and one line in `FAMILIES`. The command line's
help, `castling models`, `doctor` and the tests are made from this registry.
"""

from __future__ import annotations

from torch import nn

from ..errors import ModelError
from .base import AttentionLayer, Family
from .byob import ByobFamily
from .crossvit import CrossVitFamily
from .efficientformer import EfficientFormerFamily
from .eva import EvaFamily
from .fastvit import FastVitFamily
from .metaformer import MetaFormerFamily
from .mobilenet import MobileNetFamily
from .nextvit import NextVitFamily
from .pit import PitFamily
from .pvt import PvtFamily
from .swin import SwinFamily
from .tnt import TntFamily
from .visformer import VisformerFamily
from .vit import VisionTransformerFamily

FAMILIES: list[Family] = [
    VisionTransformerFamily(),
    EvaFamily(),
    SwinFamily(),
    PvtFamily(),
    PitFamily(),
    CrossVitFamily(),
    VisformerFamily(),
    TntFamily(),
    NextVitFamily(),
    MobileNetFamily(),
    MetaFormerFamily(),
    FastVitFamily(),
    EfficientFormerFamily(),
    ByobFamily(),
]
"""The last that knows a model is asked first, so that a special case can be added after the general one."""

__all__ = ["FAMILIES", "AttentionLayer", "Family", "castable_names", "family_of", "supported"]


def supported() -> str:
    """The supported families in words, for messages and help."""
    return ", ".join(family.title for family in FAMILIES)


def family_of(model: nn.Module, name: str | None = None) -> Family:
    """The family that knows `model`.

    Raises:
        ModelError: no family knows it; the message names the model and what is supported.
    """
    for family in reversed(FAMILIES):
        if family.matches(model):
            return family
    called = f"{name} ({type(model).__name__})" if name else type(model).__name__
    raise ModelError(
        f"{called} can't be castled: it has no softmax attention blocks of a supported family "
        f"({supported()}); list the supported models with: castling models"
    )


def castable_names(pattern: str = "*") -> list[str]:
    """timm names, without pretrained tags, that a family can castle."""
    import timm

    names: set[str] = set()
    for family in FAMILIES:
        for module in family.timm_modules:
            names.update(timm.list_models(pattern, module=module))
        names.difference_update(family.excluded_names)
    return sorted(names)
