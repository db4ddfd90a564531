"""What the files of a bundle are called, the version of its format, and the name that timm knows it by."""

from __future__ import annotations

from pathlib import Path

FORMAT = 2
"""Version of the `castling` section in `config.json`: 1 had no `attention.form`, and is read as well."""

ARCHITECTURE = "castled"
"""In timm's registry, see `timm_entry`."""

CONFIG, WEIGHTS, RECIPE, METRICS, SUMMARY = (
    "config.json", "model.safetensors", "recipe.yaml", "metrics.jsonl", "summary.json"
)  # fmt: skip
TRAIN = "train"
TRAINED = "train/trained.safetensors"
STATE = "train/state"
REJECTED = "train/rejected"
PLAN = "train/plan.json"
ALIGNED = "train/aligned.safetensors"
TRACKED = ("train/tensorboard",)
"""Folders of what trackers write, see `distillation.tracking`; they are kept when the bundle is published."""
IN_TRAIN = {Path(name).name for name in (TRAINED, STATE, REJECTED, PLAN, ALIGNED, METRICS, *TRACKED)}
