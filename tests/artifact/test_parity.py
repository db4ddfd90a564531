from __future__ import annotations

import math

import pytest
import torch

from castling_convert.artifact import parity as parity_module
from castling_convert.artifact.parity import Parity, Tolerance
from castling_convert.data.probe import probe_images
from castling_convert.tasks import TASKS
from tests.models import tiny


def compare(actual: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance) -> Parity:
    """As logits of classes."""
    return parity_module.compare(actual, expected, tolerance, TASKS["classify"])


def compare_all(batches: list[tuple[torch.Tensor, torch.Tensor]], tolerance: Tolerance) -> Parity:
    """As logits of classes, one batch after the other."""
    comparison = parity_module.Comparison(tolerance, TASKS["classify"])
    for batch in batches:
        comparison.add(*batch)
    return comparison.parity()


def test_equal_logits_hold() -> None:
    logits = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    parity = compare(logits, logits, Tolerance())
    assert parity.holds
    assert (parity.images, parity.max_error, parity.mean_error, parity.agreement) == (2, 0.0, 0.0, 100.0)


def test_errors_and_agreement() -> None:
    parity = compare(torch.tensor([[1.0, 2.5], [2.0, 3.0]]), torch.tensor([[1.0, 2.0], [4.0, 3.0]]), Tolerance(1e-4))
    assert not parity.holds
    assert (parity.max_error, parity.mean_error, parity.agreement) == (2.0, 0.625, 50.0)


@pytest.mark.parametrize(
    ("atol", "rtol", "holds"), [(0.4, 0.0, False), (0.6, 0.0, True), (0.0, 0.1, True), (0.0, 0.01, False)]
)
def test_tolerances(atol: float, rtol: float, holds: bool) -> None:
    assert compare(torch.tensor([[10.5, 1.0]]), torch.tensor([[10.0, 1.0]]), Tolerance(atol, rtol)).holds is holds


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_does_not_hold(value: float) -> None:
    bad, good = torch.tensor([[value, 0.0]]), torch.tensor([[1.0, 0.0]])
    for actual, expected in ((bad, good), (good, bad), (bad, bad)):
        for rtol in (0.0, 1e-3):
            parity = compare(actual, expected, Tolerance(1e9, rtol))
            assert not parity.holds, (actual, expected, rtol)
            assert parity.max_error == math.inf


def test_another_shape_does_not_hold() -> None:
    assert not compare(torch.zeros(2, 3), torch.zeros(2, 4), Tolerance(1.0, 1.0)).holds
    assert not compare(torch.zeros(1, 4), torch.zeros(2, 4), Tolerance(1.0, 1.0)).holds


def test_noise_is_over_the_spread_and_not_over_the_level() -> None:
    """Logits that are all about 100 and differ by 1: noise of 1 is all of what they say, not a hundredth."""
    expected = torch.tensor([[99.0, 101.0]])
    parity = compare(expected + torch.tensor([[1.0, -1.0]]), expected, Tolerance(noise=0.5))
    assert parity.noise == pytest.approx(1)
    assert not parity.holds
    assert compare(expected, expected, Tolerance(noise=0.5)).noise == 0


def test_batch_by_batch_and_value_by_value_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the definitions, over all of the images; on a level far above the spread as well."""
    generator = torch.Generator().manual_seed(0)
    expected = 1e4 + torch.randn(7, 5, generator=generator, dtype=torch.float64) * torch.linspace(1, 3, 7)[:, None]
    actual = expected + torch.randn(7, 5, generator=generator, dtype=torch.float64)
    error = (actual - expected).abs()
    noise = (error.square().mean().sqrt() / expected.std(correction=0)).item()
    agreement = 100 * (actual.argmax(1) == expected.argmax(1)).double().mean().item()
    for at_once in (3, parity_module.AT_ONCE):
        monkeypatch.setattr(parity_module, "AT_ONCE", at_once)
        for size in (1, 3, 7):
            batches = list(zip(actual.split(size), expected.split(size), strict=True))
            found = compare_all(batches, Tolerance(error.max().item()))
            assert found.holds
            assert found.images == 7
            assert found.noise == pytest.approx(noise, rel=1e-6)
            assert found.max_error == error.max()
            assert found.mean_error == pytest.approx(error.mean().item())
            assert found.agreement == pytest.approx(agreement)
            less = Tolerance(0.99 * error.max().item())
            assert not compare_all(batches, less).holds
    assert agreement < 100


@pytest.mark.parametrize("bad", [torch.zeros(1, 4), torch.tensor([[math.nan, 0.0, 0.0]])])
def test_one_batch_that_does_not_hold_is_enough(bad: torch.Tensor) -> None:
    good = torch.zeros(1, 3)
    for batches in ([(good, good), (bad, good)], [(bad, good), (good, good)]):
        for tolerance in (Tolerance(1.0, 1.0), Tolerance(noise=1.0)):
            assert not compare_all(batches, tolerance).holds


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_probe_images_fit_the_model_and_are_the_same_every_time(channels: int) -> None:
    model = tiny(in_chans=channels, img_size=(32, 48))
    first, again = probe_images(model, 3), probe_images(model, 3)
    assert first.shape == (3, channels, 32, 48)
    assert torch.equal(first, again)
    assert first.std() > 0.1
