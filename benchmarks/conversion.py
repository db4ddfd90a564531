"""What a conversion takes: castling, folding and exporting a ViT-L, a training step of a DeiT-S, and whole conversions
by the default recipe, up to the largest ViT that 24 GB hold.

    python benchmarks/conversion.py            writes conversion.md; an hour and more on two cores
    python benchmarks/conversion.py --quick    the smallest case of each part, printed; a smoke test

Random weights and images. Memory is the growth of a process' peak over what it held before: of the ViT-L's steps
one after the other, of each training step in a process of its own. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import Muon as BfloatMuon

import castling_convert as cc
from castling_convert.bench.bench import random_weights_
from castling_convert.bench.latency import Latency, interleave, ratio
from castling_convert.bench.memory import growth
from castling_convert.castling import castled_layers, close_masks
from castling_convert.distillation.budget import settled
from castling_convert.distillation.loop import distill_loss
from castling_convert.distillation.losses import tap
from castling_convert.distillation.optimizers import align_optimizer, whole_optimizer
from castling_convert.distillation.pace import measure_pace

TABLE = Path(__file__).with_suffix(".md")
LARGE, SMALL, QUICK = "vit_large_patch16_224", "deit_small_patch16_224", "vit_tiny_patch16_224"
RECIPE, OPTIMIZED = "castling-fast", "castling"
OLD_CPU = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""Libraries then use no bfloat16 kernels, and no AVX-512."""
SIZES = {224: 16, 512: 4, 768: 2}
"""Images a step, by image size."""
STEPS = {
    "softmax student": None,
    "castled, masks open": (0.0, 1.0),
    "castled, threshold 0.02": (0.02, 1.0),
    "castled, masks closed": (1.0, 1.0),
}
SECONDS = 20
CONVERSIONS = (
    ("vit_small_patch14_dinov2", 140, 8), ("vit_small_patch14_dinov2", 224, 8), ("vit_small_patch14_dinov2", 518, 8),
    ("vit_base_patch14_dinov2", 224, 8), ("vit_large_patch14_dinov2", 224, 4), ("vit_huge_patch14_224", 224, 1),
)  # fmt: skip
"""Model, image size, images a step."""
IMAGES = 10_000
"""Learned from in a conversion."""


