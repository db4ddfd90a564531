"""A tiny ViT, its castled student, and random images."""

from __future__ import annotations

import pytest
import timm
import torch

import castling_convert as cc


def tiny_vit(**arguments):
    torch.manual_seed(0)
    values = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **(values | arguments)).eval()


@pytest.fixture
def vit():
    return tiny_vit


@pytest.fixture
def teacher():
    return tiny_vit()


@pytest.fixture
def student(teacher):
    return cc.castle(teacher)


@pytest.fixture
def batches():
    """Three batches of four images [4, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(3)]
