from __future__ import annotations

import torch

from castling_convert.attention.masked_softmax import masked_softmax


def test_keeps_the_entries_above_the_threshold() -> None:
    q, k, v = torch.randn(3, 2, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    softmax = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
    kept = softmax * (softmax > 0.1)
    out, mass, density = masked_softmax(q, k, v, 0.5, torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(out, kept @ v, rtol=0, atol=1e-12)
    torch.testing.assert_close(mass, kept.sum(-1, keepdim=True), rtol=0, atol=1e-12)
    torch.testing.assert_close(density.double(), (kept > 0).double().mean(), rtol=0, atol=1e-6)


def test_an_entry_at_the_threshold_is_dropped() -> None:
    q = k = v = torch.zeros(1, 1, 4, 8)
    _, mass, density = masked_softmax(q, k, v, 1.0, torch.tensor(0.25))
    assert density == 0
    assert mass.count_nonzero() == 0
