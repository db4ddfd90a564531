"""A small teacher on small crops of photographs: what the recipe for pretrained models does to another kind of model.

    python benchmarks/crops.py          every run that is not in crops.jsonl yet, then crops.md
    python benchmarks/crops.py --table  the page from the runs that are there
    python benchmarks/crops.py --quick  a few steps of each recipe, into benchmarks/.cache; a smoke test

Twenty wallpapers of Debian's desktop packages (see `bed.py`) are the classes, small crops of them the images: 4,800 to
train on and 1,200 others. The teacher, 6 layers of width 128 on 65 tokens, is trained here for some minutes and kept
in the cache. Converted by the shipped recipes, at their own number of steps and batch size.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from bed import fetch, fresh, largest_versions
from PIL import Image
from timm.models import save_for_hf

import castling_convert as cc
from castling_convert.data.loaders import training_loader
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.spec import open_data
from castling_convert.recipe import DataConfig
from castling_convert.tasks import task_of

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
RESULTS, TABLE = HERE / "crops.jsonl", HERE / "crops.md"
CLASSES, TRAIN, VAL, SIDE = 20, 4800, 1200, 64
ARGUMENTS = {"img_size": SIDE, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4, "num_classes": CLASSES}
STEPS, BATCH, RATE = 1500, 64, 1e-3
QUICK = 20
"""Steps of the teacher and of every conversion in a smoke test."""
RECIPES, SEEDS = ("castling", "castling-window", "castling-fast"), (0, 1)


def images(folder: Path) -> Path:
    """`train` and `val`, one folder a photograph."""
    place = folder / "crops"
    if place.is_dir():
        return place
    if not (folder / "bed/packages/done").exists():
        fetch(folder / "bed/packages")
    rng = random.Random(0)
    chosen = sorted(rng.sample(largest_versions(folder / "bed/packages/deb/usr/share"), CLASSES))
    with fresh(place) as part:
        for label, path in enumerate(chosen):
            whole = Image.open(path).convert("RGB")
            whole.thumbnail((1000, 1000))
            for split, count in (("train", TRAIN), ("val", VAL)):
                (part / split / f"{label:02d}").mkdir(parents=True, exist_ok=True)
                for index in range(count // CLASSES):
                    side = int(min(whole.size) * rng.uniform(0.1, 0.3))
                    x, y = rng.randint(0, whole.width - side), rng.randint(0, whole.height - side)
                    crop = whole.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                    crop.save(part / split / f"{label:02d}" / f"{index:04d}.png")
    return place


def teacher_on(data: Path, steps: int) -> Any:
    """The softmax teacher, trained once."""
    folder = CACHE / ("crops-teacher" if steps == STEPS else f"crops-teacher-{steps}")
    if not folder.is_dir():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", **ARGUMENTS)
        model.pretrained_cfg.update(input_size=(3, SIDE, SIDE), crop_pct=1.0, num_classes=CLASSES)
        training = open_data(str(data), Preprocessing.of(model), "train", training=DataConfig())
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
        for step, (batch, labels) in enumerate(training_loader(training, BATCH, steps, 0, 0, 0), start=1):
            loss = F.cross_entropy(model(batch), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 100 == 0:
                print(f"teacher: step {step} of {steps}, loss {loss.item():.2f}", flush=True)
        with fresh(folder) as part:
            save_for_hf(model, part, safe_serialization=True)
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def run(recipe: cc.Recipe, data: Path, teacher: Any) -> dict[str, Any]:
    student = cc.castle(teacher, recipe)
    started = time.monotonic()
    cc.distill(student, teacher, str(data), recipe, device="cpu")
    seconds = time.monotonic() - started
    held_out = open_data(str(data), Preprocessing.of(teacher), "validation")
    found = task_of(teacher).measure({"teacher": teacher, "castled": cc.fold(student)}, held_out)
    return {
        "teacher": found["teacher"].top1, "castled": found["castled"].top1, "agreement": found["castled"].agreement,
        "seconds": round(seconds, 1),
    }  # fmt: skip


def recipe_of(name: str, seed: int, quick: bool) -> cc.Recipe:
    return cc.Recipe.load(name, [f"distill.seed={seed}", *([f"distill.steps={QUICK}"] if quick else [])])


def key_of(name: str, seed: int, quick: bool) -> str:
    recipe = recipe_of(name, seed, quick)
    return json.dumps(recipe.model_dump(mode="json", include={"attention", "distill", "data"}), sort_keys=True)


def page(done: dict[str, dict[str, Any]], quick: bool) -> str:
    lines = []
    for name in RECIPES:
        found = [done[key] for seed in SEEDS if (key := key_of(name, seed, quick)) in done]
        if found:
            drops, same, minutes = (
                ", ".join(f"{value:{form}}" for value in values)
                for values, form in (
                    ((r["castled"] - r["teacher"] for r in found), "+.2f"),
                    ((r["agreement"] for r in found), ".2f"),
                    ((r["seconds"] / 60 for r in found), ".1f"),
                )
            )
            lines.append(f"| {name} | {drops} | {same} | {minutes} |")
    reached = next((f"{record['teacher']:.2f} %" for record in done.values()), "—")
    return f"""# A small teacher on crops of photographs

Six layers of width 128 on 65 tokens, trained here; {CLASSES} classes, {VAL:,} other crops of the same photographs;
the teacher reaches {reached} on them. Shipped recipes at their own steps and batch size, all layers castled,
folded; by seed. Minutes are upper bounds where other work ran beside them. Made by `python benchmarks/crops.py`.

| recipe | points against the teacher | agreement, % | minutes |
|---|---|---|---|
{chr(10).join(lines)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only write the page")
    parser.add_argument("--quick", action="store_true", help="a few steps of each recipe, into benchmarks/.cache")
    arguments = parser.parse_args()
    quick = arguments.quick
    results, table = (CACHE / "crops-quick.jsonl", CACHE / "crops-quick.md") if quick else (RESULTS, TABLE)
    lines = results.read_text().splitlines() if results.exists() else []
    done = {record["key"]: record for record in map(json.loads, lines)}
    todo = [(seed, name) for seed in SEEDS for name in RECIPES if key_of(name, seed, quick) not in done]
    if not arguments.table:
        data = images(CACHE)
        for seed, name in todo:
            teacher = teacher_on(data, QUICK if quick else STEPS)
            record = {"key": key_of(name, seed, quick), **run(recipe_of(name, seed, quick), data, teacher)}
            done[record["key"]] = record
            with results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{name}, seed {seed}: " + json.dumps({k: v for k, v in record.items() if k != "key"}), flush=True)
    table.write_text(page(done, quick))
    print(f"wrote {table}")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
