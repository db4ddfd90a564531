"""What a launcher has told its processes, in torchrun's words; accelerate uses the same. Nothing heavy is imported."""

from __future__ import annotations

import os


def count() -> int:
    """How many processes were launched together, this one included."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def index() -> int:
    """Which of them this is, from zero."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def sharding() -> str | None:
    """Who was asked by accelerate's launcher to hold a part of the weights in each process; nobody does here."""
    asked = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
    return next((name for name, key in asked.items() if os.environ.get(key, "").lower() == "true"), None)


def is_first() -> bool:
    """Whether this is the one that writes and speaks for all."""
    return index() == 0
