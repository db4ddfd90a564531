from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from castling_convert.attention import AttentionConfig
from castling_convert.attention.angular import GAIN_TO_SCALE, angular_matrix, bounded_gain, linear_angular
from castling_convert.attention.norms import l2_normalize, unit

from .layers import FORMS, config, label, layer, tokens

ANGULAR = [form for form in FORMS if form.form == "angular"]


def qkv(n: int = 20, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(3, 2, 3, n, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n", [1, 20])
@pytest.mark.parametrize("form", ANGULAR, ids=label)
def test_linear_form_is_the_matrix_form(form: AttentionConfig, n: int) -> None:
    q, k, v = qkv(n)
    scale = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64).view(3, 1, 1)
    weights = angular_matrix(q, k, scale, form)
    assert weights.shape == (2, 3, n, n)
    torch.testing.assert_close(linear_angular(q, k, v, scale, form), weights @ v, rtol=0, atol=1e-12)


def test_row_sum_and_centred_weights_sum_to_one() -> None:
    q, k, _ = qkv()
    scale = torch.full((3, 1, 1), 0.6, dtype=torch.float64)
    for form in (f for f in ANGULAR if f.normalization == "row_sum" or f.center):
        sums = angular_matrix(q, k, scale, form).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-12)


def test_a_gain_keeps_all_weights_of_a_row_sum_above_zero() -> None:
    """At an angle of π a weight is 1 - (2/π)·gain."""
    summed, plain = (config(normalization=kind) for kind in ("row_sum", "gain"))
    gain = torch.tensor([-1.0, 0.5, 1.5, 100.0])
    assert bounded_gain(gain, summed).tolist()[:3] == [0, 0.5, 1.5]
    assert 0 < 1 - GAIN_TO_SCALE * bounded_gain(gain, summed)[3] < 0.05
    assert torch.equal(bounded_gain(gain, plain), gain)


@pytest.mark.parametrize("form", [f for f in ANGULAR if f.normalization == "gain"], ids=label)
@torch.no_grad()
def test_the_gain_that_is_fitted_is_the_best(form: AttentionConfig) -> None:
    """In the squared error to the layer's own softmax, head by head."""
    trained, x = layer(form), tokens()
    q, k, v = trained.heads(x)
    softmax = F.scaled_dot_product_attention(q, k, v)

    def errors() -> torch.Tensor:
        return (trained.linear(q, k, v) - softmax).square().sum((0, 2, 3))

    before = errors()
    trained.calibrate(x)
    best, gain = errors(), trained.gain.clone()
    assert (best < before).all()
    for change in (-0.01, 0.01):
        trained.gain.copy_(gain + change)
        assert (errors() > best).all()


def test_unit_has_length_one_and_keeps_zero() -> None:
    x = qkv()[0]
    x[0, 0, 0] = 0
    lengths = unit(x, 1e-12).norm(dim=-1)
    assert lengths[0, 0, 0] == 0
    lengths[0, 0, 0] = 1
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-9)


def test_unit_of_a_large_half_precision_vector() -> None:
    x = torch.full((1, 64), 6e4, dtype=torch.float16)
    torch.testing.assert_close(unit(x, 1e-6), torch.full_like(x, 0.125), rtol=1e-3, atol=0)


def test_l2_normalize_keeps_zero_and_tiny_vectors() -> None:
    z = torch.tensor([[0.0, 0.0], [3e-6, 4e-6], [3.0, 4.0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.6, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(l2_normalize(z), expected, rtol=0, atol=1e-6)
