"""Model families: how to find attention layers and read their weights, one small file each.

A new family is one new file with a subclass of `Family` and one line in `FAMILIES`, or `register(family)` from
outside. The command line's help, `castling models`, `doctor` and the tests are made from this registry.
"""

from __future__ import annotations

from torch import nn

from ..errors import ModelError
from .around import AroundFamily
from .backbones import GetterFamily, ListFamily
from .base import AttentionLayer, Family
from .beit import BeitFamily
from .byob import ByobFamily
from .cait import CaitFamily
from .called import CalledFamily
from .convit import ConvitFamily
from .crossvit import CrossVitFamily
from .davit import DaVitFamily
from .efficientformer import EfficientFormerFamily
from .eva import EvaFamily
from .fastvit import FastVitFamily
from .gcvit import GcVitFamily
from .hiera import HieraFamily
from .hieradet import HieraDetFamily
from .hub import HubFamily
from .hub_model import HubModelFamily
from .hub_sam import HubSamFamily
from .hub_segformer import SegformerFamily
from .hub_vitdet import VitDetFamily
from .levit import LevitFamily
from .maxxvit import MaxxVitFamily
from .metaformer import MetaFormerFamily
from .mobilenet import MobileNetFamily
from .multihead import MultiheadReader
from .mvit import MultiScaleFamily
from .naflex import NaFlexFamily
from .nest import NestFamily
from .nextvit import NextVitFamily
from .open_clip import OpenClipFamily
from .pit import PitFamily
from .pvt import PvtFamily
from .refused import REASONS, UNKNOWN, WITHOUT
from .relpos import RelPosFamily
from .rotary import RotaryFamily
from .sam import SamFamily
from .skeleton import skeleton
from .swin import SwinFamily
from .swin_v2 import SwinV2Family
from .tiny_vit import TinyVitFamily
from .tnt import TntFamily
from .torchvision_swin import TorchvisionSwinFamily
from .torchvision_vit import TorchvisionVitFamily
from .twins import TwinsFamily
from .visformer import VisformerFamily
from .vit import VisionTransformerFamily
from .volo import VoloFamily

FAMILIES: list[Family] = [
    VisionTransformerFamily(),
    EvaFamily(),
    SwinFamily(),
    SamFamily(),
    HieraFamily(),
    HieraDetFamily(),
    RelPosFamily(),
    NaFlexFamily(),
    LevitFamily(),
    MultiScaleFamily(),
    BeitFamily(),
    PvtFamily(),
    PitFamily(),
    CrossVitFamily(),
    ConvitFamily(),
    VoloFamily(),
    MaxxVitFamily(),
    SwinV2Family(),
    DaVitFamily(),
    GcVitFamily(),
    TinyVitFamily(),
    TwinsFamily(),
    NestFamily(),
    TorchvisionVitFamily(),
    TorchvisionSwinFamily(),
    CaitFamily(),
    RotaryFamily(),
    VisformerFamily(),
    TntFamily(),
    NextVitFamily(),
    MobileNetFamily(),
    MetaFormerFamily(),
    FastVitFamily(),
    EfficientFormerFamily(),
    ByobFamily(),
    OpenClipFamily(),
    HubFamily(),
    SegformerFamily(),
    VitDetFamily(),
    HubSamFamily(),
    HubModelFamily(),
    GetterFamily(lambda model: _known_whole(model)),
    ListFamily(lambda: FAMILIES),
]
"""The last that knows a model is asked first, so that a special case can be added after the general one."""
AROUND = AroundFamily(lambda model: _known_whole(model))

__all__ = [
    "FAMILIES", "AttentionLayer", "CalledFamily", "Family", "MultiheadReader", "castable_names", "family_of",
    "input_size_of", "known_family", "reason_of", "refused_names", "register", "said_task", "skeleton", "timm_names",
]  # fmt: skip


def register(family: Family) -> None:
    """Let every verb know the models of `family`; it is asked before those that were there."""
    FAMILIES.append(family)


def known_family(model: nn.Module) -> Family | None:
    """The family that knows `model`, if one does: it as a whole, or else a model within it."""
    return _known_whole(model) or (AROUND if AROUND.matches(model) else None)


def _known_whole(model: nn.Module) -> Family | None:
    return next((family for family in reversed(FAMILIES) if family.matches(model)), None)


def input_size_of(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of the images that `model` is made for now; of a model that no family knows what timm says."""
    from timm.models import get_model_input_config

    family = known_family(model)
    return family.input_size(model) if family is not None else tuple(get_model_input_config(model)["input_size"])


def said_task(model: nn.Module) -> str | None:
    """The name of the task that `model`, or the family that knows it, says it is for; None where nobody does."""
    family = known_family(model)
    return family.task(model) if family is not None else getattr(model, "task", None)


def family_of(model: nn.Module, name: str | None = None) -> Family:
    """The family that knows `model`.

    Raises:
        ModelError: no family knows it; the message names the model and says why.
    """
    family = known_family(model)
    if family is not None:
        return family
    kind = type(model)
    called = f"{name} ({kind.__name__})" if name else kind.__name__
    module = kind.__module__.removeprefix("timm.models.")
    why = REASONS.get(module, WITHOUT if any(module in family.timm_modules for family in FAMILIES) else UNKNOWN)
    raise ModelError(f"{called} can't be castled: {why}; list the models that can be with: castling models")


def reason_of(name: str) -> str | None:
    """Why a timm model, by its name without a pretrained tag, can't be castled; None where it can."""
    import timm

    module = timm.models.model_entrypoint(name).__module__.removeprefix("timm.models.")
    family = next((family for family in reversed(FAMILIES) if module in family.timm_modules), None)
    return family.excluded.get(name) if family is not None else REASONS.get(module, UNKNOWN)


def timm_names(pattern: str = "*") -> list[str]:
    """timm's own names, without pretrained tags, sorted; what is registered here beside them is none."""
    import timm

    ours = __name__.partition(".")[0]
    return sorted(
        name for name in timm.list_models(pattern) if not timm.models.model_entrypoint(name).__module__.startswith(ours)
    )


def castable_names(pattern: str = "*") -> list[str]:
    """timm names, without pretrained tags, that a family can castle."""
    return [name for name in timm_names(pattern) if reason_of(name) is None]


def refused_names(pattern: str = "*") -> dict[str, str]:
    """All other timm names and why they can't be castled."""
    reasons = {name: reason_of(name) for name in timm_names(pattern)}
    return {name: why for name, why in reasons.items() if why is not None}
