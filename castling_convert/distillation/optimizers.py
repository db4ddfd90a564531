"""The optimisers of the two phases, and the rate at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..castling import castled_layers
from ..families import family_of
from ..recipe import AlignConfig, OptimizerConfig, SettledDistill
from . import processes
from .muon import Muon

ALIGN_WARMUP, ALIGN_RISING = 0.05, 10
"""Share of the first phase, and steps if that is fewer, of a quarter of it at most: Adam's first steps are of one size
for every weight, whatever its gradient, and a phase of some ten steps does not make up for them."""
ALIGN_BETAS = (0.9, 0.95)
"""Of the first phase, whose few hundred steps are too few for AdamW's own 0.999."""
WEIGHT, HEAD_SIZE, MOST = 0.025, 64, 4.0
"""A root mean square of weights that no layer of DINOv2's ViT-S exceeds, for which the rates of the first phase were
chosen, and the dimensions of its heads; and how many times as high a rate gets."""


def align_optimizer(student: nn.Module, teacher: nn.Module, config: AlignConfig) -> torch.optim.Optimizer:
    """AdamW on the castled layers, on what castling added faster than on what they inherit.

    Adam's step is of one size for every weight, so that large weights would learn slowly. As in Adafactor (Shazeer and
    Stern, arXiv 1804.04235, section 8) it grows with their root mean square: of what a layer inherits as its teacher
    has it, of what castling added as it begins, where directions of length one are spread over a head's dimensions.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    known = set(added_parameters(student))
    for name, layer in castled_layers(student):
        added = list(layer.added())
        inherited = [parameter for parameter in layer.parameters() if id(parameter) not in known]
        known |= {id(parameter) for parameter in inherited}  # layers may share some
        groups.setdefault(config.lr * config.added * _larger(layer.head_dim**-0.5, HEAD_SIZE**-0.5), []).extend(added)
        groups.setdefault(config.lr * _larger(_size(teacher.get_submodule(name)), WEIGHT), []).extend(inherited)
    listed = [{"params": parameters, "lr": rate} for rate, parameters in groups.items() if parameters]
    return torch.optim.AdamW(listed, betas=ALIGN_BETAS, weight_decay=0.0, fused=True)


def _larger(size: float, usual: float) -> float:
    """How many times so large, within what has been measured."""
    return min(MOST, max(1.0, size / usual))


def _size(layer: nn.Module) -> float:
    """The root mean square of all its matrices."""
    matrices = [parameter.detach() for parameter in layer.parameters() if parameter.ndim > 1]
    norm = torch.nn.utils.get_total_norm(matrices).item()
    return norm / math.sqrt(max(1, sum(matrix.numel() for matrix in matrices)))


def added_parameters(student: nn.Module) -> dict[int, nn.Parameter]:
    """What castling added to a student, by id."""
    return {id(parameter): parameter for _, layer in castled_layers(student) for parameter in layer.added()}


def whole_optimizer(student: nn.Module, config: SettledDistill) -> torch.optim.Optimizer:
    """The optimiser over what the recipe trains; everything else is frozen in the second phase."""
    settings = config.optimizer
    trained = {id(parameter) for parameter in trained_parameters(student, settings)}
    added = added_parameters(student)
    inside = tuple(f"{block}." for block in family_of(student).block_names(student))
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if id(parameter) not in trained:
            continue
        # timm's convention: no decay on biases, norms, tokens; gains and shares are as few.
        plain = parameter.ndim <= 1 or name.endswith(("gain", "share", "bias", "token", "pos_embed"))
        kind = "plain" if plain else "matrix" if parameter.ndim == 2 and name.startswith(inside) else "decayed"
        groups.setdefault((kind, id(parameter) in added), []).append(parameter)
    listed = [
        {
            "params": parameters,
            "weight_decay": 0.0 if kind == "plain" else settings.weight_decay,
            **({"use_fallback": kind != "matrix"} if settings.name == "muon" else {}),
            **({"lr": settings.lr * settings.added} if new and settings.name == "adamw" else {}),
        }
        for (kind, new), parameters in groups.items()
    ]
    if settings.name == "adamw":
        return torch.optim.AdamW(listed, lr=settings.lr, fused=True)
    return Muon(listed, lr=settings.lr, fallback=settings.fallback)


def trained_parameters(student: nn.Module, settings: OptimizerConfig) -> Iterable[nn.Parameter]:
    """What learns in the second phase."""
    if settings.train == "head":
        return student.parameters()
    if settings.train == "all":
        return family_of(student).trunk(student)
    return (parameter for _, layer in castled_layers(student) for parameter in layer.parameters())


def update(accelerator: Accelerator, optimizer: Any, modules: Iterable[nn.Module], limit: float) -> None:
    """One step from the gradients that `accelerator.backward` has left, averaged over the processes and of each
    module clipped to the norm `limit`.

    The optimisers of both phases hold the same weights. accelerate's own clipping takes the scale of half precision off
    the gradients once for every optimiser and every call.
    """
    modules = list(modules)
    processes.average_gradients(parameter for module in modules for parameter in module.parameters())
    accelerator.unscale_gradients(optimizer)
    for module in modules:
        torch.nn.utils.clip_grad_norm_(module.parameters(), limit)
    optimizer.step()
    optimizer.zero_grad()


def align_rate(steps: int) -> Callable[[int], float]:
    """`falling_rate` of a first phase of so many steps."""
    return falling_rate(steps, max(ALIGN_WARMUP, min(ALIGN_RISING, steps // 4) / max(1, steps)), "linear")


def falling_rate(steps: int, warmup: float, decay: str) -> Callable[[int], float]:
    """The factor on the rate at each of `steps`: a linear rise over the share `warmup`, then a fall to zero."""
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        share = min(1.0, (step - rising) / max(1, steps - rising))
        return 1 - share if decay == "linear" else 0.5 * (1 + math.cos(share * math.pi))

    return factor
