"""Castle: replace softmax attention by castled attention, and account for every layer."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .attention import AttentionConfig, CastledAttention, FoldedAttention, before_forms, config_of, training_form
from .attention.masked_softmax import CLOSED
from .errors import ModelError, RecipeError
from .families import AttentionLayer, Family, family_of
from .recipe import Recipe


@dataclass(frozen=True)
class LayerRecord:
    """What became of one attention layer: `castled`, or `kept` as softmax and why."""

    name: str
    status: Literal["castled", "kept"]
    why: str


@dataclass(frozen=True)
class Castling:
    """The account of a castled model, found as `model.castling`."""

    family: str
    attention: AttentionConfig
    layers: list[LayerRecord] = field(default_factory=list)

    @property
    def castled(self) -> list[str]:
        return [layer.name for layer in self.layers if layer.status == "castled"]

    @property
    def blocks(self) -> str:
        """The castled blocks in the form `castle(layers=...)` takes, such as `0,1,5`."""
        return ",".join(str(block) for block in sorted({int(name.split(".")[1]) for name in self.castled}))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Castling:
        """The inverse of `to_dict`; further keys are passed over."""
        layers = [LayerRecord(**layer) for layer in values["layers"]]
        return cls(values["family"], config_of(before_forms(values["attention"])), layers)

    def to_dict(self) -> dict[str, Any]:
        layers = [asdict(layer) for layer in self.layers]
        return {"family": self.family, "attention": self.attention.model_dump(), "layers": layers}


def castle(model: nn.Module, recipe: Recipe | str = "castling", layers: str | None = None) -> nn.Module:
    """A castled copy of `model`; `model` itself is left untouched.

    With the recipe's masks open the copy computes what `model` computes (for `row_sum` and `gain`);
    `distill` closes the masks and `fold` drops them. `copy.castling` accounts for every layer.

    Args:
        model: a timm model of a supported family, on any device, in float32 or float64.
        recipe: a `Recipe`, the name of a shipped one, or the path of a YAML file.
        layers: `all`, or block numbers such as `0-7,9`; the recipe's choice when left out.

    Raises:
        ModelError: the family is not supported, no layer of it can be castled, or its weights are of half precision.
        RecipeError: `layers` can't be read or names a block that is not there.
    """
    return castle_(copy.deepcopy(model), recipe, layers)


def castle_(model: nn.Module, recipe: Recipe | str = "castling", layers: str | None = None) -> nn.Module:
    """`castle` in place; returns `model`."""
    recipe = Recipe.load(recipe) if isinstance(recipe, str) else recipe
    if any(isinstance(module, CastledAttention | FoldedAttention) for module in model.modules()):
        raise ModelError("this model is castled already; castle the original softmax model")
    half = next((p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:  # to learn in it would lose what castling has to keep
        raise ModelError(
            f"the model's weights are {half}, too coarse to learn in; castle model.float(), train in "
            "distill.precision=bf16 where that is faster, and export with precision='fp16'"
        )
    family = family_of(model)
    chosen, records = plan(family, model, recipe.layers if layers is None else layers)
    if recipe.attention.needs_grid and family.has_token_dropout(model):
        raise ModelError(
            "patch dropout takes tokens off the grid that depthwise 'grid' and windows work on; create the model "
            "without patch_drop_rate, or use --set attention.depthwise=tokens and --set attention.window=0"
        )
    grid = family.token_grid(model)
    for layer in chosen:
        castled = training_form(family.projections(model, layer), recipe.attention, grid)
        castled.train(model.get_submodule(layer.name).training)
        model.set_submodule(layer.name, castled)
    model.castling = Castling(family.title, recipe.attention, records)  # type: ignore[assignment]
    return model


def plan(family: Family, model: nn.Module, layers: str) -> tuple[list[AttentionLayer], list[LayerRecord]]:
    """The layers to castle, and the account of all of them.

    Raises:
        ModelError: nothing would be castled.
        RecipeError: `layers` is not valid for this model.
    """
    found = family.layers(model)
    blocks = {layer.block for layer in found if layer.block is not None}
    wanted = parse_layers(layers, len(blocks))
    chosen, records = [], []
    for layer in found:
        if layer.reason is not None:
            records.append(LayerRecord(layer.name, "kept", layer.reason))
        elif layer.block not in wanted:
            records.append(LayerRecord(layer.name, "kept", f"not chosen by layers={layers}"))
        else:
            chosen.append(layer)
            records.append(LayerRecord(layer.name, "castled", f"chosen by layers={layers}"))
    if not chosen:
        reasons = "; ".join(sorted({record.why for record in records})) or "it has no attention layers"
        raise ModelError(f"nothing to castle in this {type(model).__name__}: {reasons}")
    return chosen, records


def parse_layers(text: str, count: int) -> set[int]:
    """`all` or `0-7,9` as block numbers below `count`."""
    if text.strip() == "all":
        return set(range(count))
    if text.strip() == "auto":
        raise RecipeError("layers=auto is planned by convert(), with data and a max_drop; castle() takes block numbers")
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match:
            raise RecipeError(f"layers '{text}' can't be read at '{part}'; use all, or block numbers such as 0-7,9")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= count:
            raise RecipeError(f"layers '{text}': {part.strip()} is not within this model's blocks 0-{count - 1}")
        chosen.update(range(first, last + 1))
    return chosen


def castled_layers(model: nn.Module) -> Iterator[tuple[str, CastledAttention]]:
    """The training-form layers of a model, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, CastledAttention):
            yield name, module


def layer_states(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of every castled layer, by their names in the model; no copies."""
    return {
        f"{name}.{key}": value for name, layer in castled_layers(model) for key, value in layer.state_dict().items()
    }


def adopt_layers(model: nn.Module, states: Mapping[str, Tensor]) -> None:
    """Give the castled layers of `model` what `layer_states` of another student says of them.

    Raises:
        RuntimeError: something is missing, or of another shape.
    """
    for name, layer in castled_layers(model):
        start = f"{name}."
        layer.load_state_dict({key.removeprefix(start): v for key, v in states.items() if key.startswith(start)})


def close_masks(model: nn.Module) -> None:
    """Close the mask of every castled layer exactly."""
    for _, layer in castled_layers(model):
        layer.set_mask(CLOSED)
