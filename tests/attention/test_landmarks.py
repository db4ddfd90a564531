"""What makes landmarks stand for tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from castling_convert.attention import folded_form
from castling_convert.attention.landmarks import LandmarksAttention, pooling

from . import formula
from .layers import HEADS, D, config, layer, tokens

LANDMARKS = config(form="landmarks", landmarks=4, prefix_rows=False, depthwise="none")


@torch.no_grad()
def test_landmarks_that_find_groups_of_equal_keys_are_softmax_whatever_the_size_of_a_group() -> None:
    trained = layer(LANDMARKS, 4, 3, 0)
    assert isinstance(trained, LandmarksAttention)
    groups = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3])
    x = tokens(4, batch=1)[:, groups]
    q, k, v = formula.heads_of(trained.qkv, x, HEADS)
    trained.bias.zero_()
    trained.gain.fill_(1)
    # 60 times the direction that gives 1 for a group's key and 0 for the three others.
    keys = k[0, :, [0, 1, 3, 6]]  # heads, 4, d
    trained.directions.copy_(60 * torch.linalg.pinv(keys).transpose(-2, -1))
    torch.testing.assert_close(trained.linear(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=0, atol=1e-12)
    trained.gain.fill_(0)  # as if all groups were as large
    assert (trained.linear(q, k, v) - F.scaled_dot_product_attention(q, k, v)).abs().max() > 1e-2


@torch.no_grad()
def test_entropy_is_that_of_the_weights() -> None:
    trained = layer(LANDMARKS)
    _, k, v = formula.heads_of(trained.qkv, tokens(), HEADS)
    share = (trained.directions @ k.transpose(-2, -1)).softmax(-1)
    keys, values, mass = trained.pool(k, v)
    entropy = torch.special.entr(share).sum(-1, keepdim=True)
    expected = (trained.gain * entropy + trained.bias).transpose(-2, -1)
    torch.testing.assert_close(mass, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(keys, share @ k, rtol=0, atol=1e-12)
    torch.testing.assert_close(values, share @ v, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_sum_of_exponentials_is_told_where_most_of_them_are_zero() -> None:
    """A weight below float32's least is zero, the largest one never."""
    logits = torch.tensor([[-1e4, 0.0, 1e4, 1e4], [3.0, 3.0, 3.0, 3.0]])
    weights, total = pooling(logits)
    torch.testing.assert_close(total, logits.logsumexp(-1, keepdim=True))
    torch.testing.assert_close(weights, logits.softmax(-1))


def test_gradients_of_the_sum_of_exponentials_are_the_weights() -> None:
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    weights, total = pooling(logits)
    (gradient,) = torch.autograd.grad(total.sum(), logits)
    torch.testing.assert_close(gradient, weights.detach(), rtol=0, atol=1e-12)


def test_castling_is_repeatable() -> None:
    torch.manual_seed(0)
    first = layer(LANDMARKS, seed=1)
    torch.manual_seed(5)
    second = layer(LANDMARKS, seed=2)
    assert torch.equal(first.directions, second.directions)


@pytest.mark.parametrize("window", [0, 2])
@torch.no_grad()
def test_a_bias_of_the_keys_is_gone_after_folding(window: int) -> None:
    """It is the same in all logits of a softmax, and the largest number of a pretrained layer's keys."""
    trained = layer(config(form="landmarks", landmarks=3, window=window))
    trained.qkv.bias[HEADS * D : 2 * HEADS * D] += 100
    trained.set_mask(1.0)
    folded = folded_form(trained)
    assert not folded.qkv.bias[HEADS * D : 2 * HEADS * D].any()
    assert folded.softmax_scale == 1
    torch.testing.assert_close(folded(tokens()), trained(tokens()), rtol=0, atol=1e-10)
