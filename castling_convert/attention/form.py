"""What a linear form is: a config, which recipes hold, and the layers in its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import AttentionConfig
from .cost import Shape
from .grid import TokenGrid

if TYPE_CHECKING:
    from .castled import CastledAttention, Projections
    from .folded import FoldedAttention
    from .reader import Reader


@dataclass(frozen=True)
class FormLayers:
    """What the file of a form offers, as its `LAYERS`: the layer that is trained, the layer that is deployed, and its
    cost by formula: MACs and values held by the linear form itself, without projections; whether it can be held within
    regions."""

    training: Callable[[Projections | Reader, Any, TokenGrid], CastledAttention]
    folded: Callable[[Any], FoldedAttention]
    cost: Callable[[Shape, Any], tuple[int, int]]
    within_regions: bool = False


@dataclass(frozen=True)
class Form:
    """One linear form. Its `module`, with a dot before one of this package, is imported when a layer is made or
    counted: who reads a recipe needs the config alone, and no torch."""

    config: type[AttentionConfig]
    module: str

    @property
    def layers(self) -> FormLayers:
        return import_module(self.module, __package__).LAYERS
