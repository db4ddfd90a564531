"""Several processes that train one student, each on its part of every batch. Alone, nothing here does anything.

Every process holds the whole student, and its gradients are averaged over the processes once a step, after the backward
pass. torch's DistributedDataParallel does that inside of a model's own `forward`, and neither phase goes through it:
the first calls the layers one by one, the second features and head apart. One sum a step is the same in both phases,
and leaves the model what it is. It gives up that DDP sends the first gradients while the last are still computed, and
that FSDP and ZeRO hold a part of the weights only; a castled ViT fits where its softmax one did.

Whatever else is said of a whole batch is made of the parts here too: losses, the teacher's variances, the images that
calibrate. A run is then, up to rounding, the run of one process with the same batches.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import DataError, ProcessLost, RecipeError
from .launched import count, index, is_first, sharding

__all__ = [
    "any_of", "average_gradients", "collected", "count", "first_of", "gathered", "index", "is_first", "join", "leave",
    "mean", "mean_of", "on_first", "part_of", "refuse_unequal_parts", "same_weights", "sharding", "variance",
]  # fmt: skip

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long a process waits for another. The end of one is noticed at once; the others may wait for an evaluation."""


def join() -> None:
    """Meet the other processes, on the first call. Where there are GPUs each has its own."""
    if count() == 1 or dist.is_initialized():
        return
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", index())) % gpus)
    with _together():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)


def leave() -> None:
    """What `join` opened is closed; those that still wait for this process learn that it is gone."""
    if count() > 1 and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Around what all have to do."""
    try:
        yield
    except (RuntimeError, pickle.UnpicklingError, EOFError):  # it depends on where one was when the other ended
        raise ProcessLost(
            f"process {index()} of {count()} has lost another, which ended without a word; go on with the same "
            "command and --resume where a step was saved"
        ) from None


def on_first(work: Callable[[], T]) -> T:
    """What `work` returns or raises in the first process, which alone does it, in every one of them."""
    if count() == 1:
        return work()
    join()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = work()
        except BaseException as error:  # noqa: BLE001 - a Ctrl-C too: the others wait
            outcome[1] = error
    with _together():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def collected(value: T) -> list[T]:
    """Of every process, in their order."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with _together():
        dist.all_gather_object(values, value)
    return values


def first_of(value: T | None) -> T | None:
    """Of the first process that has one."""
    return next((each for each in collected(value) if each is not None), None)


def any_of(*flags: bool) -> Sequence[bool]:
    """For each flag, whether it is up in any process."""
    if count() == 1:
        return flags
    found = torch.tensor(flags, dtype=torch.int32)
    with _together():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return [bool(flag) for flag in found]


def mean(values: Tensor) -> Tensor:
    """Over the processes."""
    if count() == 1:
        return values
    total = values.detach().clone()
    with _together():
        dist.all_reduce(total)
    return total / count()


def mean_of(loss: Tensor, *more: dict[str, Tensor]) -> tuple[Any, ...]:
    """A step's losses, all of them scalars, over the processes."""
    if count() == 1:
        return loss, *more
    means = iter(mean(torch.stack([loss.detach(), *(value for part in more for value in part.values())])))
    return next(means), *({name: next(means) for name in part} for part in more)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Over the processes, in place, by one sum of them all."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    averaged = mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, part in zip(gradients, averaged.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def gathered(part: Tensor) -> Tensor:
    """The whole batch, of which every process has an equal part."""
    if count() == 1:
        return part
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(count())]
    with _together():
        dist.all_gather(parts, part.detach().contiguous())
    return torch.cat(parts)


def variance(part: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Over `dims` of the whole batch, of which every process has an equal part; there is no gradient."""
    if count() == 1:
        return part.var(dims, unbiased=False)
    local = torch.stack(torch.var_mean(part, dims, unbiased=False))
    variances, means = gathered(local[None]).unbind(1)  # processes, C
    return variances.mean(0) + means.var(0, unbiased=False)


def same_weights(model: nn.Module) -> None:
    """Give every process what the first one's `model` holds."""
    if count() == 1:
        return
    with _together():
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def part_of(images: Tensor) -> Tensor:
    """This process's part of a batch that every process has read whole.

    Raises:
        DataError: there are no equal parts.
    """
    if len(images) % count():
        raise DataError(
            f"a batch of {len(images)} images can't be shared out equally among {count()} processes; give batches of "
            "a multiple of that"
        )
    size = len(images) // count()
    return images[index() * size : (index() + 1) * size] if count() > 1 else images


def refuse_unequal_parts(batch_size: int) -> None:
    """Raise RecipeError for a batch that can't be shared out equally."""
    if batch_size % count():
        nearest = max(1, round(batch_size / count())) * count()
        raise RecipeError(
            f"distill.batch_size={batch_size} is of all processes together, and {count()} can't share it out equally; "
            f"use --set distill.batch_size={nearest}"
        )
