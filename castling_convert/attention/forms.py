"""The linear forms: a new one is one new file with its `LAYERS`, its config, and one line in `FORMS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .config import AngularConfig, AttentionConfig, FeaturesConfig, LandmarksConfig, SnippetConfig
from .cost import AttentionCost, Shape
from .form import Form
from .grid import TokenGrid

if TYPE_CHECKING:
    from .castled import CastledAttention, Projections
    from .folded import FoldedAttention
    from .reader import Reader

FORMS = {
    "landmarks": Form(LandmarksConfig, ".landmarks"),
    "features": Form(FeaturesConfig, ".features"),
    "angular": Form(AngularConfig, ".angular"),
    "snippet": Form(SnippetConfig, ".snippet"),
}
"""By the name that recipes call it by."""
DEFAULT = "landmarks"


def config_of(values: Mapping[str, Any]) -> AttentionConfig:
    """The config of the form that `values` name, the default one where they name none.

    Raises:
        ValueError: there is no such form, or it has no such key. pydantic's ValidationError: a value it can't have.
    """
    name = values.get("form", DEFAULT)
    if not isinstance(name, str) or name not in FORMS:
        raise ValueError(f"form '{name}' is not known; the linear forms are {', '.join(FORMS)}")
    config = FORMS[name].config
    unknown = next((key for key in values if key not in config.model_fields), None)
    if unknown is not None:
        raise ValueError(f"form {name} has no key '{unknown}'; it has {', '.join(config.model_fields)}")
    return config.model_validate(dict(values))


def before_forms(values: Mapping[str, Any]) -> dict[str, Any]:
    """The attention section of a recipe of version 1 or a bundle of format 1, which had no forms, in today's keys."""
    values = dict(values)
    if "form" in values:
        return values
    normalization = values.get("normalization", "row_sum")
    if normalization == "l2":
        others = {key: value for key, value in values.items() if key not in ("normalization", "center")}
        return {"form": "snippet", "constant": "mean", **others}
    return {"form": "angular", "normalization": normalization, "center": False, **values}


def training_form(source: Projections | Reader, config: AttentionConfig, grid: TokenGrid) -> CastledAttention:
    """The layer that is trained in the place of a softmax layer."""
    return FORMS[config.form].layers.training(source, config, grid)


def folded_form(trained: CastledAttention) -> FoldedAttention:
    """The layer that is deployed, of one that was trained until its mask was closed."""
    return FORMS[trained.config.form].layers.folded(trained)


def castled_cost(shape: Shape, config: AttentionConfig) -> AttentionCost:
    """A folded layer: its linear form; the softmax of prefix tokens, N·d a row and head for each of two products, and
    of windows, N·window²·d each; the depthwise convolution, k² for a channel of a patch, or k for one of a token."""
    macs, values = FORMS[config.form].layers.cost(shape, config)
    patches = shape.tokens - shape.prefix
    if config.prefix_rows:
        macs += shape.prefix * shape.key_tokens * (shape.size + shape.value_size)
        values += shape.prefix * shape.tokens * shape.num_heads
    if config.window:
        macs += patches * config.window**2 * (shape.size + shape.value_size)
        values += patches * config.window**2 * shape.num_heads
    if config.depthwise == "grid":
        macs += shape.regions * patches * config.kernel_size**2 * shape.value_size
    elif config.depthwise == "tokens":
        macs += shape.regions * shape.tokens * config.kernel_size * shape.value_size
    values += shape.tokens * shape.value_size if config.depthwise != "none" else 0
    return AttentionCost(projection_macs(shape) + shape.windows * macs, shape.windows * values)


def softmax_cost(shape: Shape) -> AttentionCost:
    """Softmax: Q Kᵀ and its product with V, N²·d a head each, and N² weights a head between them. A fused kernel
    computes the same and holds a part of the weights at a time."""
    weights = shape.windows * shape.tokens * shape.key_tokens
    macs = weights * (shape.size + shape.value_size)
    return AttentionCost(projection_macs(shape) + macs, weights * shape.num_heads)


def projection_macs(shape: Shape) -> int:
    """q, k, v and the output."""
    return shape.projections if shape.projections is not None else 4 * shape.tokens * shape.dim * shape.size
