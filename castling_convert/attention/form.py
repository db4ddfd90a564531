"""What the file of a linear form offers, as its `FORM`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cost import Shape
from .grid import TokenGrid

if TYPE_CHECKING:
    from .castled import CastledAttention, Projections
    from .folded import FoldedAttention


@dataclass(frozen=True)
class Form:
    """One linear form: the layer that is trained, the layer that is deployed, and its cost by formula: MACs and values
    held by the linear form itself, without projections."""

    training: Callable[[Projections, Any, TokenGrid], CastledAttention]
    folded: Callable[[Any], FoldedAttention]
    cost: Callable[[Shape, Any], tuple[int, int]]
