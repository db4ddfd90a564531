"""Small timm models for the tests, with parameters of a size at which every term of a formula shows."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers import LayerScale
from torch import nn

import castling_convert as cc
from castling_convert.castling import close_masks

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}

KINDS = {
    "deit": "deit_tiny_patch16_224",
    "deit3": "deit3_small_patch16_224",
    "dinov2": "vit_small_patch14_reg4_dinov2",
    "distilled": "deit_tiny_distilled_patch16_224",
    "clip": "vit_base_patch32_clip_224",
    "siglip": "vit_base_patch16_siglip_224",
}
"""One architecture of each kind of plain ViT that the issue names."""

ATTENTION: dict[str, Any] = {"form": "angular", "normalization": "row_sum", "depthwise": "grid", "kernel_size": 3}

FAST: dict[str, Any] = {"form": "angular", "normalization": "gain", "center": True}
LANDMARKS: dict[str, Any] = {"form": "landmarks", "landmarks": 5}
WINDOW: dict[str, Any] = {"form": "landmarks", "landmarks": 5, "window": 3}
ANGULAR: dict[str, Any] = {"form": "angular", "normalization": "gain", "center": True}
FEATURES: dict[str, Any] = {"form": "features"}
SNIPPET: dict[str, Any] = {"form": "snippet", "depthwise": "tokens", "kernel_size": 9}
"""What the shipped recipes have in place of that; windows of 3, which do not divide grids of 4."""


def tiny(name: str = "vit_tiny_patch16_224", **arguments: Any) -> Any:
    """A small model of an architecture, in eval mode, its parameters shaken."""
    return shake_(timm.create_model(name, **{**SIZE, **arguments})).eval()


@torch.no_grad()
def shake_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random offsets on every parameter; layer-scale gammas and gains around one, so that they count."""
    generator = torch.Generator().manual_seed(seed)
    scales = {id(m.gamma) for m in model.modules() if isinstance(m, LayerScale)}
    scales |= {id(m.gain) for m in model.modules() if hasattr(m, "gain")}
    for parameter in model.parameters():
        if id(parameter) in scales:
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
        else:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def recipe(**attention: Any) -> cc.Recipe:
    """A recipe with explicit attention values, so that a change of the defaults changes no test."""
    form = attention if "form" in attention else {**ATTENTION, **attention}
    return cc.Recipe.parse({"attention": {"depthwise": "grid", "kernel_size": 3, **form}}, "test")


def closed_student(teacher: nn.Module, layers: str | None = None, **attention: Any) -> Any:
    """A castled copy with random gains and depthwise weights and every mask closed, as after training."""
    student = cc.castle(teacher, recipe(**attention), layers)
    shake_(student, seed=1)
    close_masks(student)
    return student.eval()


def images(count: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(7))
