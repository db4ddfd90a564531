"""Hugging Face transformers' vision models, from a module in memory: ViT, DeiT, DINOv2 with and without registers,
DINOv3, BEiT, the vision towers of CLIP and SigLIP, Swin; with a classifier or as towers.

transformers itself is not imported here: a model of it that is in memory has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..attention import Reader, TokenGrid
from ..errors import ModelError
from .base import Size
from .called import CalledFamily, follow
from .hub_readers import BiasedReader, HubReader, WindowReader


@dataclass(frozen=True)
class _Kind:
    """One kind of model.

    Attributes:
        module: of transformers.models. attention: its class there, read by `reader`.
        prefix: how many tokens stand before the patches, by the backbone; None where layers take windows.
        classified: what the classifier takes of the last tokens, by the backbone. pooled: what a tower gives of them.
    """

    module: str
    attention: str
    prefix: Callable[[Any], int] | None
    classified: Callable[[Any, Tensor], Tensor]
    pooled: Callable[[Any, Tensor], Tensor]
    reader: type[HubReader] = HubReader


def _first(backbone: Any, x: Tensor) -> Tensor:
    return x[:, 0]


def _first_and_mean(backbone: Any, x: Tensor) -> Tensor:
    return torch.cat([x[:, 0], x[:, 1 + _registers(backbone) :].mean(1)], 1)


def _pooler(backbone: Any, x: Tensor) -> Tensor:
    """transformers' own pooling module, the class token where the tower was made without it."""
    return x[:, 0] if backbone.pooler is None else backbone.pooler(x)


def _average(backbone: Any, x: Tensor) -> Tensor:
    return x.mean(1) if backbone.pooler is None else backbone.pooler(x.transpose(1, 2)).flatten(1)


def _registers(backbone: Any) -> int:
    return getattr(backbone.config, "num_register_tokens", 0)


def _with_registers(backbone: Any) -> int:
    return 1 + _registers(backbone)


KINDS: dict[str, _Kind] = {
    "ViT": _Kind("vit", "ViTAttention", lambda _: 1, _first, _pooler),
    "DeiT": _Kind("deit", "DeiTAttention", lambda _: 2, _first, _pooler),
    "Dinov2": _Kind("dinov2", "Dinov2Attention", lambda _: 1, _first_and_mean, _first),
    "Dinov2WithRegisters": _Kind(
        "dinov2_with_registers", "Dinov2WithRegistersAttention", _with_registers, _first_and_mean, _first
    ),
    "DINOv3ViT": _Kind("dinov3_vit", "DINOv3ViTAttention", _with_registers, _first, _first),
    "Beit": _Kind("beit", "BeitAttention", lambda _: 1, _pooler, _pooler, BiasedReader),
    "CLIP": _Kind(
        "clip", "CLIPAttention", lambda _: 1, lambda _, x: x[:, 1:].mean(1), lambda b, x: b.post_layernorm(x[:, 0])
    ),
    "Siglip": _Kind(
        "siglip", "SiglipAttention", lambda _: 0, lambda _, x: x.mean(1),
        lambda b, x: b.head(x) if b.use_head else x.mean(1),
    ),
    "Swin": _Kind("swin", "SwinAttention", None, _average, _average, WindowReader),
}  # fmt: skip
"""By what the names of the models' classes begin with."""
ENDS = (
    "Model", "VisionModel", "VisionModelWithProjection", "ForImageClassification", "ForImageClassificationWithTeacher",
)  # fmt: skip
BACKBONES = (
    "vit", "deit", "dinov2", "dinov2_with_registers", "beit", "swin", "vision_model", "segformer", "vision_encoder",
)  # fmt: skip
"""Where a model with a head has its backbone."""
TEXT = {"CLIPModel", "SiglipModel"}
"""Models of images and text, whose tower is castled alone."""


def kind_of(model: nn.Module) -> _Kind | None:
    """What is known of a model, by the name of its class or of the one of transformers' that it was made of."""
    for start, kind in KINDS.items():
        if is_of_transformers(model, {start + end for end in ENDS} - TEXT):
            return kind
    return None


