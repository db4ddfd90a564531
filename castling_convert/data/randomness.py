"""Random numbers that depend on where they are drawn, and not on what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undone_randomness() -> Iterator[None]:
    """Whatever is drawn inside, what comes after draws as if it had not been."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


@contextmanager
def randomness_of(*key: int) -> Iterator[None]:
    """What is drawn inside, on the CPU, is decided by `key` alone; what comes after is not touched."""
    python, numbers, tensors = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    seeds = np.random.SeedSequence(key).generate_state(3)
    try:
        random.seed(int(seeds[0]))
        np.random.seed(int(seeds[1]))
        torch.default_generator.manual_seed(int(seeds[2]))
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.random.set_rng_state(tensors)
