"""What Hugging Face transformers' encoders of dense models share: features that are maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ..attention import Reader
from .called import CalledFamily
from .hub import HubFamily, attention_classes, is_of_transformers


class DenseHubFamily(HubFamily):
    """What they share.

    Attributes:
        module: of transformers.models. names: of its classes of models.
        attention: readers, by the names of its attention classes.
    """

    module: ClassVar[str]
    names: ClassVar[frozenset[str]]
    attention: ClassVar[Mapping[str, type[Reader]]]

    @property
    def readers(self) -> Mapping[type[nn.Module], type[Reader]]:  # type: ignore[override]
        return attention_classes(self.module, self.attention)

    def matches(self, model: nn.Module) -> bool:
        return is_of_transformers(model, self.names)

    def reader(self, model: Any, name: str) -> Reader:
        return CalledFamily.reader(self, model, name)

    def token_grid(self, model: Any) -> None:
        """The readers know."""

    def features(self, model: Any, images: Tensor) -> Any:
        return model(images).last_hidden_state

    def head(self, model: Any, features: Any) -> Tensor:
        return features

    def tokens(self, model: Any, features: Any) -> tuple[Tensor, int]:
        return features if features.ndim == 3 else features.flatten(2).transpose(1, 2), 0