def is_of_transformers(model: nn.Module, names: Collection[str]) -> bool:
    """Whether it is of a class of transformers' with one of these names, or of one that was made of such a class."""
    classes = (cls for cls in type(model).__mro__ if cls.__module__.startswith("transformers.models."))
    return any(cls.__name__ in names for cls in classes)


def attention_classes(module: str, names: Mapping[str, type[Reader]]) -> dict[type[nn.Module], type[Reader]]:
    """The readers of attention classes by their names in this module of transformers.models, if it is in memory."""
    found = sys.modules.get(f"transformers.models.{module}.modeling_{module}")
    return {} if found is None else {_attention(found, name): reader for name, reader in names.items()}


def _known(model: nn.Module) -> _Kind:
    kind = kind_of(model)
    assert kind is not None
    return kind


def backbone_of(model: Any) -> Any:
    return next((getattr(model, name) for name in BACKBONES if hasattr(model, name)), model)


class HubFamily(CalledFamily):
    """Its two parts are the backbone up to the last tokens, and what makes logits or one vector an image of them.

    `any_size` is whether the models take images of any, whatever their config says.
    """

    title = "Hugging Face transformers"
    one_size = True
    any_size: ClassVar[bool] = False
    reasons: ClassVar[Mapping[type[nn.Module], str]] = {
        nn.MultiheadAttention: "attention pooling has a single query and is already linear in the tokens"
    }

    @property
    def readers(self) -> Mapping[type[nn.Module], type[Reader]]:  # type: ignore[override]
        found: dict[type[nn.Module], type[Reader]] = {}
        for kind in KINDS.values():
            found |= attention_classes(kind.module, {kind.attention: kind.reader})
        return found

    def matches(self, model: nn.Module) -> bool:
        return kind_of(model) is not None

    def classes(self, model: Any) -> int:
        return model.config.num_labels if hasattr(model, "classifier") or hasattr(model, "cls_classifier") else 0

    def channels(self, model: Any) -> int:
        return backbone_of(model).config.num_channels

    def image_size(self, model: Any) -> Size:
        return pair(backbone_of(model).config.image_size)

    def patch_size(self, model: Any) -> Size:
        return pair(backbone_of(model).config.patch_size)

    def token_grid(self, model: Any) -> TokenGrid | None:
        prefix = _known(model).prefix
        if prefix is None:
            return None
        (height, width), (rows, columns) = self.image_size(model), self.patch_size(model)
        return TokenGrid(height // rows, width // columns, prefix(backbone_of(model)))

    def reader(self, model: Any, name: str) -> Reader:
        reader, module = super().reader(model, name), model.get_submodule(name)
        if type(reader) is BiasedReader:
            backbone = backbone_of(model)
            own = next(layer for layer in backbone.layers if layer.attention is module).relative_position_bias
            places = own if own is not None else backbone.shared_position_bias
            if places is not None:
                grid = reader.grid
                reader.start(places((grid.height, grid.width), dim_size=grid.tokens)[0])
                return reader
        if _known(model).prefix is not None:
            # Some take images of other shapes, without a word or with `interpolate_pos_encoding`.
            embeddings = backbone_of(model).embeddings.modules()
            follow(reader.grid, next(part for part in embeddings if type(part) is nn.Conv2d))
        return reader

    def features(self, model: Any, images: Tensor) -> Tensor:
        return backbone_of(model)(images).last_hidden_state

    def head(self, model: Any, features: Tensor) -> Tensor:
        kind, backbone = _known(model), backbone_of(model)
        if hasattr(model, "cls_classifier"):
            return (model.cls_classifier(features[:, 0]) + model.distillation_classifier(features[:, 1])) / 2
        if hasattr(model, "classifier"):
            return model.classifier(kind.classified(backbone, features))
        pooled = kind.pooled(backbone, features)
        return model.visual_projection(pooled) if hasattr(model, "visual_projection") else pooled


def _attention(module: Any, name: str) -> type[nn.Module]:
    if not hasattr(module, name):
        version = sys.modules["transformers"].__version__
        raise ModelError(
            f"transformers {version} has no {name}; pip install castling-convert[transformers] brings a version that "
            "is known here"
        )
    return getattr(module, name)


def pair(size: Any) -> Size:
    """Of one number or two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
