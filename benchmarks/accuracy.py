"""Accuracy of conversions: variants of the recipe, seeds and step budgets, on two testbeds.

    python benchmarks/accuracy.py            every run that is not in accuracy.jsonl yet, then accuracy.md
    python benchmarks/accuracy.py --quick    a subset in about ten minutes, to a folder of its own
    python benchmarks/accuracy.py --table    accuracy.md from the runs that are there

Every run is one line of `accuracy.jsonl`, known by testbed, seed and the whole resolved recipe, so that
an interrupted table goes on where it stopped and a changed recipe is run again. Runs are independent
processes of one thread each, as many as there are cores.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from bed import fresh
from timm.models import save_for_hf
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import castling_convert as cc
from castling_convert.artifact.onnx_model import OnnxModel
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.spec import open_data
from castling_convert.demo.testbeds import TESTBEDS, train_teacher
from castling_convert.distillation.progress import Progress
from castling_convert.errors import CheckFailed
from castling_convert.tasks import task_of

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
RESULTS, TABLE = HERE / "accuracy.jsonl", HERE / "accuracy.md"
SEEDS = (0, 1, 2)
BEDS = ("digits", "relations")
# The demo's, trained by AdamW for three times as long: earlier tables are of such teachers.
DIGITS = replace(TESTBEDS["digits"], steps=1200, lr=2e-3, muon=False)
# The same images and recipe. The wide one has larger patches, and its teacher a rate of its own, to be trained in time.
SHAPES = {
    "12 layers": replace(DIGITS, arguments=DIGITS.arguments | {"depth": 12}),
    "768 wide": replace(
        DIGITS,
        arguments=DIGITS.arguments | {"embed_dim": 768, "depth": 2, "num_heads": 12, "patch_size": 6},
        floor=96.0,
        lr=4e-4,
        steps=1000,
    ),
}
ALL_BEDS = {**TESTBEDS, "digits": DIGITS, **SHAPES}
SHORT, LONG = (100, 400), 1600
ATTEMPTS = 5
"""At a teacher."""

RECIPES = ("castling", "castling-window", "castling-fast", "reference")
# What is changed against the recipe `castling`; the group is a section of the table.
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Attention": {
        "half as many landmarks": ("attention.landmarks=32",),
        "learned angular features in place of landmarks": ("attention={form: features}",),
        "no softmax rows for the class token": ("attention.prefix_rows=false",),
        "no depthwise": ("attention.depthwise=none",),
    },
    "Phases": {
        "layers alone, nothing after": ("distill.align.share=1",),
        "half of the steps with layers alone": ("distill.align.share=0.5",),
        "the whole student from the first step on": ("distill.align.share=0",),
        "every batch once": ("distill.align.echo=1",),
        "the classifier as it is": ("distill.refit=false",),
    },
    "Masks": {
        "the teacher's layer on a gate, first layer first": (
            "distill.mask.schedule=gate", "distill.mask.branch=teacher", "distill.mask.order=first",
            "distill.mask.closed_from=0.7",
        ),
        "own softmax by a threshold": ("distill.mask.schedule=threshold", "distill.mask.closed_from=0.7"),
    },
    "Training": {
        "no guard": ("distill.optimizer.guard=false",),
        "Muon on the whole student": ("distill.optimizer.name=muon", "distill.optimizer.guard=false"),
        "weights averaged (decay 0.97)": ("average=0.97",),
    },
}  # fmt: skip
QUICK = ("castling", "castling-fast", "reference", "layers alone, nothing after")
LONG_RUNS = RECIPES
# On generated images: recipe and steps of what is taken without --data, and of what is taken with it.
WITHOUT_DATA = {"generated, datafree": ("datafree", 1200), "generated, castling": ("castling", SHORT[1])}
# Which blocks stay softmax, for the same budget: what `--layers auto` finds, and a rule that looks at nothing.
RULES = ("auto", "last")
BATCH = 64
"""Images of a step, of all recipes."""
MAX_DROP = 0.2
RULE_STEPS = (LONG, SHORT[1])


def recipe_for(variant: str, bed: str, seed: int, steps: int) -> tuple[Any, dict[str, float]]:
    """The resolved recipe of a run, and what the benchmark itself adds to it."""
    name = variant if variant in RECIPES else WITHOUT_DATA.get(variant, ("castling",))[0]
    changes = next((group[variant] for group in VARIANTS.values() if variant in group), ())
    extra = {key: float(value) for key, value in (c.split("=") for c in changes) if key == "average"}
    overrides = [c for c in changes if not c.startswith("average=")]
    fixed = [f"distill.seed={seed}", f"distill.steps={steps}", f"distill.batch_size={BATCH}"]
    if variant not in WITHOUT_DATA:
        fixed += ALL_BEDS[bed].overrides
    return cc.Recipe.load(name, [*fixed, *overrides]), extra


def key_of(bed: str, variant: str, seed: int, steps: int) -> str:
    """What decides a run's outcome: the testbed with its teacher, and the whole resolved recipe."""
    recipe, extra = recipe_for(variant, bed, seed, steps)
    values = recipe.model_dump(mode="json", include={"layers", "attention", "distill", "data"})
    for free in ("images", "checkpoint_every", "checkpoint_minutes"):
        values["distill"].pop(free)
    said = [repr(ALL_BEDS[bed]), values, extra]
    said += [variant] if variant in WITHOUT_DATA else [variant, MAX_DROP] if variant in RULES else []
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def teacher_for(bed: str, seed: int) -> Any:
    """The testbed's softmax teacher, trained once and kept in the cache. One that does not learn its task teaches
    nothing: the next seed's, ten further on, takes its place."""
    testbed = ALL_BEDS[bed]
    digest = hashlib.sha256(repr(testbed).encode()).hexdigest()[:8]
    folder = CACHE / f"{testbed.data}-{seed}-{digest}"
    if not folder.is_dir():
        for attempt in range(seed, seed + 10 * ATTEMPTS, 10):
            teacher, top1 = train_teacher(testbed, attempt)
            if top1 >= testbed.floor:
                break
            print(f"the {bed} teacher of seed {attempt} reached {top1} %, {testbed.floor} % is needed", flush=True)
        else:
            raise SystemExit(f"no {bed} teacher of {ATTEMPTS} reached {testbed.floor} %")
        with fresh(folder) as part:
            save_for_hf(teacher, part, safe_serialization=True)
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def run(bed: str, variant: str, seed: int, steps: int) -> dict[str, Any]:
    """One conversion: all layers castled, all masks closed, folded, and measured on held-out images."""
    torch.set_num_threads(1)
    teacher = teacher_for(bed, seed)
    recipe, extra = recipe_for(variant, bed, seed, steps)
    student = cc.castle(teacher, recipe)
    averaging = Averaging(student, extra["average"]) if extra else None
    started = time.monotonic()
    images = "generated" if variant in WITHOUT_DATA else ALL_BEDS[bed].data
    cc.distill(student, teacher, images, recipe, device="cpu", progress=averaging)
    seconds = time.monotonic() - started
    if averaging is not None:
        averaging.put_back()
    deploy = cc.fold(student)
    runtime, classifier = "torch", deploy
    if variant in RECIPES or variant in WITHOUT_DATA:
        file = CACHE / f"{os.getpid()}.onnx"
        cc.export(deploy, file)
        runtime, classifier = "onnxruntime", OnnxModel(file)
        file.unlink()
    data = open_data(ALL_BEDS[bed].data, Preprocessing.of(teacher), "validation")
    results = task_of(teacher).measure({"teacher": teacher, "castled": classifier}, data)
    return {
        "key": key_of(bed, variant, seed, steps),
        "bed": bed, "variant": variant, "seed": seed, "steps": steps, "runtime": runtime,
        "images": results["teacher"].images,
        "teacher": results["teacher"].top1, "castled": results["castled"].top1,
        "agreement": results["castled"].agreement, "seconds": round(seconds, 1),
    }  # fmt: skip


