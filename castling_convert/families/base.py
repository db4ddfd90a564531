"""What a family has to answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import nn

from ..attention import Projections, TokenGrid


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer of a model, castable or not.

    Attributes:
        name: dotted module name, such as `blocks.3.attn`.
        block: index of its transformer block, None outside the blocks.
        kind: class name of the module.
        tokens: sequence length N at the model's current image size.
        reason: why it can't be castled; None when it can.
    """

    name: str
    block: int | None
    kind: str
    num_heads: int
    head_dim: int
    tokens: int
    reason: str | None = None

    @property
    def castable(self) -> bool:
        return self.reason is None


class Family(ABC):
    """One model family. `timm_modules` are the timm modules whose models belong to it."""

    title: str
    timm_modules: tuple[str, ...]
    excluded_names: frozenset[str] = frozenset()

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Whether `model` belongs to this family."""

    @abstractmethod
    def layers(self, model: nn.Module) -> list[AttentionLayer]:
        """Every attention layer of `model`, in forward order, castable or with the reason why not."""

    @abstractmethod
    def projections(self, model: nn.Module, layer: AttentionLayer) -> Projections:
        """The trained modules of a castable layer."""

    @abstractmethod
    def token_grid(self, model: nn.Module) -> TokenGrid:
        """A grid that follows the images the model is given."""

    @abstractmethod
    def has_token_dropout(self, model: nn.Module) -> bool:
        """Whether training drops tokens, which empties places of the patch grid."""

    @abstractmethod
    def absorb_layer_scale_(self, model: nn.Module) -> int:
        """Multiply every LayerScale into the projection before it, in place; the number absorbed."""
