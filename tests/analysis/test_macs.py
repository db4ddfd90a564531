"""MACs against a formula worked out by hand."""

from __future__ import annotations

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.analysis.macs import count_macs, count_parameters
from castling_convert.castle import close_masks

D, DEPTH, HEADS, PATCH, SIDE, CLASSES = 32, 2, 4, 8, 32, 10
PATCHES = (SIDE // PATCH) ** 2
N = PATCHES + 1
HEAD_DIM = D // HEADS
OUTSIDE_ATTENTION = PATCHES * D * 3 * PATCH**2 + DEPTH * (N * D * 3 * D + N * D * D + 2 * N * D * 4 * D) + D * CLASSES


def vit(**arguments):
    values = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": D, "depth": DEPTH, "num_heads": HEADS}
    return timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **(values | arguments)).eval()


def folded(model, *overrides: str):
    student = cc.castle(model, cc.Recipe.load("castling", overrides))
    close_masks(student)
    return cc.fold(student)


@pytest.mark.parametrize("fused", [True, False], ids=["fused SDPA", "plain matmul"])
def test_teacher(fused):
    model = vit()
    for block in model.blocks:
        block.attn.fused_attn = fused
    assert count_macs(model) == OUTSIDE_ATTENTION + DEPTH * 2 * N * N * D


@pytest.mark.parametrize(("depthwise", "residual"), [("none", 0), ("grid", PATCHES * 25 * D)])
def test_folded(depthwise, residual):
    """KᵀV and Q(KᵀV) are N·d² a head each; centring the keys is one outer product, d²."""
    attention = 2 * N * HEAD_DIM * D + HEAD_DIM * D
    counted = count_macs(folded(vit(), f"attention.depthwise={depthwise}"))
    assert counted == OUTSIDE_ATTENTION + DEPTH * (attention + residual)


def test_quadratic_against_linear_in_the_tokens():
    small, large = vit(), vit(img_size=2 * SIDE)
    attention = {n: count_macs(model) - outside(n) for n, model in ((N, small), (4 * PATCHES + 1, large))}
    assert attention[4 * PATCHES + 1] / attention[N] == pytest.approx(((4 * PATCHES + 1) / N) ** 2)


def outside(tokens: int) -> int:
    patches = tokens - 1
    return patches * D * 3 * PATCH**2 + DEPTH * (tokens * D * 4 * D + 2 * tokens * D * 4 * D) + D * CLASSES


def test_counting_leaves_the_model_alone():
    model = vit().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_parameters():
    assert count_parameters(torch.nn.Linear(3, 5)) == 20


def test_attention_pooling():
    """A SigLIP feeds a parameter straight into a module, which torch's counter takes only without gradients."""
    model = timm.create_model("vit_base_patch16_siglip_224", img_size=SIDE, depth=1, embed_dim=D, num_heads=HEADS)
    assert count_macs(model) > 0
    assert all(parameter.requires_grad for parameter in model.parameters())
