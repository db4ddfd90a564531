"""MACs against a formula worked out by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import castling_convert as cc
from castling_convert.analysis.macs import count_macs, count_parameters
from castling_convert.attention import Shape, castled_cost, softmax_cost
from castling_convert.castling import close_masks

D, DEPTH, HEADS, PATCH, SIDE, CLASSES = 32, 2, 4, 8, 32, 10
PATCHES = (SIDE // PATCH) ** 2
N = PATCHES + 1
HEAD_DIM = D // HEADS
OUTSIDE_ATTENTION = PATCHES * D * 3 * PATCH**2 + DEPTH * (N * D * 3 * D + N * D * D + 2 * N * D * 4 * D) + D * CLASSES


def vit(**arguments):
    values = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": D, "depth": DEPTH, "num_heads": HEADS}
    return timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **(values | arguments)).eval()


def folded(model, *overrides: str):
    student = cc.castle(model, cc.Recipe.load("castling-fast", overrides))
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
    """KᵀV and Q(KᵀV) are N·d² a head each."""
    attention = 2 * N * HEAD_DIM * D
    counted = count_macs(folded(vit(), f"attention.depthwise={depthwise}"))
    assert counted == OUTSIDE_ATTENTION + DEPTH * (attention + residual)


@pytest.mark.parametrize(
    "overrides",
    [(), ("attention.depthwise=none",), ("attention.depthwise=tokens", "attention.kernel_size=9"),
     ("attention.form=features",), ("attention.form=features", "attention.prefix_rows=false"),
     ("attention.form=landmarks", "attention.landmarks=7"), ("attention.form=landmarks", "attention.prefix_rows=false"),
     ("attention.form=landmarks", "attention.window=4"),
     ("attention.form=features", "attention.window=4"), ("attention.prefix_rows=true", "attention.window=2"),
     ("attention.center=false", "attention.normalization=row_sum", "attention.kernel_size=3")],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("side", [SIDE, 2 * SIDE])
def test_the_formulas_of_a_layer_are_what_torch_counts(overrides, side):
    softmax, tokens = vit(img_size=side), (side // PATCH) ** 2 + 1
    castled = folded(softmax, *overrides)
    attention = castled.blocks[0].attn
    shape = Shape(tokens, D, HEADS, HEAD_DIM)
    assert layer_macs(softmax.blocks[0].attn, tokens) == softmax_cost(shape).macs
    assert layer_macs(attention, tokens) == castled_cost(shape, attention.config).macs


def layer_macs(layer: torch.nn.Module, tokens: int) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(1, tokens, D))
    return counter.get_total_flops() // 2


class Written(TorchDispatchMode):
    """Numbers of every tensor that is computed, the largest first."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.sizes.append(out.numel())
        return out


def test_what_is_held_is_what_is_computed():
    """Softmax computes heads·N² numbers at once; castled none as many as q, k and v together."""
    softmax, tokens = vit(img_size=4 * SIDE), (4 * SIDE // PATCH) ** 2 + 1
    softmax.blocks[0].attn.fused_attn = False
    castled = folded(softmax).blocks[0].attn
    largest = {}
    for name, layer in (("softmax", softmax.blocks[0].attn), ("castled", castled)):
        with Written() as written, torch.no_grad():
            layer(torch.zeros(1, tokens, D))
        largest[name] = max(written.sizes)
    assert largest == {"softmax": softmax_cost(Shape(tokens, D, HEADS, HEAD_DIM)).values, "castled": 3 * tokens * D}
    held = castled_cost(Shape(tokens, D, HEADS, HEAD_DIM), castled.config).values
    assert held == 4 * tokens * D + HEAD_DIM * D  # q̂, k̂, v - E[v], the convolved patches, and K̂ᵀV


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
