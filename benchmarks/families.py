"""Other families than the plain ViT: what conversion leaves of small teachers, and what it gains at full size.

    python benchmarks/families.py                every run that is not in families.jsonl yet, then families.md
    python benchmarks/families.py --latency      the latencies alone    (--accuracy: the conversions alone)
    python benchmarks/families.py --table        the page from the runs that are there
    python benchmarks/families.py --quick        a few steps of one teacher, one latency for a moment; a smoke test

Teachers are trained here on the relations set, whose classes are about where two shapes are, and converted by the
default recipe, all layers. Latencies are of timm's own models with random weights, onnxruntime, float32, two threads,
one image, one interleaved run of the softmax model and the castled one each. The machine should have nothing else to
do. A teacher that does not learn its task is said and passed over.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import mvitv2, save_for_hf

import castling_convert as cc
from castling_convert.analysis.analyze import castled_twin
from castling_convert.analysis.macs import count_macs
from castling_convert.bench.bench import measure, softmax_baseline_
from castling_convert.bench.cases import CASTLED, Case
from castling_convert.castling import close_masks, not_paying
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.spec import open_data
from castling_convert.demo.testbeds import Testbed, train_teacher
from castling_convert.families import family_of
from castling_convert.tasks import task_of

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
RESULTS, TABLE = HERE / "families.jsonl", HERE / "families.md"
SEEDS, IMAGES = (0, 1), 25_600
THREADS, SECONDS = 2, 10
STAGES = {"num_classes": 4, "img_size": 32}
# timm's names of this family take no depths or widths.
mvitv2.model_cfgs["mvitv2_relations"] = mvitv2.MultiScaleVitCfg(
    depths=(1, 3), embed_dim=(48, 96), num_heads=(1, 2), stride_q=((1, 1), (2, 2)), stride_kv_adaptive=(2, 2)
)
BEDS = {
    "Swin": Testbed(
        "relations", floor=90.0, steps=800, batch_size=128, lr=2e-3, model="swin_tiny_patch4_window7_224",
        arguments={**STAGES, "patch_size": 4, "window_size": 4, "embed_dim": 48, "depths": (2, 4), "num_heads": (2, 4)},
    ),
    "LeViT": Testbed(
        "relations", floor=90.0, steps=400, batch_size=128, lr=2e-3, model="levit_128s",
        arguments={
            **STAGES, "img_size": 64, "stem_type": "s8", "embed_dim": (64, 96), "num_heads": (2, 3), "depth": (2, 2),
        },
    ),
    "MViTv2": Testbed(
        "relations", floor=90.0, steps=800, batch_size=128, lr=2e-3, model="mvitv2_tiny",
        arguments={**STAGES, "cfg_variant": "mvitv2_relations"},
    ),
}  # fmt: skip
LATENCIES = (
    ("vit_small_patch16_dinov3", 512),
    ("vit_small_patch16_dinov3", 1024),
    ("swin_tiny_patch4_window7_224", 224),
    ("swin_tiny_patch4_window7_224", 1024),
    ("swin_tiny_patch4_window7_224 window_size=32", 1024),
    ("mvitv2_tiny", 512),
    ("levit_384", 224),
    ("samvit_base_patch16", 1024),  # takes some 20 GB
    ("samvit_base_patch16 --layers auto", 1024),
)


PAPER_MACS = {"deit_tiny_patch16_224": 1.18, "deit_base_patch16_224": 17.28, "mvitv2_base": 9.82, "levit_384": None}
"""Billions that the paper gives of castled models at 224 pixels; None: no figure of it here."""


@dataclass(frozen=True)
class Job:
    """A conversion of a small teacher, `what` of BEDS and a seed, or a latency, a timm name at an image size.

    Behind the name of a latency may stand a whole number that the model is made with, or `--layers auto`: castled are
    then those layers alone that take fewer MACs so.
    """

    kind: str
    what: str
    number: int


def jobs() -> list[Job]:
    found = [Job("accuracy", bed, seed) for bed in BEDS for seed in SEEDS]
    return found + [Job("latency", name, size) for name, size in LATENCIES]


def teacher_of(bed: str, seed: int, steps: int | None = None) -> Any:
    """Trained once and kept in the cache; None where it does not learn its task."""
    folder = CACHE / f"families-{bed}-{seed}"
    if steps is None and folder.is_dir():
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    teacher, top1 = train_teacher(BEDS[bed], seed, steps=steps)
    if steps is None:
        print(f"{bed}, seed {seed}: the teacher reached {top1:.2f} % of the {BEDS[bed].floor} % it needs", flush=True)
        if top1 < BEDS[bed].floor:
            return None
        save_for_hf(teacher, folder, safe_serialization=True)
    return teacher


def accuracy(job: Job, images: int = IMAGES, taught: int | None = None) -> dict[str, Any] | None:
    """None where there is no teacher; `taught` are steps of one that need not learn anything."""
    teacher = teacher_of(job.what, job.number, taught)
    if teacher is None:
        return None
    recipe = cc.Recipe.load("castling", [f"distill.images={images}", f"distill.seed={job.number}"])
    student = cc.castle(teacher, recipe)
    started = time.monotonic()
    cc.distill(student, teacher, "relations", recipe, device="cpu")
    seconds = time.monotonic() - started
    data = open_data("relations", Preprocessing.of(teacher), "validation")
    found = task_of(teacher).measure({"teacher": teacher, "castled": cc.fold(student)}, data)
    layers = family_of(teacher).layers(teacher)
    return {
        **asdict(job), "images": images, "seconds": round(seconds), "layers": len(layers),
        "tokens": sorted({layer.tokens for layer in layers}),
        "teacher": found["teacher"].top1, "castled": found["castled"].top1, "agreement": found["castled"].agreement,
    }  # fmt: skip


def latency(job: Job, seconds: float = SECONDS) -> dict[str, Any]:
    size, recipe = (job.number, job.number), cc.Recipe.load("castling")
    what, auto, _ = job.what.partition(" --layers auto")
    name, *given = what.split()
    arguments = {key: int(value) for key, _, value in (argument.partition("=") for argument in given)}
    softmax = softmax_baseline_(timm.create_model(name, img_size=size, **arguments))
    layers = family_of(softmax).layers(softmax)
    dear = not_paying(layers, recipe.attention)
    if auto:
        layers = [layer for layer in layers if layer.name not in dear]
        recipe = recipe.model_copy(update={"layers": ",".join(layer.name for layer in layers)})
    castled = castled_twin(softmax, recipe)
    layers = [layer for layer in layers if layer.name in castled.castling.castled]
    result = measure(
        Case("onnx", "fp32", size, 1), castled, softmax, threads=THREADS, seconds=seconds, trained=False, memory=False
    )
    return {
        **asdict(job), "layers": len(layers), "dear": sum(layer.name in dear for layer in layers),
        "tokens": sorted({layer.tokens for layer in layers}),
        "softmax": result.latency[result.baseline].median, "castled": result.latency[CASTLED].median,
        "baseline": result.baseline, "ratio": asdict(result.ratio), "torch": torch.__version__,
    }  # fmt: skip


def page(records: list[dict[str, Any]]) -> str:
    accuracies = [record for record in records if record["kind"] == "accuracy"]
    lines = [
        "# Other families", "", "Made by `python benchmarks/families.py`; the runs are in `families.jsonl`.", "",
        "## Accuracy", "",
        f"Small teachers of each family on the relations set, converted by `castling` with {IMAGES:,} images, all"
        " layers; points of top-1 on held-out images, by seed.",
        "", "| family | layers, tokens | teacher | castled against it | agreement |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for bed in BEDS:
        found = [record for record in accuracies if record["what"] == bed]
        if found:
            columns = (
                f"{found[0]['layers']}, {', '.join(map(str, found[0]['tokens']))}",
                ", ".join(f"{record['teacher']:.2f} %" for record in found),
                ", ".join(f"{record['castled'] - record['teacher']:+.2f}" for record in found),
                ", ".join(f"{record['agreement']:.2f} %" for record in found),
            )
            lines.append(f"| {bed} | {' | '.join(columns)} |")
    return "\n".join([*lines, "", "## Latency", "", latencies(records), "", *multiplications()]) + "\n"


def multiplications() -> list[str]:
    """The MACs of whole models by torch's counter, beside the paper's."""
    lines = [
        "## MACs", "",
        "Billions of an image of 224 pixels, whole models, by torch's counter, beside what the paper gives of its"
        " castled models. It does not say what it counts. `castling-fast` is its own kernel with a convolution of 5 x 5"
        " on v. `castling` has 64 landmarks in its place, which is more work than softmax where there are few keys.",
        "", "| model | softmax | castling | castling-fast | the paper | castling-fast against it |", "|---" * 6 + "|",
    ]  # fmt: skip
    for name, paper in PAPER_MACS.items():
        softmax = timm.create_model(name, device="meta")
        counts = [count_macs(softmax) / 1e9]
        for recipe in ("castling", "castling-fast"):
            student = cc.castle(softmax, recipe)
            close_masks(student)
            counts.append(count_macs(cc.fold(student)) / 1e9)
        beside = ["", ""] if paper is None else [f"{paper:.2f}", f"{counts[-1] - paper:+.2f}"]
        lines.append(f"| {' | '.join([name, *(f'{count:.2f}' for count in counts), *beside])} |")
    return lines


def latencies(records: list[dict[str, Any]]) -> str:
    """What was measured of them, and the table."""
    lines = [
        f"onnxruntime fp32, {THREADS} threads, one image; medians in milliseconds, softmax over castled: above 1"
        " castling is faster. The softmax model is the faster one of timm's plain export and one with onnxruntime's own"
        " fused attention. Castled by `castling` are all layers, or with `--layers auto` those that take fewer MACs so;"
        " in brackets how many take no fewer.",
        "", "| model | pixels | layers (no cheaper) | tokens | softmax | castled | ratio [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for record in records:
        if record["kind"] != "latency":
            continue
        ratio = record["ratio"]
        columns = (
            record["what"], str(record["number"]), f"{record['layers']} ({record['dear']})",
            ", ".join(map(str, record["tokens"])), f"{record['softmax']:.1f}", f"{record['castled']:.1f}",
            f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
        )  # fmt: skip
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def smoke_test() -> str:
    """The page of a teacher that has hardly learned, and of a latency that was hardly measured."""
    first = next(iter(BEDS))
    name = LATENCIES[2][0]
    records = [accuracy(Job("accuracy", first, 0), images=256, taught=2), latency(Job("latency", name, 224), 0.1)]
    return page([record for record in records if record is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--latency", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        print(smoke_test())
        return
    kinds = [kind for kind in ("accuracy", "latency") if getattr(arguments, kind)] or ["accuracy", "latency"]
    done = {(record["kind"], record["what"], record["number"]) for record in read()}
    for job in jobs() if not arguments.table else ():
        if job.kind in kinds and (job.kind, job.what, job.number) not in done:
            record = accuracy(job) if job.kind == "accuracy" else latency(job)
            if record is None:
                continue
            with RESULTS.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)
    TABLE.write_text(page(read()), encoding="utf-8")
    print(f"wrote {TABLE}")


if __name__ == "__main__":
    main()
