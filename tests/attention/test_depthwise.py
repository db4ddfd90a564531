from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from castling_convert.attention import TokenGrid
from castling_convert.attention.depthwise import depthwise_conv, depthwise_matrix, depthwise_residual

from .layers import config


def values(n: int) -> torch.Tensor:
    return torch.randn(2, 3, n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def random_conv(**form: object) -> torch.nn.Conv2d:
    conv = depthwise_conv(config(**form), 3, 8)
    assert conv is not None
    torch.nn.init.normal_(conv.weight)
    return conv.double()


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("height", "width"), [(7, 28), (14, 14), (1, 6), (6, 1), (2, 3)])
@torch.no_grad()
def test_grid_is_conv2d_on_the_patches(height: int, width: int, prefix: int) -> None:
    v, conv = values(prefix + height * width), random_conv(kernel_size=5)
    picture = v[:, :, prefix:].reshape(2, 3, height, width, 8).permute(0, 1, 4, 2, 3).reshape(2, 24, height, width)
    convolved = F.conv2d(picture, conv.weight, padding=2, groups=24).flatten(2).transpose(1, 2)
    out = depthwise_residual(conv, v, config(kernel_size=5), TokenGrid(height, width, prefix))
    torch.testing.assert_close(out[:, prefix:], convolved, rtol=0, atol=1e-12)
    assert (out[:, :prefix] == 0).all()


@pytest.mark.parametrize("n", [1, 3, 20])
@torch.no_grad()
def test_tokens_is_a_banded_matrix(n: int) -> None:
    form = config(depthwise="tokens", kernel_size=9)
    v, conv = values(n), random_conv(depthwise="tokens", kernel_size=9)
    out = depthwise_residual(conv, v, form, TokenGrid(0, 0, 0))
    expected = (depthwise_matrix(conv, n) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_starts_at_zero_and_none_is_none() -> None:
    conv = depthwise_conv(config(), 3, 8)
    assert conv is not None
    assert conv.weight.count_nonzero() == 0
    assert depthwise_conv(config(depthwise="none"), 3, 8) is None


def test_tokens_that_do_not_fill_the_grid_are_refused() -> None:
    with pytest.raises(RuntimeError, match="15 tokens do not fill a 4x4 patch grid"):
        depthwise_residual(random_conv(), values(15).double(), config(), TokenGrid(4, 4, 0))
