"""Whether a long run takes more and more memory: 10,000 steps of a tiny conversion, and what the process holds.

    python benchmarks/long_run.py            some minutes; exit code 1 where it grows by 1 % or more
    python benchmarks/long_run.py --quick    600 steps, too few to judge by

Both phases of the recipe, with checkpoints, metrics and probes as in any run. They hold different things, so each is
judged by itself: what the process holds after a tenth of the phase against what it holds in the last tenth of it,
medians of both.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import timm
import torch

import castling_convert as cc
from castling_convert.distillation.loop import distill
from castling_convert.distillation.progress import Progress

STEPS, QUICK = 10_000, 600
ALLOWED = 0.01
TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 10}


class Watch(Progress):
    """Remembers what the process holds after every step, in bytes, by phase."""

    def __init__(self, workdir: Path) -> None:
        super().__init__(workdir)
        self.process = psutil.Process()
        self.held: dict[str, list[int]] = {}

    def step(self, *, step: int, phase: str, images: int, **metrics: Any) -> None:
        super().step(step=step, phase=phase, images=images, **metrics)
        self.held.setdefault(phase, []).append(self.process.memory_info().rss)


def growth(held: Sequence[int]) -> float:
    """From the second tenth of a phase to its last, as a share."""
    tenth = max(1, len(held) // 10)
    return median(held[-tenth:]) / median(held[tenth : 2 * tenth]) - 1


def measure(steps: int) -> dict[str, list[int]]:
    """What is held after every step of both phases."""
    torch.manual_seed(0)
    teacher = timm.create_model("vit_tiny_patch16_224", **TINY).eval()
    settings = [f"distill.steps={steps}", "distill.batch_size=4", "distill.align.share=0.5", "attention.landmarks=4",
                f"distill.checkpoint_every={max(1, steps // 20)}"]  # fmt: skip
    recipe = cc.Recipe.load("castling", settings)
    student = cc.castle(teacher, recipe)
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder))
        probe = torch.randn(8, 3, 16, 16)
        distill(
            student, teacher, "digits", recipe, device="cpu", workdir=Path(folder), progress=watch,
            probe=lambda model: {"spread": model(probe).std().item()},
        )  # fmt: skip
    return watch.held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    steps = QUICK if parser.parse_args().quick else STEPS
    torch.set_num_threads(1)
    started = time.monotonic()
    held = measure(steps)
    grown = {phase: growth(values) for phase, values in held.items()}
    for phase, values in held.items():
        print(
            f"{phase}: {len(values)} steps, {median(values) / 1e6:.1f} MB, grown by {grown[phase]:+.2%} after warm-up"
        )
    worst = max(grown.values())
    print(f"{steps} steps in {time.monotonic() - started:.0f} s")
    if steps < STEPS:
        print(f"too few steps to judge by: {worst:+.2%}")
        return 0
    print(f"memory {'holds' if worst < ALLOWED else 'GROWS'}: {worst:+.2%} at most, {ALLOWED:.0%} is allowed")
    return 0 if worst < ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
