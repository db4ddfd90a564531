from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import castling_convert as cc
from castling_convert.attention import AttentionConfig, TokenGrid, angular, castled
from castling_convert.attention import folded_form as FoldedAttention
from castling_convert.castling import castled_layers
from castling_convert.recipe import Recipe
from tests.models import recipe, tiny

from . import formula
from .layers import ALL, FORMS, HEADS, D, config, label, layer, tokens

SOFTMAX_START = [form for form in FORMS if form.form != "snippet"]


@pytest.mark.parametrize("threshold", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("form", ALL, ids=label)
@torch.no_grad()
def test_training_form_is_the_formula(form: AttentionConfig, threshold: float) -> None:
    trained, x = layer(form), tokens()
    trained.set_mask(threshold)
    torch.testing.assert_close(trained(x), formula.castled(trained, x, threshold), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ALL, ids=label)
@torch.no_grad()
def test_folded_form_is_the_formula(form: AttentionConfig) -> None:
    trained, x = layer(form), tokens()
    trained.set_mask(1.0)
    folded = FoldedAttention(trained).eval()
    torch.testing.assert_close(folded(x), formula.castled(trained, x, 1.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("form", FORMS, ids=label)
@torch.no_grad()
def test_with_one_prefix_token_or_none_it_is_the_formula(form: AttentionConfig, prefix: int) -> None:
    trained, x = layer(form, prefix=prefix), tokens(12 + prefix)
    trained.set_mask(1.0)
    expected = formula.castled(trained, x, 1.0)
    torch.testing.assert_close(trained(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(FoldedAttention(trained).eval()(x), expected, rtol=0, atol=1e-12)


def test_before_anything_is_trained_a_window_counts_for_three_tenths() -> None:
    student = cc.castle(tiny(), recipe(form="angular", normalization="gain", window=2))
    for _, trained in castled_layers(student):
        assert (trained.window_share == 0.3).all()


@pytest.mark.parametrize("how", ["from_weights", "transposed"])
@pytest.mark.parametrize("form", ALL, ids=label)
@torch.no_grad()
def test_channels_first_is_the_formula(form: AttentionConfig, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, x = layer(form), tokens()
    trained.set_mask(1.0)
    folded = FoldedAttention(trained).eval()
    folded.channels_first = how
    taken = []
    attend = folded.attend_channels_first
    monkeypatch.setattr(folded, "attend_channels_first", lambda x: taken.append(x) or attend(x))
    torch.testing.assert_close(folded(x), formula.castled(trained, x, 1.0), rtol=0, atol=1e-12)
    values = form.model_dump()
    gained = values.get("normalization") == "gain" and values["constant"] == "mean" and not form.prefix_rows
    assert len(taken) == (
        (gained or form.form in ("features", "landmarks")) and not form.window and form.depthwise != "tokens"
    )


@pytest.mark.parametrize("name", ["castling", "castling-fast"])
@pytest.mark.parametrize("part", ["q_norm", "k_norm", "norm"])
@torch.no_grad()
def test_a_norm_of_heads_keeps_tokens_first(part: str, name: str) -> None:
    trained, x = layer(Recipe.load(name).attention), tokens()
    trained.set_mask(1.0)
    setattr(trained, part, nn.LayerNorm(HEADS * D if part == "norm" else D).double())
    folded = FoldedAttention(trained).eval()
    assert not folded.can_be_channels_first
    expected = folded(x)
    folded.channels_first = "from_weights"
    assert torch.equal(folded(x), expected)


@pytest.mark.parametrize("form", FORMS, ids=label)
@torch.no_grad()
def test_float32_is_near_the_formula(form: AttentionConfig) -> None:
    trained, x = layer(form), tokens()
    trained.set_mask(1.0)
    expected = formula.castled(trained, x, 1.0)
    actual = FoldedAttention(trained.float())(x.float())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", SOFTMAX_START, ids=label)
@torch.no_grad()
def test_open_mask_is_softmax_attention(form: AttentionConfig) -> None:
    opened, x = layer(form), tokens()
    opened.set_mask(0.0)
    q, k, v = formula.heads_of(opened.qkv, x, HEADS)
    softmax = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(opened(x), opened.proj(softmax), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", SOFTMAX_START, ids=label)
@torch.no_grad()
def test_a_gate_mixes_softmax_and_linear_form(form: AttentionConfig) -> None:
    """Before the output projection, which is the same, a gate g gives g softmax + (1 - g) linear."""
    trained, x = layer(form), tokens()
    assert trained.proj.bias is not None
    outputs = {}
    for gate in (0.0, 0.3, 1.0):
        trained.set_mask(0.0, gate)
        outputs[gate] = trained(x)
        assert trained.density.item() == pytest.approx(gate)
    torch.testing.assert_close(outputs[0.3], 0.3 * outputs[1.0] + 0.7 * outputs[0.0], rtol=0, atol=1e-12)
    assert trained.closed is False
    trained.set_mask(0.0, 0.0)
    assert trained.closed


@pytest.mark.parametrize("threshold", [0.02, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@torch.no_grad()
def test_recipe_reference_is_the_public_snippet(threshold: float | None, dtype: torch.dtype) -> None:
    form = Recipe.load("reference").attention
    trained, x = layer(form, 7, 7, 1).to(dtype), tokens(50).to(dtype)
    trained.set_mask(1.0 if threshold is None else threshold)
    assert trained.depthwise is not None
    dconv = trained.depthwise.weight[:, 0, :, 0]
    expected = formula.snippet(x, trained.qkv, dconv, trained.proj, HEADS, threshold)
    torch.testing.assert_close(trained(x), expected, rtol=0, atol=1e-6)
    if threshold is None:
        folded = FoldedAttention(trained)
        torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-6)


def test_snippet_mask_decides_something() -> None:
    """The threshold of the test above drops some weights and keeps others."""
    trained = layer(Recipe.load("reference").attention, 7, 7, 1)
    trained.set_mask(0.02)
    trained(tokens(50))
    assert 0.1 < trained.density.item() < 0.9


@pytest.mark.parametrize("part", ["q", "k", "v", "all"])
@pytest.mark.parametrize("form", ALL, ids=label)
def test_zero_vectors_are_finite_with_gradients(form: AttentionConfig, part: str) -> None:
    trained = layer(form)
    zeroed = {"q": [0], "k": [1], "v": [2], "all": [0, 1, 2]}[part]
    rows = torch.cat([torch.arange(i * HEADS * D, (i + 1) * HEADS * D) for i in zeroed])
    with torch.no_grad():
        trained.qkv.weight[rows] = 0
        trained.qkv.bias[rows] = 0
    trained.set_mask(1.0)
    y = trained(tokens())
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained.parameters())


@torch.no_grad()
def test_one_zero_token_among_others_matches_the_formula() -> None:
    for form in FORMS:
        trained, x = layer(form), tokens()
        trained.qkv.bias.zero_()
        x[:, 5] = 0
        trained.set_mask(1.0)
        torch.testing.assert_close(trained(x), formula.castled(trained, x, 1.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [1, 8, 32])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("form", FORMS, ids=label)
@torch.no_grad()
def test_half_precision_is_near_float64(form: AttentionConfig, dtype: torch.dtype, tolerance: float, side: int) -> None:
    half = layer(form, side, side, 0).to(dtype)
    x = tokens(side * side, batch=1).to(dtype)
    exact = copy.deepcopy(half).double()
    for each in (half, exact):
        each.set_mask(1.0)
    expected = exact(x.double())
    for actual in (half(x), FoldedAttention(half)(x)):
        assert actual.dtype == dtype
        assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("form", [f.model_copy(update={"depthwise": "none"}) for f in FORMS], ids=label)
@torch.no_grad()
def test_half_precision_does_not_overflow(form: AttentionConfig) -> None:
    """Vectors whose sum of squares, values whose sum over the tokens, and (token, l2) outputs whose norm is
    beyond float16's 65504."""
    half = layer(form, 36, 36, 0).to(torch.float16)
    half.qkv.bias.fill_(60)  # keys and values with a common offset, as pretrained models have
    exact = copy.deepcopy(half).double()
    for each in (half, exact):
        each.set_mask(1.0)
    x = tokens(36 * 36, batch=1).half()
    expected, actual = exact(x.double()), half(x)
    assert actual.isfinite().all()
    assert (actual.double() - expected).abs().max() <= 1e-2 * expected.abs().max()


@torch.no_grad()
def test_one_token_is_its_own_value() -> None:
    x = tokens(1)
    for form in (config(depthwise="none"), config(normalization="gain", center=True, depthwise="none")):
        single = layer(form, 1, 1, 0)
        single.set_mask(1.0)
        v = formula.heads_of(single.qkv, x, HEADS)[2]
        torch.testing.assert_close(single(x), single.proj(v.transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS, ids=label)
@torch.no_grad()
def test_one_token_open_and_closed(form: AttentionConfig) -> None:
    single, x = layer(form, 1, 1, 0), tokens(1)
    for threshold in (0.0, 0.5, 1.0):
        single.set_mask(threshold)
        torch.testing.assert_close(single(x), formula.castled(single, x, threshold), rtol=0, atol=1e-12)


@torch.no_grad()
def test_grids_of_one_length_differ() -> None:
    square, x = layer(config(), 14, 14, 1), tokens(197)
    wide = copy.deepcopy(square)
    wide.grid = TokenGrid(7, 28, 1)
    for each in (square, wide):
        each.set_mask(1.0)
    torch.testing.assert_close(wide(x), formula.castled(wide, x, 1.0), rtol=0, atol=1e-12)
    assert (wide(x) - square(x)).abs().max() > 1e-3


def test_density_falls_from_one_to_zero() -> None:
    trained, x = layer(config()), tokens()
    densities = []
    for threshold in (0.0, 0.01, 0.05, 0.1, 0.3, 0.9, 1.0):
        trained.set_mask(threshold)
        trained(x)
        densities.append(trained.density.item())
    assert densities[0] == 1
    assert densities[-1] == 0
    assert densities == sorted(densities, reverse=True)
    assert 0 < densities[3] < 1


def test_closed_layer_skips_the_softmax_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the softmax branch ran")

    monkeypatch.setattr(castled, "masked_softmax", refuse)
    trained, x = layer(config()), tokens()
    trained.set_mask(0.999)
    with pytest.raises(AssertionError, match="softmax branch"):
        trained(x)
    trained.set_mask(1.0)
    assert trained(x).isfinite().all()


@pytest.mark.parametrize("threshold", [1.0, 1.5, float("inf")])
@torch.no_grad()
def test_threshold_one_is_exactly_closed_even_for_one_token(threshold: float) -> None:
    """The softmax weight of a single token is one; a mask that kept it would show here."""
    trained, x = layer(config(normalization="gain", constant="mean"), 1, 1, 0), tokens(1)
    trained.set_mask(threshold)
    closed = trained(x)
    assert trained.closed
    assert trained.density == 0
    assert torch.equal(closed, FoldedAttention(trained)(x))
    trained.set_mask(0.5)
    assert not trained.closed
    assert (trained(x) - closed).abs().max() > 1e-3


@pytest.mark.parametrize("form", SOFTMAX_START, ids=label)
def test_gradients_reach_what_was_added_when_closed(form: AttentionConfig) -> None:
    trained = layer(form)
    assert trained.depthwise is not None
    with torch.no_grad():
        trained.depthwise.weight.zero_()  # as castle leaves it
    trained.set_mask(1.0)
    trained(tokens()).square().sum().backward()
    assert trained.added()
    for parameter in (*trained.added(), trained.qkv.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@torch.no_grad()
def test_row_sum_stays_finite_at_any_gain() -> None:
    for gain in (-5.0, 0.0, 1.6, 100.0):
        trained, x = layer(config()), tokens()
        trained.gain.fill_(gain)
        trained.qkv.weight[HEADS * D : 2 * HEADS * D] = -trained.qkv.weight[: HEADS * D]  # k = -q
        trained.qkv.bias[HEADS * D : 2 * HEADS * D] = -trained.qkv.bias[: HEADS * D]
        trained.set_mask(1.0)
        v = formula.heads_of(trained.qkv, x, HEADS)[2]
        y = angular.linear_angular(*formula.heads_of(trained.qkv, x, HEADS), trained.scale(), trained.config)
        # A convex average stays within its values.
        assert (y <= v.amax(-2, keepdim=True) + 1e-9).all()
        assert (y >= v.amin(-2, keepdim=True) - 1e-9).all()


@pytest.mark.parametrize("folded", [False, True])
def test_attention_masks_are_refused(folded: bool) -> None:
    trained, x = layer(config()), tokens()
    trained.set_mask(1.0)
    module = FoldedAttention(trained) if folded else trained
    with pytest.raises(ValueError, match="mask"):
        module(x, attn_mask=torch.zeros(14, 14))
    with pytest.raises(ValueError, match="mask"):
        module(x, is_causal=True)


def test_threshold_is_no_part_of_the_state() -> None:
    assert not {"threshold", "density"} & set(layer(config()).state_dict())


def test_folded_form_holds_no_more_than_inference_needs() -> None:
    trained = layer(config())
    trained.set_mask(1.0)
    folded = FoldedAttention(trained)
    assert [name for name, _ in folded.named_buffers()] == ["head_scale"]
    assert {name.split(".")[0] for name, _ in folded.named_parameters()} == {"qkv", "proj", "depthwise"}
