"""timm's `features_only=True`: a model without its head that returns feature maps.

`FeatureGetterNet` holds the model, and all that is known of it is what the model's family knows. `FeatureListNet` holds
the model's stages without the model, which are run to see how their attention is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.models._features import FeatureGetterNet, FeatureListNet
from torch import Tensor, nn

from ..attention import Reader
from .around import AroundFamily
from .base import Family
from .called import CalledFamily

SEVERAL = (
    "it returns several feature maps, and a bundle or an artifact is of a model with one output; castle the backbone "
    "without features_only, save that, and load it by timm.create_model('local-dir:BUNDLE', pretrained=True, "
    "features_only=True)"
)


class GetterFamily(AroundFamily):
    """The model inside is all that there is, and its last tokens are the features: the maps are made of them and of
    those of the layers before."""

    title = "timm features_only"

    def matches(self, model: Any) -> bool:
        return isinstance(model, FeatureGetterNet) and super().matches(model)

    def classes(self, model: nn.Module) -> int:
        return 0

    def features(self, model: Any, images: Tensor) -> Tensor:
        _, inside, family = self._first(model)
        return family.features(inside, images)

    def head(self, model: Any, features: Tensor) -> Tensor:
        return features

    def maps(self, model: nn.Module, features: Tensor) -> list[tuple[Tensor, int]]:
        _, inside, family = self._first(model)
        return family.maps(inside, features)

    def several(self, model: nn.Module) -> str:
        return SEVERAL


class ListFamily(CalledFamily):
    """`readers` are those of the families that `known` lists; a net is known by holding a module that one of them
    reads."""

    title = "timm features_only"

    def __init__(self, known: Callable[[], Sequence[Family]]) -> None:
        self.known = known

    @property
    def _families(self) -> list[CalledFamily]:
        found = (family for family in self.known() if isinstance(family, CalledFamily) and family is not self)
        return [family for family in found if family.timm_modules]

    @property
    def readers(self) -> Mapping[type[nn.Module], type[Reader]]:  # type: ignore[override]
        return {kind: reader for family in self._families for kind, reader in family.readers.items()}

    @property
    def reasons(self) -> Mapping[type[nn.Module], str]:  # type: ignore[override]
        return {kind: reason for family in self._families for kind, reason in family.reasons.items()}

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, FeatureListNet) and bool(self.block_names(model))

    def kept_because(self, module: nn.Module) -> str | None:
        family = next(family for family in self._families if type(module) in family.readers)
        return family.kept_because(module)

    def classes(self, model: nn.Module) -> int:
        return 0

    def features(self, model: Any, images: Tensor) -> Tensor:
        """The last map."""
        return model(images)[-1]

    def head(self, model: Any, features: Tensor) -> Tensor:
        return features

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        first = features.shape[1] == model.feature_info.channels()[-1]
        return torch.flatten(features, 2).transpose(1, 2) if first else features.flatten(1, 2), 0

    def several(self, model: nn.Module) -> str:
        return SEVERAL
