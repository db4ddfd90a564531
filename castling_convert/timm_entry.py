"""The architecture `castled` in timm's registry, so that timm itself builds and loads a bundle.

This module is imported the moment timm is, be it in the middle of importing another part of this
package; so at its top it imports nothing of the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

ARCHITECTURE = "castled"
"""As in `bundle.layout`."""
default_cfgs = generate_default_cfgs(
    {name: {"classifier": "classifier", "crop_pct": 1.0, "crop_mode": "squash"} for name in ("segmenter", "detector")}
    | {"transformers": {}}
)


@register_model
def castled(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A folded castled model, described by the `model_args` of its bundle's `config.json`.

    Built for `timm.create_model("local-dir:BUNDLE", pretrained=True)`; arguments of the softmax
    architecture underneath (`num_classes`, `img_size`, `features_only`, ...) can be given on top.
    """
    source = kwargs.get("pretrained_cfg") or {}
    if isinstance(source, dict) and source.get("source") == "local-dir":
        from .bundle.checking import check

        check(Path(source["file"]))
    return build_model_with_cfg(
        build,
        ARCHITECTURE,
        pretrained,
        pretrained_filter_fn=_resampled,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def segmenter(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A backbone of timm's, by the argument `backbone`, with a linear head on its patches; see `dense.Segmenter`."""
    from .dense.segmenter import Segmenter

    return _dense(Segmenter, "segmenter", pretrained, **kwargs)


@register_model
def transformers(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A model of Hugging Face transformers, by the name of its class and its config; see `families.hub_model`."""
    from .families.hub_model import HubModel

    given = {key: kwargs[key] for key in ("num_classes", "in_chans") if key in kwargs}  # and no defaults of timm's

    def build(num_classes: int = 0, in_chans: int = 0, **arguments: Any) -> nn.Module:
        return HubModel(**arguments, **given)

    model: Any = build_model_with_cfg(build, "transformers", pretrained, **kwargs)
    size = model.family.channels(model.model), *model.family.image_size(model.model)
    model.pretrained_cfg |= {"input_size": size, "num_classes": model.num_classes}
    return model


@register_model
def detector(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A backbone of timm's, by the argument `backbone`, with boxes at every place; see `dense.Detector`."""
    from .dense.detector import Detector

    return _dense(Detector, "detector", pretrained, **kwargs)


def _dense(kind: type[nn.Module], name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Images are normalised as those that the backbone was trained on, where nobody says otherwise."""
    from .dense.backbone import SMALLEST

    known = timm.get_pretrained_cfg(str(kwargs.get("backbone", SMALLEST)))
    if known is not None and not kwargs.get("pretrained_cfg"):
        said = {key: getattr(known, key) for key in ("input_size", "mean", "std", "interpolation")}
        kwargs["pretrained_cfg_overlay"] = said | (kwargs.get("pretrained_cfg_overlay") or {})
    return build_model_with_cfg(kind, name, pretrained, **kwargs)


def _resampled(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A bundle's weights, with positions resampled to another image size in the families where timm does it so."""
    return checkpoint_filter_fn(state, model) if isinstance(model, VisionTransformer | Eva) else state


def build(base: str, base_args: dict[str, Any], castling: dict[str, Any], **kwargs: Any) -> nn.Module:
    """The folded structure with fresh weights: made by castle and fold themselves, so it can't differ."""
    from .attention import before_forms
    from .bundle.config import check_arguments
    from .castling import castle_, close_masks
    from .folding import fold_
    from .recipe import Recipe

    check_arguments(base, {**base_args, **kwargs}, Path("config.json"))
    model = timm.create_model(base, pretrained=False, **{**base_args, **kwargs})
    if base == "transformers":
        model._model_args = {}  # `base_args` are all of them
    if castling.get("task") is not None:
        model.task = castling["task"]
    recipe = Recipe.parse({"attention": before_forms(castling["attention"])}, "config.json")
    castle_(model, recipe, layers=castling["layers"])
    close_masks(model)
    return fold_(model)
