"""The mathematics of castled attention: pure torch, no timm."""

from .castled import CastledAttention, Projections
from .config import AttentionConfig
from .cost import AttentionCost, Shape
from .folded import ChannelsFirst, FoldedAttention
from .forms import DEFAULT, FORMS, Form, before_forms, castled_cost, config_of, folded_form, softmax_cost, training_form
from .grid import TokenGrid

__all__ = [
    "DEFAULT",
    "FORMS",
    "AttentionConfig",
    "AttentionCost",
    "CastledAttention",
    "ChannelsFirst",
    "FoldedAttention",
    "Form",
    "Projections",
    "Shape",
    "TokenGrid",
    "before_forms",
    "castled_cost",
    "config_of",
    "folded_form",
    "softmax_cost",
    "training_form",
]
