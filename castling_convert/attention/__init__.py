"""The mathematics of castled attention: pure torch, no timm.

Its names are imported when they are first used: the configs, which recipes hold, need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .castled import CastledAttention, Projections
    from .config import AttentionConfig
    from .cost import AttentionCost, Shape
    from .folded import ChannelsFirst, FoldedAttention
    from .form import Form, FormLayers
    from .forms import DEFAULT, FORMS, before_forms, castled_cost, config_of, folded_form, softmax_cost, training_form
    from .grid import TokenGrid
    from .reader import Reader, Reading, Regions

_HOMES = {
    "castled": ("CastledAttention", "Projections"),
    "config": ("AttentionConfig",),
    "cost": ("AttentionCost", "Shape"),
    "folded": ("ChannelsFirst", "FoldedAttention"),
    "form": ("Form", "FormLayers"),
    "forms": (
        "DEFAULT", "FORMS", "before_forms", "castled_cost", "config_of", "folded_form", "softmax_cost", "training_form",
    ),
    "grid": ("TokenGrid",),
    "reader": ("Reader", "Reading", "Regions"),
}  # fmt: skip
"""The public names of each file."""

__all__ = [
    "DEFAULT",
    "FORMS",
    "AttentionConfig",
    "AttentionCost",
    "CastledAttention",
    "ChannelsFirst",
    "FoldedAttention",
    "Form",
    "FormLayers",
    "Projections",
    "Reader",
    "Reading",
    "Regions",
    "Shape",
    "TokenGrid",
    "before_forms",
    "castled_cost",
    "config_of",
    "folded_form",
    "softmax_cost",
    "training_form",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
