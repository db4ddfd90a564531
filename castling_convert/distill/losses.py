"""What the student is asked to match. Labels are never used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def relative_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error over the teacher's mean square: 0 is a match, 1 is as bad as all zeros."""
    teacher = teacher.detach().float()
    return F.mse_loss(student.float(), teacher) / teacher.square().mean().clamp_min(1e-12)


def logit_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the class distributions at `temperature`, times its square; [B, classes].

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
    """
    log_p = (student.float() / temperature).log_softmax(-1)
    log_q = (teacher.detach().float() / temperature).log_softmax(-1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


@dataclass(frozen=True)
class Taps:
    """First inputs and outputs of the tapped modules, by name, at the last forward."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def tap(model: nn.Module, names: Iterable[str]) -> Iterator[Taps]:
    """While open, keep what goes into and comes out of the named submodules of `model` at every forward."""
    taps = Taps()

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            taps.inputs[name], taps.outputs[name] = inputs[0], output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def attention_loss(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of `relative_mse` over the tapped layers, and each layer's own."""
    per_layer = {name: relative_mse(output, teacher[name]) for name, output in student.items()}
    return torch.stack(list(per_layer.values())).mean(), {n: loss.detach() for n, loss in per_layer.items()}
