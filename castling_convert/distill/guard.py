"""The rate of the second phase: as high as the recipe says, or as a few steps of it can be without harm."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

TRIED, JUDGED = 8, 2
"""Batches that a rate is tried on, and batches that tell whether the student is better or worse for it."""
FACTOR = 4.0
HARM = 1.5
"""How much higher the loss may be after TRIED steps: Adam's first ones are of one size for every weight, and rarely an
improvement; at a rate that destroys the student it is several times as high."""
LOWEST = 1e-3
"""Of the recipe's rate; a student that even that makes worse is not helped by a lower one."""

Loss = Callable[[Tensor], tuple[Tensor, Any, Any]]


def settle_rate(
    student: nn.Module,
    loss: Loss,
    batches: Iterator[Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    steps: int,
    clip_grad: float,
    say: Callable[[str], None],
) -> Iterator[Tensor]:
    """Lower the rates of a fresh `optimizer`, and of `scheduler` with it, until TRIED steps do no harm.

    A pretrained model that its layers have already learned to copy is destroyed in a few steps at a rate that a small
    one needs. Every trial starts from the student as it is, and leaves it so; random numbers are drawn as if there
    had been none.

    Args:
        loss: of images [B, C, H, W], first of what it returns. steps: of the phase.

    Returns:
        The batches, those that were tried on included.
    """
    taken = list(itertools.islice(batches, min(TRIED + JUDGED, steps)))
    tried, judged = taken[:-JUDGED] or taken, taken[-JUDGED:]
    weights = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
    settings = [dict(group) for group in optimizer.param_groups]
    random = torch.get_rng_state()

    @torch.no_grad()
    def level() -> float:
        return sum(loss(images)[0].item() for images in judged) / len(judged)

    start, factor = level(), 1.0
    while True:
        reached = start
        for count, images in enumerate(tried, start=1):
            for group, setting in zip(optimizer.param_groups, settings, strict=True):
                group["lr"] = setting["initial_lr"] * factor * min(1.0, count / 4)
            loss(images)[0].backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            if count % 4 == 0 or count == len(tried):
                reached = level()
                if not reached <= HARM * start:
                    break
        student.load_state_dict(weights)
        optimizer.state.clear()
        torch.set_rng_state(random)
        if reached <= HARM * start or factor <= LOWEST:
            break
        factor /= FACTOR
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group["initial_lr"] = setting["initial_lr"] * factor
        group["lr"] = setting["lr"] * factor
    rate = min(scheduler.base_lrs)
    scheduler.base_lrs = [base * factor for base in scheduler.base_lrs]
    if factor < 1:
        say(f"the whole student got worse at a rate of {rate:.1g}; lowered to {rate * factor:.1g}")
    return itertools.chain(taken, batches)
