"""The demo: a digits teacher trained from scratch, then the tool's own road from end to end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from timm.models import save_for_hf
from torch import nn

from . import bundle
from .analysis.accuracy import measure
from .distill.data import Preprocessing, open_data, training_loader
from .errors import BundleError, CheckFailed
from .export import export
from .export.verify import Verification, verify
from .files import writing
from .pipeline import convert
from .recipe import DataConfig, Recipe

# 36 patches of the 8x8 digits, and a class token.
TEACHER = "vit_tiny_patch16_224"
TEACHER_ARGS: dict[str, Any] = {
    "img_size": 24,
    "patch_size": 4,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
    "in_chans": 1,
    "weight_init": "jax",
}
TEACHER_STEPS, BATCH_SIZE, LR = 1100, 64, 2e-3
TEACHER_FLOOR = 97.0
CASTLED_DROP = 1.0
AUGMENTATION = DataConfig(scale=0.8)
# A model this small, trained from scratch, takes a larger step than a pretrained one.
DISTILL = ("distill.steps=500", "distill.optimizer.lr=3e-3", f"data.scale={AUGMENTATION.scale}")


def run(output: Path, seed: int, console: Console | None) -> tuple[dict[str, Any], Verification]:
    """Train, convert, export and verify; the bundle, the ONNX file and the teacher stay on disk.

    Returns:
        The bundle's summary and the verification of its ONNX file on held-out digits.

    Raises:
        CheckFailed: teacher below 97 % or castled model more than one point below it.
    """
    folder = output.with_name(output.name + "-teacher")
    bundle.refuse_in_the_way(output, force=True)
    _refuse_foreign_teacher(folder)
    teacher = train_teacher(seed, console)
    with writing(folder) as fresh:
        save_for_hf(teacher, fresh, safe_serialization=True)
    recipe = Recipe.load("castling", [f"distill.seed={seed}", *DISTILL])
    if console is not None:
        console.print("castling every attention layer and distilling ...")
    summary = convert(
        f"local-dir:{folder}", output, data="digits", recipe=recipe, device="cpu", force=True, console=console
    )
    artifact = export(output)
    result = verify(artifact, bundle_path=output, data="digits")
    teacher_top1, castled_top1 = (summary["accuracy"][name]["top1"] for name in ("teacher", "castled"))
    if teacher_top1 < TEACHER_FLOOR:
        raise CheckFailed(f"the teacher reached {teacher_top1:.2f} % on held-out digits, {TEACHER_FLOOR} % is needed")
    if castled_top1 < teacher_top1 - CASTLED_DROP:
        raise CheckFailed(f"the castled model lost {teacher_top1 - castled_top1:.2f} points, {CASTLED_DROP} is allowed")
    if not result.holds:
        raise CheckFailed(f"{artifact} differs from its bundle by {result.folded.max_error:.1e}")
    return summary, result


def _refuse_foreign_teacher(folder: Path) -> None:
    """A teacher of an earlier demo is replaced, nothing else."""
    if folder.exists() and not (
        folder.is_dir() and {file.name for file in folder.iterdir()} <= {"config.json", "model.safetensors"}
    ):
        raise BundleError(f"{folder} exists and is no teacher of a demo, so it is not replaced; give another --output")


def train_teacher(seed: int, console: Console | None, steps: int = TEACHER_STEPS) -> nn.Module:
    """A small softmax ViT on the digits' training part, in eval mode on the CPU."""
    torch.manual_seed(seed)
    teacher = timm.create_model(TEACHER, num_classes=10, **TEACHER_ARGS)
    size = TEACHER_ARGS["img_size"]
    teacher.pretrained_cfg.update(mean=(0.5,), std=(0.5,), input_size=(1, size, size), crop_pct=1.0, num_classes=10)
    preprocessing = Preprocessing.of(teacher)
    data = open_data("digits", preprocessing, "train", training=AUGMENTATION)
    loader = training_loader(data, BATCH_SIZE, steps, start=0, seed=seed, workers=0)
    optimizer = torch.optim.AdamW(teacher.parameters(), LR, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, pct_start=0.15)
    started = shown = time.monotonic()
    if console is not None:
        console.print(f"training a digits teacher for {steps} steps ...")
    for step, (images, labels) in enumerate(loader, start=1):
        loss = F.cross_entropy(teacher(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        now = time.monotonic()
        if console is not None and (now - shown > 5 or step == steps):
            shown = now
            left = (steps - step) * (now - started) / step
            console.print(f"  step {step}/{steps} loss {loss.item():.3f}  ETA {left:.0f}s")
    teacher.eval()
    accuracy = measure({"teacher": teacher}, open_data("digits", preprocessing, "validation"))["teacher"]
    if console is not None:
        console.print(f"teacher: {accuracy.top1:.2f} % on {accuracy.images} held-out digits")
    return teacher
