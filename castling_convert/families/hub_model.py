"""A model of Hugging Face transformers that returns one tensor, made from the name of its class and plain values.

So is one from a folder loaded, and rebuilt from a bundle: timm has it as the architecture `transformers`. Of a config
the fields that its own class declares are read, and no others: none of them names a file, an address or code.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, did_you_mean, first_line
from .around import AroundFamily
from .base import Size
from .hub import ENDS, KINDS, TEXT, HubFamily
from .hub_sam import HubSamFamily
from .hub_segformer import SegformerFamily
from .hub_vitdet import VitDetFamily

INNER: tuple[HubFamily, ...] = (HubFamily(), SegformerFamily(), VitDetFamily(), HubSamFamily())
SMALLEST = "ViTForImageClassification"
"""Where no class is named."""
LARGEST, DEEPEST, LONGEST = 2**16, 200, 256
"""No number in a config is larger, no model has more layers, no list or text is longer."""
_DEPTHS = ("num_hidden_layers", "num_encoder_blocks", "depths")
_BACKBONE = ("out_features", "out_indices")
NEEDED = "a model of Hugging Face transformers needs it: pip install castling-convert[transformers]"


class HubModel(nn.Module):
    """Images, [B, C, H, W], to logits, [B, classes] or [B, classes, h, w], or to features.

    Args:
        kind: class of transformers'.
        config: values of its config, those that are left out as transformers has them; see `plain_config`.
        num_classes, in_chans: nothing beside what `config` says; timm hands them over.

    Raises:
        ModelError: there is no such class here, a value has no place in its config, or transformers is not installed.
    """

    def __init__(
        self,
        kind: str = SMALLEST,
        config: Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        in_chans: int | None = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        made = config_of(kind, config or {})
        with nullcontext() if device is None else torch.device(device):
            self.model: Any = class_of(kind)(made)
        self.kind, self.family = kind, inner_family(self.model)
        self.num_classes = self.family.classes(self.model)
        self.num_features = getattr(made, "hidden_size", None) or made.hidden_sizes[-1]
        channels = self.family.channels(self.model)
        for what, said, asked in (("classes", self.num_classes, num_classes), ("channels", channels, in_chans)):
            if asked not in (None, said):
                raise ModelError(f"the config of this {kind} says {said} {what}, not {asked}")

    def forward(self, images: Tensor) -> Tensor:
        return self.family.head(self.model, self.family.features(self.model, images))

    def reset_classifier(self, num_classes: int) -> None:
        raise ModelError(
            f"a {self.kind} is not made without its classifier here; save its tower with transformers "
            "(AutoModel.from_pretrained(DIR).save_pretrained(TOWER)) and give local-dir:TOWER"
        )


def inner_family(model: nn.Module) -> HubFamily:
    """The one that knows a model of transformers'."""
    return next(family for family in INNER if family.matches(model))


def known_classes() -> dict[str, str]:
    """The classes that can be made here, and the module of transformers.models that each is in."""
    dense = {name: family.module for family in INNER[1:] for name in family.names}  # type: ignore[attr-defined]
    plain = {start + end: kind.module for start, kind in KINDS.items() for end in ENDS}
    return {name: module for name, module in (plain | dense).items() if name not in TEXT}


def class_of(kind: str) -> Any:
    """The class of transformers' with this name.

    Raises:
        ModelError: none that is known here, or transformers is not installed.
    """
    known = known_classes()
    if kind not in known:
        raise ModelError(
            f"a {kind} of Hugging Face transformers is not known here{did_you_mean(kind, known) or ';'} "
            "docs/own_model.md lists what is"
        )
    try:
        module: Any = importlib.import_module(f"transformers.models.{known[kind]}.modeling_{known[kind]}")
    except ImportError as error:
        raise ModelError(f"{error.name or 'transformers'} is not installed; {NEEDED}") from None
    if not hasattr(module, kind):
        raise ModelError(f"this version of transformers has no {kind}; {NEEDED}")
    return getattr(module, kind)


