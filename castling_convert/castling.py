"""Castle: replace softmax attention by castled attention, and account for every layer."""

from __future__ import annotations

import copy
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .attention import (
    FORMS,
    AttentionConfig,
    AttentionCost,
    CastledAttention,
    FoldedAttention,
    Reader,
    before_forms,
    castled_cost,
    config_of,
    softmax_cost,
    training_form,
)
from .attention.masked_softmax import CLOSED
from .errors import ModelError, RecipeError, Wanted, takes
from .families import AttentionLayer, Family, family_of
from .recipe import A_RECIPE, Recipe


@dataclass(frozen=True)
class LayerRecord:
    """What became of one attention layer: `castled`, or `kept` as softmax and why."""

    name: str
    status: Literal["castled", "kept"]
    why: str


@dataclass(frozen=True)
class Castling:
    """The account of a castled model, found as `model.castling`. `choice` is what was castled, in the form that
    `castle(layers=...)` takes."""

    family: str
    attention: AttentionConfig
    layers: list[LayerRecord] = field(default_factory=list)
    choice: str = ""

    @property
    def castled(self) -> list[str]:
        return [layer.name for layer in self.layers if layer.status == "castled"]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Castling:
        """The inverse of `to_dict`; further keys are passed over."""
        layers = [LayerRecord(**layer) for layer in values["layers"]]
        return cls(values["family"], config_of(before_forms(values["attention"])), layers)

    def to_dict(self) -> dict[str, Any]:
        layers = [asdict(layer) for layer in self.layers]
        return {"family": self.family, "attention": self.attention.model_dump(), "layers": layers}


A_MODEL = Wanted(nn.Module, ModelError, "a timm model, such as timm.create_model('deit_small_patch16_224')")
LAYERS = Wanted(str, RecipeError, "a text, such as 'all', '0-7,9' or 'blocks.*.attn'")


@takes(model=A_MODEL, recipe=A_RECIPE, layers=LAYERS)
def castle(model: nn.Module, recipe: Recipe | str = "castling", layers: str | None = None) -> nn.Module:
    """A castled copy of `model`; `model` itself is left untouched.

    With the recipe's masks open the copy computes what `model` computes (for `row_sum` and `gain`);
    `distill` closes the masks and `fold` drops them. `copy.castling` accounts for every layer.

    Args:
        model: a timm model of a supported family, on any device, in float32 or float64.
        recipe: a `Recipe`, the name of a shipped one, or the path of a YAML file.
        layers: `all`, or block numbers and patterns of module names, such as `0-7,9` or `blocks.*.attn`; the recipe's
            choice when left out.

    Raises:
        ModelError: the family is not supported, no layer of it can be castled, or its weights are of half precision.
        RecipeError: `layers` can't be read or names a block that is not there.
    """
    return castle_(copy.deepcopy(model), recipe, layers)