def watched(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """What `work` returns, its seconds, and by how many bytes the peak exceeded what was held before."""
    found: list[Any] = []
    started = time.perf_counter()
    peak = growth(lambda: found.append(work()))
    return found[0], time.perf_counter() - started, peak


def large(name: str = LARGE) -> dict[str, tuple[float, int]]:
    """Seconds and bytes of castling, folding and exporting a model; and the bytes of its parameters."""
    model = random_weights_(timm.create_model(name)).eval()
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    student, *castled = watched(lambda: cc.castle(model, RECIPE))
    close_masks(student)
    deploy, *folded = watched(lambda: cc.fold(student))
    found = {"model": (0.0, size), "castle": tuple(castled), "fold": tuple(folded)}
    with tempfile.TemporaryDirectory() as folder:
        tiny = cc.castle(timm.create_model("vit_tiny_patch16_224", depth=1), RECIPE)
        close_masks(tiny)
        for format, suffix in (("onnx", "onnx"), ("openvino", "xml"), ("torch", "pt2")):  # all that they import
            cc.export(cc.fold(tiny), Path(folder) / f"tiny.{suffix}", format=format)
        for format, name in (("onnx", "model.onnx"), ("openvino", "model.xml"), ("torch", "model.pt2")):
            path = Path(folder) / name
            _, *exported = watched(lambda path=path, format=format: cc.export(deploy, path, format=format, batch=1))
            found[f"export to {format}, checked"] = tuple(exported)
    return found


def step_of(name: str, size: int) -> Callable[[], None]:
    """Forward and backward of one distillation step; the optimiser's share is the same for all."""
    teacher: Any = random_weights_(timm.create_model(SMALL, img_size=size)).eval()
    recipe = cc.Recipe.load(RECIPE)
    mask = STEPS[name]
    student: Any = copy.deepcopy(teacher) if mask is None else random_weights_(cc.castle(teacher, recipe))
    for _, layer in castled_layers(student):
        layer.set_mask(*mask)
    student.train()
    names = [f"blocks.{index}.attn" for index in range(len(teacher.blocks))]
    images = torch.randn(SIZES[size], 3, size, size, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        student.zero_grad()
        with tap(teacher, names) as softmax, tap(student, names) as castled:
            distill_loss(student, teacher, images, castled, softmax, recipe)[0].backward()

    return step


def step_times(size: int) -> dict[str, list[float]]:
    """Seconds of every step, in turn."""
    return interleave({name: step_of(name, size) for name in STEPS}, SECONDS, 5)


def step_peak(name: str, size: int) -> int:
    step = step_of(name, size)
    return growth(lambda: [step() for _ in range(2)])


def optimizer_times() -> dict[str, float]:
    """Median seconds of a step of the whole student without its optimiser, and of the step of several optimisers."""
    step = step_of("castled, masks closed", 224)
    found = {"forward and backward": Latency.of(interleave({"": step}, 5, 3)[""]).median / 1e3}
    recipe = cc.Recipe.load(OPTIMIZED)
    teacher: Any = random_weights_(timm.create_model(SMALL))
    student: Any = cc.castle(teacher, recipe)
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)
    matrices = [p for n, p in student.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    muon = recipe.override("distill.optimizer.name=muon").distill
    for name, optimizer in {
        "AdamW, the default": whole_optimizer(student, recipe.distill),
        "AdamW on the layers alone": align_optimizer(student, teacher, recipe.distill.align),
        "Muon (distill.optimizer.name=muon), float32": whole_optimizer(student, muon),
        "timm's Muon, which iterates in bfloat16": BfloatMuon(matrices, lr=1e-9),
    }.items():
        found[name] = Latency.of(interleave({"": optimizer.step}, 2, 2)[""]).median / 1e3
    return found


def conversion(name: str, size: int, batch: int) -> dict[str, float]:
    """Of a conversion by the default recipe, its images as large: seconds of a step in each phase, tokens, the peak of
    memory, all models and states included."""
    teacher: Any = random_weights_(timm.create_model(name, img_size=size)).eval()
    student = cc.castle(teacher, OPTIMIZED)
    changes = (f"distill.batch_size={batch}", f"data.sizes=[{size}]")
    recipe = settled(cc.Recipe.load(OPTIMIZED, changes), student, teacher)
    pace = measure_pace(student, teacher, [torch.randn(batch, 3, size, size) for _ in range(4)], recipe, "cpu")
    parameters = sum(parameter.numel() for parameter in teacher.parameters())
    return {
        "parameters": parameters, "tokens": next(castled_layers(student))[1].grid.tokens,
        "align": pace.align or 0.0, "whole": pace.student or 0.0,
        "step": pace.step(recipe.distill), "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }  # fmt: skip


def conversions() -> str:
    """The section about them."""
    rows = []
    for name, size, batch in CONVERSIONS:
        print(f"a conversion of {name} at {size}x{size} ...", flush=True)
        found = alone("--conversion", name, size, batch)
        minutes = IMAGES / batch * found["step"] / 60
        rows.append(
            f"| {name}, {found['parameters'] / 1e6:,.0f} M | {size} | {found['tokens']} | {batch} | "
            f"{found['align']:.2f} | {found['whole']:.2f} | {minutes:,.0f} | {found['peak'] / 1e9:.1f} |"
        )
    return f"""## A conversion by the default recipe

Seconds of a step of each phase, from the few that `castling convert` takes to tell how long it will train; what
{IMAGES:,} images take by them; and the peak of the process' memory, everything in it. A conversion also keeps what the
teacher makes of the batches it learns from again, 1 GB at most.

| model | image | tokens | batch | layers alone, s | whole student, s | minutes | memory, GB |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def alone(*words: object, **environment: str) -> Any:
    """What this script says when it is called with those words, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, check=True, text=True,
        env=os.environ | environment,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def page() -> str:
    """conversion.md"""
    print("ViT-L ...", flush=True)
    found = alone("--large")
    size = found.pop("model")[1]
    lines = [
        f"| {name} | {seconds:.1f} | {peak / 1e6:,.0f} | {peak / size:.2f} |" for name, (seconds, peak) in found.items()
    ]
    print("optimisers ...", flush=True)
    taken = alone("--optimizers", **OLD_CPU)
    work = taken.pop("forward and backward")
    shares = [f"| forward and backward | {1e3 * work:.0f} | |"]
    shares += [f"| {name} | {1e3 * own:.0f} | {own / (own + work):.0%} |" for name, own in taken.items()]
    rows = []
    for image, batch in SIZES.items():
        print(f"training steps at {image}x{image} ...", flush=True)
        times = alone("--times", image)
        peaks = {name: alone("--peak", name, image) for name in STEPS}
        for name, values in times.items():
            against = ratio(times["softmax student"], values)
            step = f"{Latency.of(values).median:.0f} | {against} | {peaks[name] / 1e6:,.0f}"
            rows.append(f"| {image} | {batch} | {name} | {step} |")
    return f"""# What a conversion takes

Two cores, float32, random weights. Memory is the growth of the process' peak. Made by
`python benchmarks/conversion.py`.

## ViT-L at 224x224

The model's parameters are {size / 1e6:,.0f} MB. Castling and folding make a copy and leave what they were given; the
times of the exports include parity against the model.

| | seconds | memory on top, MB | in models |
|---|---|---|---|
{chr(10).join(lines)}

## The optimiser

One step of DeiT-S, in a process that is told to use no bfloat16 kernels and no AVX-512. The share is of the
optimiser's own time in that of forward, backward and itself, at a batch of {SIZES[224]}.

| | ms | share |
|---|---|---|
{chr(10).join(shares)}

## A distillation step of DeiT-S

Teacher forward, student forward and backward, losses of the default recipe; without the optimiser, whose share is the
same for all. The softmax student is a plain copy of the teacher, with fused attention as timm has it. The ratio is
softmax student over variant, in one interleaved run, with its 95 % bootstrap interval: above 1 the variant is faster.

| image | batch | student | ms | ratio | peak memory, MB |
|---|---|---|---|---|---|
{chr(10).join(rows)}

{conversions()}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="measure the ViT-L in this process")
    parser.add_argument("--optimizers", action="store_true", help="measure the optimisers in this process")
    parser.add_argument("--times", type=int, metavar="SIZE", help="measure the training steps in this process")
    parser.add_argument("--peak", nargs=2, metavar=("STUDENT", "SIZE"), help="measure one's memory in this process")
    parser.add_argument(
        "--conversion", nargs=3, metavar=("MODEL", "SIZE", "BATCH"), help="measure a conversion in this process"
    )
    parser.add_argument("--quick", action="store_true", help="the smallest case of each part, printed")
    given = parser.parse_args()
    torch.manual_seed(0)
    if given.quick:
        print("castle, fold, export:", large(QUICK), flush=True)
        print("optimisers:", alone("--optimizers", **OLD_CPU), flush=True)
        print("bytes of a step:", alone("--peak", "castled, masks closed", 224), flush=True)
        print("seconds of steps:", alone("--times", 224), flush=True)
        print("a conversion:", alone("--conversion", *CONVERSIONS[0]))
    elif given.large:
        print(json.dumps(large()))
    elif given.optimizers:
        print(json.dumps(optimizer_times()))
    elif given.times is not None:
        print(json.dumps(step_times(given.times)))
    elif given.conversion is not None:
        name, size, batch = given.conversion
        print(json.dumps(conversion(name, int(size), int(batch))))
    elif given.peak is not None:
        print(json.dumps(step_peak(given.peak[0], int(given.peak[1]))))
    else:
        TABLE.write_text(page())
        print(f"wrote {TABLE}")


if __name__ == "__main__":
    main()
