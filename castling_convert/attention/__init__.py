"""The mathematics of castled attention: pure torch, no timm."""

from .angular import angular_matrix, l2_normalize, linear_angular, unit
from .castled import CastledAttention, FoldedAttention, Layout, Projections
from .config import AttentionConfig
from .depthwise import depthwise_matrix
from .grid import TokenGrid
from .masked_softmax import masked_softmax

__all__ = [
    "AttentionConfig",
    "CastledAttention",
    "FoldedAttention",
    "Layout",
    "Projections",
    "TokenGrid",
    "angular_matrix",
    "depthwise_matrix",
    "l2_normalize",
    "linear_angular",
    "masked_softmax",
    "unit",
]
