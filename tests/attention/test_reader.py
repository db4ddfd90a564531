"""What readers have in common: heads, biases of places as factors, and regions."""

from __future__ import annotations

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock

from castling_convert.attention import Reader, Reading, Regions, config_of, training_form
from castling_convert.attention.reader import low_rank, refuse_mask, regions_of_mask, split_heads

B, HEADS, N, D = 2, 3, 6, 4


def reading(**values) -> Reading:
    q, k, v = (torch.randn(B, HEADS, N, D, dtype=torch.float64) for _ in range(3))
    return Reading(q, k, v, **values)


def test_factors_behind_q_and_k_are_the_bias() -> None:
    scale = 0.5
    bias = torch.randn(HEADS, N, N, dtype=torch.float64)
    f, g = low_rank(bias, N, scale)
    found = reading(more=(f[None], g[None]))
    q, k = found.extended()
    expected = scale * found.q @ found.k.transpose(-2, -1) + bias
    torch.testing.assert_close(scale * q @ k.transpose(-2, -1), expected)
    assert torch.equal(found.for_softmax()[0], q)  # there is no other bias
    found.bias = bias[None]
    assert torch.equal(found.for_softmax()[0], found.q)
    assert found.for_softmax()[2] is found.bias


def test_without_places_nothing_is_behind() -> None:
    found = reading()
    assert found.extended() == (found.q, found.k)
    assert found.for_softmax() == (found.q, found.k, None)


def test_a_reader_learns_places() -> None:
    reader = Reader()
    assert reader.started() == []
    assert reader.learned_places is None
    assert (reader.extra, list(reader.state_dict())) == (0, [])
    reader.learn_places(torch.ones(HEADS, N, 5), torch.zeros(HEADS, N, 5))
    f, g = reader.learned_places or pytest.fail("it has learned none")
    assert f.shape == g.shape == (1, HEADS, N, 5)
    assert [id(x) for x in reader.started()] == [id(x) for x in reader.parameters()]
    assert reader.extra == 5


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (12, 8)])
def test_regions_are_where_a_mask_is_zero(size: tuple[int, int]) -> None:
    """timm's masks of shifted windows."""
    mask = SwinTransformerBlock(8, size, num_heads=1, window_size=4, shift_size=2).attn_mask
    numbers = regions_of_mask(mask, 4)
    together = numbers[:, :, None] == numbers[:, None]
    assert torch.equal(together, mask == 0)
    assert set(numbers.unique().tolist()) == {0, 1, 2, 3}
    bias = Regions(numbers, numbers, 4).bias(torch.float64)
    assert torch.equal(bias == 0, together[:, None])
    assert (bias[~together[:, None]] == -torch.inf).all()


def test_the_depthwise_residual_stays_within_regions() -> None:
    """Each region convolved by itself, everything else zero."""

    class Windows(Reader):
        num_heads, head_dim, value_dim, softmax_scale, dim = 1, 2, 2, 1.0, 2

        def __init__(self) -> None:
            super().__init__()
            self.proj = torch.nn.Linear(2, 2).double()
            self.grid.height, self.grid.width = 2, 3

    torch.manual_seed(0)
    reader = Windows()
    layer = training_form(reader, config_of({"form": "landmarks", "landmarks": 2, "kernel_size": 3}), reader.grid)
    torch.nn.init.normal_(layer.depthwise.weight)
    v = torch.randn(1, 1, 6, 2, dtype=torch.float64)
    numbers = torch.tensor([[0, 0, 1, 0, 1, 1]])
    found = layer.residual_within(v, Regions(numbers, numbers, 2))
    for number in range(2):
        inside = numbers[0] == number
        alone = v * inside[None, None, :, None]
        convolved = layer.depthwise(alone[:, 0].transpose(1, 2).reshape(1, 2, 2, 3)).flatten(2).transpose(1, 2)
        torch.testing.assert_close(found[:, inside], convolved[:, inside])


def test_heads_are_taken_apart_in_order() -> None:
    x = torch.randn(B, N, 3 * HEADS * D)
    for part, found in zip(x.chunk(3, -1), split_heads(x, HEADS), strict=True):
        assert torch.equal(found, part.unflatten(-1, (HEADS, D)).transpose(1, 2))
    assert len(split_heads(x, HEADS, 1)) == 1


def test_a_mask_is_refused() -> None:
    refuse_mask(None)
    for arguments in ((torch.zeros(1), False), (None, True)):
        with pytest.raises(ValueError, match="takes no attention mask"):
            refuse_mask(*arguments)