@takes(model=A_MODEL, recipe=A_RECIPE, layers=LAYERS)
def castle_(model: nn.Module, recipe: Recipe | str = "castling", layers: str | None = None) -> nn.Module:
    """`castle` in place; returns `model`."""
    recipe = Recipe.of(recipe)
    if any(isinstance(module, CastledAttention | FoldedAttention) for module in model.modules()):
        raise ModelError("this model is castled already; castle the original softmax model")
    half = next((p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:  # to learn in it would lose what castling has to keep
        raise ModelError(
            f"the model's weights are {half}, too coarse to learn in; castle model.float(), train in "
            "distill.precision=bf16 where that is faster, and export with precision='fp16'"
        )
    family = family_of(model)
    chosen, records, choice = plan(family, model, recipe.layers if layers is None else layers, recipe.attention)
    if recipe.attention.needs_grid and family.has_token_dropout(model):
        raise ModelError(
            "patch dropout takes tokens off the grid that depthwise 'grid' and windows work on; create the model "
            "without patch_drop_rate, or use --set attention.depthwise=tokens and --set attention.window=0"
        )
    grids = family.grids(model, chosen)
    for layer in chosen:
        source = family.projections(model, layer)
        if isinstance(source, Reader):
            source.grid = grid = grids.get(layer.name, source.grid)
        else:
            grid = grids[layer.name]
        castled = training_form(source, recipe.attention, grid)
        castled.train(model.get_submodule(layer.name).training)
        model.set_submodule(layer.name, castled)
    model.castling = Castling(family.title, recipe.attention, records, choice)  # type: ignore[assignment]
    return model


def plan(
    family: Family, model: nn.Module, layers: str, config: AttentionConfig
) -> tuple[list[AttentionLayer], list[LayerRecord], str]:
    """The layers to castle, the account of all of them, and the choice written out.

    Raises:
        ModelError: nothing would be castled.
        RecipeError: `layers` is not valid for this model.
    """
    found = family.layers(model)
    wanted = choose_layers(layers, found)
    chosen, records = [], []
    for layer in found:
        reason = kept_because(layer, config)
        if reason is not None:
            records.append(LayerRecord(layer.name, "kept", reason))
        elif layer.name not in wanted:
            records.append(LayerRecord(layer.name, "kept", f"not chosen by layers={layers}"))
        else:
            chosen.append(layer)
            records.append(LayerRecord(layer.name, "castled", f"chosen by layers={layers}"))
    if not chosen:
        reasons = "; ".join(sorted({record.why for record in records})) or "it has no attention layers"
        raise ModelError(f"nothing to castle in this {type(model).__name__}: {reasons}")
    return chosen, records, _written(chosen, found)


def kept_because(layer: AttentionLayer, config: AttentionConfig) -> str | None:
    """Why a layer can't be castled in such a way; None where it can."""
    if layer.reason is not None:
        return layer.reason
    if layer.masked and not FORMS[config.form].layers.within_regions:
        return f"its windows are masked, and the linear form {config.form} has no masks"
    if not layer.queries_are_keys and getattr(config, "constant", None) == "token":
        return "its queries are not the tokens that it looks at, and attention.constant is 'token'"
    return None


def costs(layer: AttentionLayer, config: AttentionConfig) -> tuple[AttentionCost, AttentionCost]:
    """Of a layer for one image, with softmax and castled."""
    here = config.where(on_grid=layer.queries_are_keys, takes_windows=layer.takes_windows)
    return softmax_cost(layer.shape), castled_cost(layer.shape, here)


def not_paying(layers: Iterable[AttentionLayer], config: AttentionConfig) -> dict[str, str]:
    """Of layers that can be castled those that castling makes no cheaper, by name, and their MACs in words."""
    found = {}
    for layer in layers:
        softmax, castled = (cost.macs for cost in costs(layer, config))
        if kept_because(layer, config) is None and castled >= softmax:
            tokens = f"windows of {layer.tokens} tokens" if layer.windows > 1 else f"{layer.tokens} tokens"
            found[layer.name] = f"{castled / 1e6:.1f} M MACs for softmax's {softmax / 1e6:.1f} M, {tokens}"
    return found


LEAVE_THEM = "--layers auto leaves such layers, or name the others"


def no_cheaper(dear: Mapping[str, str]) -> str:
    """What `not_paying` has found, in a sentence."""
    name, words = next(iter(dear.items()))
    count = "one layer" if len(dear) == 1 else f"{len(dear)} layers"
    return f"castling makes {count} no cheaper, {name}: {words}"


def _written(chosen: list[AttentionLayer], found: list[AttentionLayer]) -> str:
    """Block numbers, such as `0,1,5`, where whole blocks were chosen, else the layers' names."""
    names = {layer.name for layer in chosen}
    numbers = {layer.block for layer in chosen}
    all_of_them = {layer.name for layer in found if layer.castable and layer.block in numbers}
    if None in numbers or all_of_them != names:
        return ",".join(layer.name for layer in chosen)
    return ",".join(map(str, sorted(numbers)))  # type: ignore[type-var]


def choose_layers(text: str, found: Sequence[AttentionLayer]) -> set[str]:
    """Names of the layers of `found` that `text` means: `all`, or block numbers and patterns of names, such as `0-7,9`
    or `blocks.*.attn`.

    Raises:
        RecipeError: it can't be read, or a part of it means nothing here.
    """
    if text.strip() == "all":
        return {layer.name for layer in found}
    if text.strip() == "auto":
        raise RecipeError("layers=auto is planned by convert(), with data and a max_drop; castle() takes block numbers")
    names = [layer.name for layer in found]
    count = len({layer.block for layer in found if layer.block is not None})
    chosen: set[str] = set()
    for part in (part.strip() for part in text.split(",")):
        numbers = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
        if numbers:
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            if first > last or last >= count:
                raise RecipeError(f"layers '{text}': {part} is not within this model's blocks 0-{count - 1}")
            chosen.update(layer.name for layer in found if layer.block is not None and first <= layer.block <= last)
        elif not re.fullmatch(r"[\w.*?\[\]!-]*[a-zA-Z*][\w.*?\[\]!-]*", part):
            raise RecipeError(
                f"layers '{text}' can't be read at '{part}'; use all, block numbers such as 0-7,9, or names such as "
                f"{names[0] if names else 'those that castling inspect lists'}"
            )
        else:
            meant = fnmatch.filter(names, part)
            if not meant:
                raise RecipeError(
                    f"layers '{text}': no attention layer is called '{part}'; use all, block numbers such as 0-7,9, or "
                    "names that castling inspect lists"
                )
            chosen.update(meant)
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