def run_rule(bed: str, rule: str, seed: int, steps: int) -> dict[str, Any]:
    """The fewest softmax blocks within MAX_DROP: by `--layers auto`, or by keeping the last k.

    `auto` plans on one half of the validation images and is judged on the other. The rule is shown the
    images that it is judged on, all of them, which is to its advantage.
    """
    torch.set_num_threads(1)
    teacher = teacher_for(bed, seed)
    recipe, _ = recipe_for(rule, bed, seed, steps)
    depth = len(teacher.blocks)
    started = time.monotonic()

    def convert(**options: Any) -> tuple[list[int], float, float]:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "bundle"
            try:
                summary = cc.convert(teacher, output, data=bed, recipe=recipe, device="cpu", **options)
            except CheckFailed:  # a result as well
                rejected = output / "train" / "rejected" / "summary.json"
                if not rejected.exists():  # no plan stays within the budget: everything is kept
                    return list(range(depth)), 0.0, 0.0
                summary = json.loads(rejected.read_text())  # lost more than MAX_DROP where it was not planned
        kept = [block for block, layer in enumerate(summary["layers"]) if layer["status"] == "kept"]
        return kept, summary["accuracy"]["teacher"]["top1"], summary["accuracy"]["castled"]["top1"]

    if rule == "auto":
        kept, top1, castled = convert(layers="auto", max_drop=MAX_DROP)
    else:
        whole = read(RESULTS).get(key_of(bed, "castling", seed, steps))
        for k in range(depth):
            if k == 0 and whole is not None:  # is in the table already
                kept, top1, castled = [], whole["teacher"], whole["castled"]
            else:
                kept, top1, castled = convert(layers=",".join(map(str, range(depth - k))))
            if top1 - castled <= MAX_DROP:
                break
        else:
            kept, castled = list(range(depth)), top1
    return {
        "key": key_of(bed, rule, seed, steps),
        "bed": bed, "variant": rule, "seed": seed, "steps": steps, "runtime": "torch",
        "kept": kept, "blocks": depth,
        "teacher": top1, "castled": castled, "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


class Averaging(Progress):
    """An exponential average of the student's weights after every step."""

    def __init__(self, student: torch.nn.Module, decay: float) -> None:
        super().__init__()
        self.student = student
        self.average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def step(self, **values: Any) -> None:
        self.average.update_parameters(self.student)

    def put_back(self) -> None:
        self.student.load_state_dict(self.average.module.state_dict())


def jobs(quick: bool) -> list[tuple[str, str, int, int]]:
    """Every run, as testbed, variant, seed and steps; the default and what it is compared with come first."""
    if quick:
        runs = [(name, SHORT[0]) for name in QUICK] + [("castling", SHORT[1])]
        return [(bed, name, 0, steps) for name, steps in runs for bed in BEDS]
    runs = [(name, steps) for name in LONG_RUNS for steps in (*SHORT, LONG)]
    runs += [(name, steps) for name, (_, steps) in WITHOUT_DATA.items()]
    runs += [(name, steps) for name in RULES for steps in RULE_STEPS]
    runs += [(name, steps) for steps in SHORT for group in VARIANTS.values() for name in group if name not in LONG_RUNS]
    shapes = itertools.product(SHAPES, RECIPES[:1], SEEDS[:2], SHORT)
    return [(bed, name, seed, steps) for name, steps in runs for seed in SEEDS for bed in BEDS] + list(shapes)


def read(path: Path) -> dict[str, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["key"]: record for record in map(json.loads, lines)}


def run_all(todo: list[tuple[str, str, int, int]], results: Path, workers: int) -> None:
    """Train the teachers, then run what is not in `results` yet."""
    CACHE.mkdir(exist_ok=True)
    done = read(results)
    todo = [job for job in todo if key_of(*job) not in done]
    print(f"{len(todo)} runs to do with {workers} workers", flush=True)
    started = time.monotonic()
    with ProcessPoolExecutor(workers) as pool:
        pairs = sorted({(bed, seed) for bed, _, seed, _ in todo})
        for _ in pool.map(_train, pairs):
            pass
        futures = [pool.submit(run_rule if job[1] in RULES else run, *job) for job in todo]
        for count, future in enumerate(as_completed(futures), start=1):
            try:
                record = future.result()
            except Exception:  # noqa: BLE001 - one run that fails is not the end of the others
                traceback.print_exc()
                continue
            with results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            left = (time.monotonic() - started) * (len(todo) - count) / count / 60
            what = f"{record['bed']} {record['steps']} seed {record['seed']} {record['variant']}"
            drop = record["castled"] - record["teacher"]
            print(
                f"[{count}/{len(todo)}, {left:.0f} min left] {what}: {record['castled']:.2f} ({drop:+.2f})", flush=True
            )


def _train(pair: tuple[str, int]) -> None:
    torch.set_num_threads(1)
    teacher_for(*pair)


def cell(records: list[dict[str, Any]]) -> str:
    """Mean difference to the teacher over the seeds, and the range."""
    if not records:
        return ""
    drops = [record["castled"] - record["teacher"] for record in records]
    text = f"{sum(drops) / len(drops):+.2f}"
    return text + (f" [{min(drops):+.2f}, {max(drops):+.2f}]" if len(drops) > 1 else "")


def page(results: Path, quick: bool) -> str:
    """The Markdown page."""
    done = read(results)
    seeds = SEEDS[:1] if quick else SEEDS

    def records(bed: str, name: str, steps: int) -> list[dict[str, Any]]:
        keys = (key_of(bed, name, seed, steps) for seed in seeds)
        return [done[key] for key in keys if key in done]

    sections = [teachers(records), *ablations(records)]
    if not quick:
        sections += [*shapes(records), *without_data(records), *hybrid(records)]
    return "\n\n".join(sections) + "\n"


Records = Callable[[str, str, int], list[dict[str, Any]]]


def teachers(records: Records) -> str:
    rows = []
    for bed in BEDS:
        found = records(bed, "castling", SHORT[1])
        top1 = ", ".join(f"{record['teacher']:.2f} %" for record in found)
        arguments = ALL_BEDS[bed].arguments
        tokens = (arguments["img_size"] // arguments["patch_size"]) ** 2 + 1
        rows.append((bed, top1, found[0]["images"] if found else "", tokens))
    return f"""# Accuracy of converted models

Points of top-1 against the softmax teacher on held-out images: mean over the seeds, and the range in
brackets. All layers castled, all masks closed, folded. Steps of 64 images.
Made by `python benchmarks/accuracy.py`; the single runs are in `accuracy.jsonl`.

{markdown(("testbed", "teacher, by seed", "held-out images", "tokens"), rows)}"""


def ablations(records: Records) -> Iterator[str]:
    columns = [(bed, steps) for bed in BEDS for steps in (*SHORT, LONG)]
    head = ("recipe", *(f"{bed}, {steps} steps" for bed, steps in columns))
    for title, names in {"Recipes": RECIPES, **VARIANTS}.items():
        rows = [(name, *(cell(records(bed, name, steps)) for bed, steps in columns)) for name in names]
        rows = [row for row in rows if any(row[1:])]
        if rows:
            about = "" if title not in VARIANTS else "One thing changed against `castling` at a time.\n\n"
            yield f"## {title}\n\n{about}{markdown(head, rows)}"


def shapes(records: Records) -> Iterator[str]:
    rows = []
    for bed in (BEDS[0], *SHAPES):
        found = records(bed, RECIPES[0], SHORT[1])
        if found:
            teacher = ", ".join(f"{record['teacher']:.2f} %" for record in found)
            model = ALL_BEDS[bed].arguments
            lost = (cell(records(bed, RECIPES[0], steps)) for steps in SHORT)
            rows.append((model["embed_dim"], model["depth"], teacher, *lost))
    if len(rows) > 1:
        yield f"""## Widths and depths

Digits, teachers of other shapes, the recipe `castling` as it is.

{markdown(("width", "depth", "teacher, by seed", *(f"{steps} steps" for steps in SHORT)), rows)}"""


def without_data(records: Records) -> Iterator[str]:
    rows = [
        (recipe, steps, *(cell(records(bed, name, steps)) for bed in BEDS))
        for name, (recipe, steps) in WITHOUT_DATA.items()
    ]
    if any(any(row[2:]) for row in rows):
        yield f"""## Without data

Aligned on generated images alone; measured on the testbed's own held-out images.

{markdown(("recipe", "steps", *BEDS), rows)}"""


def hybrid(records: Records) -> Iterator[str]:
    rows = []
    for bed, steps, name in itertools.product(BEDS, sorted(RULE_STEPS), RULES):
        found = records(bed, name, steps)
        if not found:
            continue
        castled = ", ".join(f"{record['blocks'] - len(record['kept'])} of {record['blocks']}" for record in found)
        lost = ", ".join(f"{record['teacher'] - record['castled']:+.2f}" for record in found)
        rows.append((bed, steps, name if name == "auto" else f"{name} k", castled, lost))
    if rows:
        yield f"""## Hybrid conversion

The fewest blocks that stay softmax within {MAX_DROP} points. `auto` is `--layers auto
--max-drop {MAX_DROP}`, which plans on one half of the validation images; the points it lost are those on
the other half. The other rule keeps the last k blocks, with the smallest k that is within the budget on the
very images that it is judged on, the whole validation part.

{markdown(("testbed", "steps", "rule", "blocks castled, by seed", "points lost, by seed"), rows)}"""


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a subset, into benchmarks/.cache")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--only", metavar="NAME", action="append", help="runs of this recipe or variant; repeatable")
    parser.add_argument("--bed", choices=ALL_BEDS, action="append", help="runs on this testbed; repeatable")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="of so many seeds")
    parser.add_argument("--most", type=int, default=LONG, help="runs of at most so many steps")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    results, file = (CACHE / "quick.jsonl", CACHE / "quick.md") if arguments.quick else (RESULTS, TABLE)
    if not arguments.table:
        chosen = [
            job for job in jobs(arguments.quick)
            if (arguments.only is None or job[1] in arguments.only)
            and (arguments.bed is None or job[0] in arguments.bed)
            and job[2] in SEEDS[: arguments.seeds]
            and job[3] <= arguments.most
        ]  # fmt: skip
        run_all(chosen, results, arguments.workers)
    text = page(results, arguments.quick)
    file.write_text(text)
    if arguments.quick:
        sys.stdout.write(text)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
