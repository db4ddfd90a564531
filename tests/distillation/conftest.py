"""A tiny ViT, its castled student, and random images."""

from __future__ import annotations

import pytest
import torch

import castling_convert as cc


@pytest.fixture
def teacher(vit):
    return vit()


@pytest.fixture
def student(teacher):
    return cc.castle(teacher)


@pytest.fixture
def batches():
    """Three batches of four images [4, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(3)]
