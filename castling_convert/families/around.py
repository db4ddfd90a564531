"""Any module around models that are known: a segmenter, a detector, a model of two towers.

What is known of it is what the families of the models inside know; names have theirs before them. What those models
return is the features, and the rest of the module is its head, whatever it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..attention import Projections, Reader, TokenGrid
from ..errors import ModelError
from .base import AttentionLayer, Family, Size

OUTPUTS = ("logits", "out", "pred_masks")
"""Where a module that returns several things has the one that it is for."""


class Inside(NamedTuple):
    """A model within another, by the name that it has there, and its family."""

    name: str
    model: Any
    family: Family


@dataclass
class Seen:
    """What the models inside returned at one forward, feature maps in their order, and what the whole one did."""

    maps: list[Tensor]
    output: Any

    def float(self) -> Seen:
        return Seen([features.float() for features in self.maps], self.output)


class AroundFamily(Family):
    """`known` gives the family of a model, `None` where there is none; this one is asked after all others."""

    title = "a model around a backbone"

    def __init__(self, known: Callable[[nn.Module], Family | None]) -> None:
        self.known = known

    def matches(self, model: nn.Module) -> bool:
        return next(self._inside(model), None) is not None

    def _inside(self, model: nn.Module) -> Iterator[Inside]:
        """The outermost models that are known, in the order in which they are registered."""
        for name, module in model.named_children():
            family = self.known(module)
            if family is not None:
                yield Inside(name, module, family)
            else:
                for found in self._inside(module):
                    yield found._replace(name=f"{name}.{found.name}")

    def _first(self, model: nn.Module) -> Inside:
        return next(self._inside(model))

    def _of(self, model: nn.Module, name: str) -> Inside:
        """The one that the module of this name is in."""
        return next(inside for inside in self._inside(model) if name.startswith(f"{inside.name}."))

    def layers(self, model: nn.Module, image_size: Size | None = None) -> list[AttentionLayer]:
        found: list[AttentionLayer] = []
        for name, inside, family in self._inside(model):
            blocks = len({layer.block for layer in found} - {None})
            found += [
                replace(
                    layer,
                    name=f"{name}.{layer.name}",
                    block=None if layer.block is None else layer.block + blocks,
                )
                for layer in family.layers(inside, image_size)
            ]
        return found

    def projections(self, model: nn.Module, layer: AttentionLayer) -> Projections | Reader:
        name, inside, family = self._of(model, layer.name)
        return family.projections(inside, replace(layer, name=layer.name.removeprefix(f"{name}.")))

    def grids(self, model: nn.Module, layers: Sequence[AttentionLayer]) -> dict[str, TokenGrid]:
        found: dict[str, TokenGrid] = {}
        for name, inside, family in self._inside(model):
            own = [
                replace(layer, name=layer.name.removeprefix(f"{name}."))
                for layer in layers
                if layer.name.startswith(f"{name}.")
            ]
            found |= {f"{name}.{layer}": grid for layer, grid in family.grids(inside, own).items()}
        return found

    def block_names(self, model: nn.Module) -> list[str]:
        return [
            f"{name}.{block}" for name, inside, family in self._inside(model) for block in family.block_names(inside)
        ]

    def image_size(self, model: nn.Module) -> Size:
        _, inside, family = self._first(model)
        return family.image_size(inside)

    def channels(self, model: nn.Module) -> int:
        _, inside, family = self._first(model)
        return family.channels(inside)

    def trunk(self, model: nn.Module) -> Iterator[nn.Parameter]:
        for inside in self._inside(model):
            yield from inside.model.parameters()

    def features(self, model: Any, images: Tensor) -> Any:
        """`Seen`; without the maps where a graph is made of the model, which needs none."""
        if torch.compiler.is_exporting():
            return Seen([], model(images))
        with _watched(list(self._inside(model))) as maps:
            output = model(images)
        if not maps:
            raise ModelError(
                f"{type(model).__name__} reads nothing of {self._first(model).name}: its forward calls neither the "
                "model there nor its forward_features"
            )
        return Seen(maps, output)

    def head(self, model: Any, features: Any) -> Any:
        """What the whole module returned: of several things the one that it is for, of detections a list."""
        output = features.output
        if isinstance(output, Mapping):
            return next((output[name] for name in OUTPUTS if name in output), output)
        return output

    def maps(self, model: nn.Module, features: Any) -> list[tuple[Tensor, int]]:
        channels: set[int] = set()
        for _, inside, _ in self._inside(model):
            info: Any = getattr(inside, "feature_info", None)
            channels |= set(info.channels()) if hasattr(info, "channels") else {getattr(inside, "num_features", 0)}
        return [(_tokens(tensor, channels), 0) for tensor in features.maps]

    def has_token_dropout(self, model: nn.Module) -> bool:
        return any(family.has_token_dropout(inside) for _, inside, family in self._inside(model))

    def absorb_layer_scale_(self, model: nn.Module) -> int:
        return sum(family.absorb_layer_scale_(inside) for _, inside, family in self._inside(model))

    def patch_size(self, model: nn.Module) -> Size:
        _, inside, family = self._first(model)
        return family.patch_size(inside)

    def resize_(self, model: nn.Module, image_size: Size) -> None:
        for _, inside, family in self._inside(model):
            family.resize_(inside, image_size)

    def see_(self, model: nn.Module, image_size: Size) -> None:
        for _, inside, family in self._inside(model):
            family.see_(inside, image_size)

    @contextmanager
    def taking_sizes(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for _, inside, family in self._inside(model):
                stack.enter_context(family.taking_sizes(inside))
            yield

    def any_size_(self, model: nn.Module) -> None:
        for _, inside, family in self._inside(model):
            family.any_size_(inside)

    def to_half_(self, model: nn.Module, dtype: torch.dtype) -> None:
        """The models inside; what the head takes of them is float32."""
        for _, inside, family in self._inside(model):
            family.to_half_(inside, dtype)
            inside.register_forward_hook(lambda _module, _inputs, output: tree_map_only(Tensor, Tensor.float, output))


@contextmanager
def _watched(inside: Sequence[Inside]) -> Iterator[list[Tensor]]:
    """While open, what these models return at a forward is put into the list, each map of several for itself. Of one
    that is called by another method than its forward it is what its last block returns."""
    maps: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            maps[name] = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]

        return hook

    found: list[Tensor] = []
    handles = []
    for name, model, family in inside:
        last = model.get_submodule(family.block_names(model)[-1])
        handles += [module.register_forward_hook(keep(name)) for module in (last, model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        found += [features for name, *_ in inside for features in maps.get(name, [])]


def _tokens(features: Tensor, channels: set[int]) -> Tensor:
    """A feature map or tokens as tokens, [B, N, C]; of a map that its channels stand first in, if it has one of these
    numbers of `channels` last and not first."""
    if features.ndim == 4:
        last = features.shape[-1] in channels and features.shape[1] not in channels
        return features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
    return features if features.ndim == 3 else features.flatten(1)[:, None]
