"""The rate of the second phase: as high as the recipe says, or as a few steps of it can be without harm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ..data.randomness import undone_randomness
from . import processes

TRIED, JUDGED, JUDGED_IMAGES = 8, 2, 16
"""Batches that a rate is tried on, and the fewest batches, and images in them, that tell whether the student is better
or worse for it: the loss of four images is a quarter higher by chance now and then."""
RISING = 4
"""Steps over which the rate of a trial rises, if it has so many, and after which it is judged for the first time."""
FACTOR = 4.0
HARM = 1.25
"""How much higher the loss may be after TRIED steps: Adam's first ones are of one size for every weight, and rarely an
improvement; at a rate that destroys the student it is several times as high."""
HOPELESS = 3.0
"""At a step whose own images find the student so much worse than they did before the trial, and than it was on those
that judge, the trial is over."""
LOWEST = 1e-3
"""Of the recipe's rate; a student that even that makes worse is not helped by a lower one."""

Loss = Callable[[Tensor], tuple[Any, ...]]


def some_of(batches: Iterator[Tensor], most: int) -> list[Tensor]:
    """The next ones that a rate is tried and judged on, `most` or as many as there are."""
    some = list(itertools.islice(batches, min(TRIED, most)))
    if some:
        images = some[0].shape[0] * processes.count()
        some += itertools.islice(batches, min(_judging(images), most - len(some)))
    return some


def _judging(images: int) -> int:
    """Batches of so many images that judge a trial."""
    return max(JUDGED, math.ceil(JUDGED_IMAGES / images))


def steps_of_trial(images: int, most: int) -> float:
    """What a trial that does no harm costs, in steps of so many images, where `most` steps follow: a step on each batch
    that a rate is tried on, and as many forwards again, of both models and so half a step each, on these once and on
    those that judge three times."""
    return 1.5 * min(TRIED + _judging(images), most)


def settle_rate(
    student: nn.Module,
    loss: Loss,
    batches: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    update: Callable[[Tensor], None],
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    say: Callable[[str], None],
) -> None:
    """Lower the rates of a fresh `optimizer`, and of `scheduler` with it, until TRIED steps do no harm.

    A pretrained model that its layers have already learned to copy is destroyed in a few steps at a rate that a small
    one needs. Every trial starts from the student as it is, and leaves it and the random state so.

    Args:
        loss: of images [B, C, H, W], first of what it returns. batches: those of `some_of`.
        update: one step of `optimizer` from a loss.
    """
    tries = min(TRIED, len(batches) - JUDGED)
    tried, judged = (batches[:tries], batches[tries:]) if tries > 0 else (batches, batches[-JUDGED:])
    weights = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
    rates = [(group["lr"], group["initial_lr"]) for group in optimizer.param_groups]
    rising = min(RISING, len(tried))

    @torch.no_grad()
    def levels(some: Sequence[Tensor]) -> list[float]:
        return [processes.mean(loss(images)[0]).item() for images in some]

    def reached(factor: float) -> float:
        """The loss after a trial at `factor` of the rates, which ends as soon as it is too high."""
        after = start
        for count, (images, before) in enumerate(zip(tried, own, strict=True), start=1):
            for group, (_, rate) in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor * min(1.0, count / rising)
            found = loss(images)[0]
            if not processes.mean(found.detach()).item() <= HOPELESS * max(before, start):
                after = math.inf
                break
            update(found)
            if count % rising == 0 or count == len(tried):
                after = fmean(levels(judged))
                if not after <= HARM * start:
                    break
        student.load_state_dict(weights)
        optimizer.state.clear()
        return after

    factor = 1.0
    with undone_randomness():
        own, start = levels(tried), fmean(levels(judged))
    if not math.isfinite(start):
        return  # no rate helps; the first step says what is wrong
    while True:
        with undone_randomness():
            harmless = reached(factor) <= HARM * start
        if harmless or factor <= LOWEST:
            break
        factor /= FACTOR
    for group, (now, initial) in zip(optimizer.param_groups, rates, strict=True):
        group["lr"], group["initial_lr"] = now * factor, initial * factor
    rate = min(scheduler.base_lrs)
    scheduler.base_lrs = [base * factor for base in scheduler.base_lrs]
    if factor < 1:
        say(f"the whole student got worse at a rate of {rate:.2g}; lowered to {rate * factor:.2g}")