def plain_config(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the values of a config.json those that the class's own config declares: what `HubModel` takes."""
    allowed = _allowed(kind)
    kept = {name: value for name, value in values.items() if name in allowed and value is not None}
    labels = values.get("id2label")
    if isinstance(labels, dict) and "num_labels" not in kept:
        kept["num_labels"] = len(labels)
    return kept


def config_of(kind: str, values: Mapping[str, Any]) -> Any:
    """The config of a class with these values.

    Raises:
        ModelError: it has no such fields, or they are not plain and within bounds.
    """
    allowed = _allowed(kind)
    for name, value in values.items():
        if name not in allowed:
            raise ModelError(f"the config of a {kind} has no {name}")
        if not _is_plain(value):
            raise ModelError(f"{name} in the config of a {kind} is no plain value within bounds")
        numbers = value if isinstance(value, list | tuple) else [value]
        if name in _DEPTHS and sum(number for number in numbers if isinstance(number, int)) > DEEPEST:
            raise ModelError(f"{name} in the config of a {kind} is above {DEEPEST}")
    try:
        made = class_of(kind).config_class(**values)
    except Exception as error:  # noqa: BLE001 - transformers checks types and shapes in its own ways
        raise ModelError(f"the config of a {kind} can't be read: {first_line(error)}") from None
    return made


def _allowed(kind: str) -> set[str]:
    """The fields that the class of a config declares itself, and how many labels there are."""
    from transformers import PreTrainedConfig

    declared = class_of(kind).config_class
    if getattr(declared, "sub_configs", None) or getattr(declared, "sub_configs_defaults", None):
        raise ModelError(
            f"the config of a {kind} holds configs of several models, which is not read here; save its vision tower "
            "alone with transformers, or castle it in memory"
        )
    fields = {field.name for field in dataclasses.fields(declared)}
    fields -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {name for name in fields if not name.startswith("_")}
    return own | {"num_labels", "image_size", *(_BACKBONE if "_out_features" in fields else ())}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= LONGEST and all(not isinstance(each, list | tuple) and _is_plain(each) for each in value)
    if isinstance(value, str):
        return len(value) <= LONGEST
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= LARGEST)  # NaN is not


class HubModelFamily(AroundFamily):
    """All that is known of it is what is known of the model inside."""

    title = "Hugging Face transformers, from a folder"

    def __init__(self) -> None:
        super().__init__(lambda model: next((family for family in INNER if family.matches(model)), None))

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, HubModel)

    def classes(self, model: Any) -> int | None:
        return model.family.classes(model.model)

    def task(self, model: Any) -> str | None:
        return model.family.task(model.model)

    def several(self, model: Any) -> str | None:
        return model.family.several(model.model)

    def features(self, model: Any, images: Tensor) -> Any:
        return model.family.features(model.model, images)

    def head(self, model: Any, features: Any) -> Any:
        return model.family.head(model.model, features)

    def tokens(self, model: Any, features: Any) -> tuple[Tensor, int]:
        return model.family.tokens(model.model, features)

    def maps(self, model: Any, features: Any) -> list[tuple[Tensor, int]]:
        return model.family.maps(model.model, features)

    def resize_(self, model: Any, image_size: Size) -> None:
        if image_size == self.image_size(model):
            return
        model.family.resize_(model.model, image_size)
        says = {**model.pretrained_cfg, "input_size": (self.channels(model), *image_size)}
        model.pretrained_cfg = model.default_cfg = says
        made_of = model._model_args.get("base_args", model._model_args)  # by timm, of a bundle or of a folder
        made_of["config"] = {**made_of["config"], "image_size": list(image_size)}

    def to_half_(self, model: Any, dtype: torch.dtype) -> None:
        model.family.to_half_(model.model, dtype)
