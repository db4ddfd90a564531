"""Where a run is trained, by accelerate, and how its caller's own accelerate is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import patch_environment

from ..errors import ModelError, Wanted
from . import processes

DEVICE = Wanted((str, torch.device), ModelError, "a word, such as 'cpu' or 'cuda:1'")

ALONE = {"LOCAL_RANK": "-1", "WORLD_SIZE": "1", "ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "false"}
"""What accelerate is to believe of its process: it wraps no model, and what the processes share is in `processes`."""


@contextmanager
def accelerate_apart() -> Iterator[None]:
    """While open, accelerate is as in a process that has not used it yet; then what the caller had is back.

    Its state belongs to the process, and it refuses to be set up twice in different ways. There is no public way to do
    this.
    """
    states = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, values in zip(states, before, strict=True):
            state.clear()
            state.update(values)


def make_accelerator(
    device: str | torch.device | None, precision: str = "fp32", tracked: dict[str, Any] | None = None
) -> Accelerator:
    """accelerate on the device that was asked for, the best there is for None; inside `accelerate_apart`. `tracked` is
    what it is told of trackers.

    Raises:
        ModelError: the device is not here, or can't train in that precision.
    """
    processes.join()
    if processes.count() > 1 and not torch.cuda.is_available():
        device = device or "cpu"
    kind, _, index = str(device or "").partition(":")
    if processes.count() > 1 and index:
        raise ModelError(f"device {device} is one, and each of {processes.count()} processes has its own; use {kind}")
    if device is not None and not _is_here(kind, index):
        raise ModelError(f"device {device} is not here; use --device cpu, or see: castling doctor")
    if precision == "fp16" and (kind == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())):
        raise ModelError("distill.precision=fp16 needs a GPU; use fp32 or bf16 on the CPU")
    if kind == "cuda" and index:
        torch.cuda.set_device(int(index))
    mixed = "no" if precision == "fp32" else precision
    with patch_environment(**ALONE):
        return Accelerator(cpu=kind == "cpu", mixed_precision=mixed, **(tracked or {}))


def _is_here(kind: str, index: str) -> bool:
    if kind == "cuda":
        return (not index or index.isdecimal()) and int(index or 0) < torch.cuda.device_count()
    return not index and (kind == "cpu" or (kind == "mps" and torch.backends.mps.is_available()))
