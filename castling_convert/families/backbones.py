"""timm's `features_only=True`: a model without its head that returns feature maps.

`FeatureGetterNet` holds the model, and all that is known of it is what the model's family knows. `FeatureListNet` holds
the model's stages without the model, which are run to see how their attention is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.models._features import FeatureGetterNet, FeatureListNet
from torch import Tensor, nn

from ..attention import Projections, Reader, TokenGrid
from .base import AttentionLayer, Family, Size
from .called import CalledFamily

SEVERAL = (
    "it returns several feature maps, and a bundle or an artifact is of a model with one output; castle the backbone "
    "without features_only, save that, and load it by timm.create_model('local-dir:BUNDLE', pretrained=True, "
    "features_only=True)"
)
INSIDE = "model."


class GetterFamily(Family):
    """Every answer is that of the family of the model inside, `known` gives it; names have `model.` before them."""

    title = "timm features_only"

    def __init__(self, known: Callable[[nn.Module], Family | None]) -> None:
        self.known = known

    def matches(self, model: Any) -> bool:
        return isinstance(model, FeatureGetterNet) and self.known(model.model) is not None

    def _of(self, model: Any) -> tuple[Family, Any]:
        family = self.known(model.model)
        assert family is not None
        return family, model.model

    def layers(self, model: nn.Module, image_size: Size | None = None) -> list[AttentionLayer]:
        family, inside = self._of(model)
        return [replace(layer, name=INSIDE + layer.name) for layer in family.layers(inside, image_size)]

    def projections(self, model: nn.Module, layer: AttentionLayer) -> Projections | Reader:
        family, inside = self._of(model)
        return family.projections(inside, _inside(layer))

    def grids(self, model: nn.Module, layers: Sequence[AttentionLayer]) -> dict[str, TokenGrid]:
        family, inside = self._of(model)
        return {INSIDE + name: grid for name, grid in family.grids(inside, [_inside(x) for x in layers]).items()}

    def block_names(self, model: nn.Module) -> list[str]:
        family, inside = self._of(model)
        return [INSIDE + name for name in family.block_names(inside)]

    def image_size(self, model: nn.Module) -> Size:
        family, inside = self._of(model)
        return family.image_size(inside)

    def channels(self, model: nn.Module) -> int:
        family, inside = self._of(model)
        return family.channels(inside)

    def classes(self, model: nn.Module) -> int:
        return 0

    def features(self, model: Any, images: Tensor) -> Tensor:
        """The model's last tokens, which its maps are made of with those of the layers before."""
        family, inside = self._of(model)
        return family.features(inside, images)

    def head(self, model: Any, features: Tensor) -> Tensor:
        return features

    def tokens(self, model: nn.Module, features: Tensor) -> tuple[Tensor, int]:
        family, inside = self._of(model)
        return family.tokens(inside, features)

    def has_token_dropout(self, model: nn.Module) -> bool:
        family, inside = self._of(model)
        return family.has_token_dropout(inside)

    def absorb_layer_scale_(self, model: nn.Module) -> int:
        family, inside = self._of(model)
        return family.absorb_layer_scale_(inside)

    def patch_size(self, model: nn.Module) -> Size:
        family, inside = self._of(model)
        return family.patch_size(inside)

    def resize_(self, model: nn.Module, image_size: Size) -> None:
        family, inside = self._of(model)
        family.resize_(inside, image_size)

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


def _inside(layer: AttentionLayer) -> AttentionLayer:
    return replace(layer, name=layer.name.removeprefix(INSIDE))
