"""What a launcher has told its processes, in torchrun's words; accelerate uses the same. Nothing heavy is imported."""

from __future__ import annotations

import os


def count() -> int:
    """How many processes were launched together, this one included."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def index() -> int:
    """Which of them this is, from zero."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the one that writes and speaks for all."""
    return index() == 0
