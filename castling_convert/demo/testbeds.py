"""Small teachers trained here on embedded data, for the demo, the benchmarks and the tests."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from rich.console import Console
from torch import nn

from ..data.loaders import training_loader
from ..data.preprocessing import Preprocessing
from ..data.spec import open_data
from ..distillation.muon import Muon
from ..families import family_of
from ..recipe import DataConfig
from ..tasks import task_of

MODEL = "vit_tiny_patch16_224"


@dataclass(frozen=True)
class Testbed:
    """An embedded data set and the softmax teacher for it: `timm.create_model(model, **arguments)`.

    `floor` is the accuracy in percent that a teacher has to reach to be worth converting, `overrides`
    what of the default recipe depends on this data. With `muon`, `lr` is Muon's rate of the matrices in the blocks,
    and a tenth of it AdamW's of everything else; without, AdamW's of all.
    """

    data: str
    floor: float
    arguments: dict[str, Any]
    steps: int
    batch_size: int
    lr: float
    label_smoothing: float = 0.0
    augmentation: DataConfig = field(default_factory=DataConfig)
    # Benchmarks know their runs by the testbed's repr; no two of them differ in these alone.
    model: str = field(default=MODEL, repr=False)
    muon: bool = field(default=False, repr=False)

    @property
    def overrides(self) -> tuple[str, ...]:
        return (f"data.scale={self.augmentation.scale}",)


_SMALL = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2, "weight_init": "jax"}

_TESTBEDS = (
    Testbed(
        "digits",
        floor=97.0,
        # 36 patches of the 8x8 digits enlarged, and a class token.
        arguments={**_SMALL, "img_size": 24, "in_chans": 1, "num_classes": 10},
        steps=400,
        batch_size=64,
        lr=0.02,
        label_smoothing=0.05,
        augmentation=DataConfig(scale=0.8),
        muon=True,  # AdamW takes 1,200 steps, as in benchmarks/accuracy.py
    ),
    Testbed(
        "relations",
        floor=90.0,
        arguments={**_SMALL, "img_size": 32, "num_classes": 4},  # 64 patches and a class token
        steps=1000,
        batch_size=128,
        lr=2e-3,
    ),
)
TESTBEDS = {testbed.data: testbed for testbed in _TESTBEDS}


def train_teacher(
    testbed: Testbed, seed: int, console: Console | None = None, steps: int | None = None
) -> tuple[nn.Module, float]:
    """A small softmax ViT trained on the testbed's training part, in eval mode on the CPU, and its top-1 in
    percent on the validation part."""
    set_seed(seed)
    steps = steps or testbed.steps
    teacher = timm.create_model(testbed.model, **testbed.arguments)
    channels, size = testbed.arguments.get("in_chans", 3), testbed.arguments["img_size"]
    teacher.pretrained_cfg.update(
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        input_size=(channels, size, size),
        crop_pct=1.0,
        num_classes=testbed.arguments["num_classes"],
    )
    preprocessing = Preprocessing.of(teacher)
    data = open_data(testbed.data, preprocessing, "train", training=testbed.augmentation)
    loader = training_loader(data, testbed.batch_size, steps, start=0, seed=seed, workers=0)
    optimizer = _optimizer(teacher, testbed)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, testbed.lr, steps, pct_start=0.1, cycle_momentum=not testbed.muon
    )
    started = shown = time.monotonic()
    if console is not None:
        console.print(f"training a {testbed.data} teacher for {steps} steps ...")
    for step, (images, labels) in enumerate(loader, start=1):
        loss = F.cross_entropy(teacher(images), labels, label_smoothing=testbed.label_smoothing)
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
    validation = open_data(testbed.data, preprocessing, "validation")
    accuracy = task_of(teacher).measure({"teacher": teacher}, validation)["teacher"]
    if console is not None:
        console.print(f"teacher: {accuracy.top1:.2f} % on {accuracy.images} held-out images")
    return teacher, accuracy.top1


def _optimizer(teacher: nn.Module, testbed: Testbed) -> torch.optim.Optimizer:
    if not testbed.muon:
        return torch.optim.AdamW(teacher.parameters(), testbed.lr, weight_decay=0.05)
    blocks = tuple(f"{block}." for block in family_of(teacher).block_names(teacher))
    groups = [
        {"params": [parameter], "use_fallback": parameter.ndim != 2 or not name.startswith(blocks)}
        for name, parameter in teacher.named_parameters()
    ]
    return Muon(groups, testbed.lr, fallback=0.1, weight_decay=0.05)
