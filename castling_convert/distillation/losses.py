"""What the student is asked to match. Labels are never used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import CastledAttention
from . import processes

PREFIX_WEIGHT = 0.2
"""What the mean error of prefix tokens counts for beside that of the patches, however few they are."""


def channel_error(student: Tensor, teacher: Tensor, prefix: int = 0) -> Tensor:
    """Squared error over the teacher's variance, channel by channel: 0 is a match, 1 as bad as the channel's mean.

    A plain relative error is ruled by a few huge channels, and by a few tokens of huge norm, that pretrained ViTs have.

    Args:
        student, teacher: [B, N, C]; variances are those of the teacher's channels over this batch, all processes' parts
            of it.
        prefix: the first tokens, averaged apart from the patches and added with PREFIX_WEIGHT; by their number alone
            they would count for nothing, and a class token decides everything.
    """
    teacher = teacher.detach().float()
    dims = tuple(range(teacher.ndim - 1))
    variance = processes.variance(teacher, dims)
    floor = (1e-6 * variance.median()).clamp_min(1e-12)  # channels that carry nothing
    error = (student.float() - teacher).square() / torch.maximum(variance, floor)
    if not prefix or prefix >= teacher.shape[1]:
        return error.mean()
    return error[:, prefix:].mean() + PREFIX_WEIGHT * error[:, :prefix].mean()


def feature_distance(student: Tensor, teacher: Tensor, prefix: int, by_channel: bool = False) -> Tensor:
    """One minus the cosine of features [B, N, C]: its mean over prefix tokens plus its mean over patches; 0 to 4.
    `by_channel` adds `channel_error`."""
    distance = 1 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)
    parts = [part.mean() for part in distance.split([prefix, distance.shape[1] - prefix], 1) if part.numel()]
    cosine = torch.stack(parts).sum()
    return cosine + channel_error(student, teacher, prefix) if by_channel else cosine


Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments by place and by name."""


@dataclass(frozen=True)
class Taps:
    """What the tapped modules, by name, were called with and returned at the last forward."""

    inputs: dict[str, Call] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)


@contextmanager
def tap(model: nn.Module, names: Iterable[str]) -> Iterator[Taps]:
    """While open, keep what goes into and comes out of the named submodules of `model` at every forward."""
    taps = Taps()

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, inputs: tuple[Any, ...], more: dict[str, Any], output: Any) -> None:
            taps.inputs[name], taps.outputs[name] = (inputs, more), output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True) for name in names]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def layer_error(layer: CastledAttention, output: Any, expected: Any) -> Tensor:
    """`channel_error` of what a layer returned against what the softmax layer did."""
    return channel_error(layer.tokens(output), layer.tokens(expected), layer.grid.prefix)


def attention_loss(
    layers: Iterable[tuple[str, CastledAttention]], student: dict[str, Any], teacher: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of `layer_error` over the tapped layers, and each layer's own."""
    per_layer = {name: layer_error(layer, student[name], teacher[name]) for name, layer in layers}
    return torch.stack(list(per_layer.values())).mean(), {n: loss.detach() for n, loss in per_layer.items()}
