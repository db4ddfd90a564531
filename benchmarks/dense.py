"""What conversion leaves of a segmenter and a detector around a real pretrained ViT.

    python benchmarks/dense.py             every run that is not in dense.jsonl yet, then dense.md
    python benchmarks/dense.py --quick     a few steps of each task on a few scenes, into benchmarks/.cache
    python benchmarks/dense.py --only "segment 280"       some of them: task, pixels, pixels in training, seed
    python benchmarks/dense.py --more      what it made, on 800 more scenes, into dense.jsonl, then dense.md
    python benchmarks/dense.py --latency   what it gains in onnxruntime, into dense.jsonl; `latency.py --table` shows it
    python benchmarks/dense.py --table     the page from the runs that are there

The test bed is that of `bed.py`: scenes of one to three stamps on photographs, with masks and boxes. The teacher is its
DINOv2 ViT-S/14, frozen, and a head trained here on the 600 training scenes; no stamp and no photograph of the 200
validation scenes is among those. It is converted with the recipe `castling` as it is but for steps, all layers, head
untouched, by the call that `castling convert` makes; batches and the size of training images are those that it chooses
by itself, or for comparison images as large as the model's; at 518 pixels with `castling-window` as well. With
`--minutes 15` the steps are its choice, too. Then it is exported in int8 for onnxruntime and measured again. Minutes
are those of the training; the machine should have nothing else to do. Twenty-four runs, of twenty minutes on two cores
to one and a half hours on one; their bundles stay in benchmarks/.cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from bed import ARCHITECTURE, GRAPH, KINDS, MORE, backbone, fresh, make_scenes, more_scenes
from pretrained import BED, CACHE, HERE, markdown, mean, read
from rich.console import Console
from timm.models import save_for_hf

import castling_convert as cc
from castling_convert.analysis.analyze import castled_twin
from castling_convert.bench.bench import measure, softmax_baseline_
from castling_convert.bench.cases import CASTLED, Case
from castling_convert.demo.heads import train_head
from castling_convert.evaluation.evaluate import evaluate
from castling_convert.tasks import find_task

RESULTS, TABLE = HERE / "dense.jsonl", HERE / "dense.md"
MODELS = {"segment": ("segmenter", len(KINDS) + 1), "detect": ("detector", len(KINDS))}
BATCH = 2
"""Of images; larger ones did worse on as many images, see docs/accuracy.md."""
IMAGES = {(280, 280): 3_000, (518, 518): 700, (518, 266): 2_800}
"""By the pixels of the model and those of the training images: as many as some 15 to 20 minutes on two cores allow."""
MINUTES, TIMED = 15.0, ((280, 280), (518, 266))
"""The same without a word on images, batches or their size: as many as the tool says that fit. The machine should have
nothing else to do."""
SEEDS = (0, 1)
DEFAULT, WINDOW = "castling", "castling-window"
SMALL_VIT, CLASSES, LATENCIES, SECONDS = "vit_small_patch16_224", 21, (512, 1024), 10
FEW = {"train": 100, "val": 8}
"""Scenes of a smoke test; int8 wants so many to be calibrated on."""


@dataclass(frozen=True)
class Job:
    """One conversion."""

    task: str
    size: int
    trained: int
    seed: int
    images: int | None
    recipe: str = DEFAULT
    minutes: float | None = None

    @property
    def key(self) -> str:
        which = "" if self.recipe == DEFAULT else f" {self.recipe}"
        timed = "" if self.minutes is None else f" {self.minutes:g} minutes"
        return f"{self.task} {self.size}{'' if self.whole else f' at {self.trained}'} {self.seed}{which}{timed}"

    @property
    def whole(self) -> bool:
        """Whether training images are as large as the model's."""
        return self.trained == self.size

    def resolved(self) -> cc.Recipe:
        """Within minutes everything but the seed is left to the tool."""
        changes = [f"distill.seed={self.seed}"]
        if self.images is not None:
            steps = max(2, self.images // BATCH)
            changes += [f"distill.steps={steps}", f"distill.batch_size={BATCH}", f"data.sizes=[{self.trained}]"]
        return cc.Recipe.load(self.recipe, changes)


def jobs() -> list[Job]:
    default = [Job(task, *sizes, seed, IMAGES[sizes]) for sizes in IMAGES for seed in SEEDS for task in MODELS]
    timed = [replace(job, images=None, minutes=MINUTES) for job in default if (job.size, job.trained) in TIMED]
    return default + timed + [replace(job, recipe=WINDOW) for job in default if not job.whole]


def teacher(bed: Path, task: str, size: int, scenes: Path, epochs: int | None = None) -> Path:
    """A folder for `local-dir:`, made where it is not there yet."""
    kind, classes = MODELS[task]
    place = bed / f"{kind}-{size}"
    if not place.is_dir():
        model: Any = timm.create_model(kind, backbone=ARCHITECTURE, num_classes=classes, img_size=size)
        vit = backbone(bed / "packages" / GRAPH, size)
        vit.reset_classifier(0)
        model.backbone.model.load_state_dict(vit.state_dict())
        train_head(model, str(scenes), epochs=epochs, console=Console(stderr=True))
        with fresh(place) as part:
            save_for_hf(model, part, safe_serialization=True)
    return place


def run(job: Job, bed: Path, scenes: Path) -> dict[str, Any]:
    """Convert, and what the summary says of both models; then the same in int8."""
    bundle = bundle_of(job, bed)
    summary = cc.convert(
        f"local-dir:{teacher(bed, job.task, job.size, scenes)}", bundle, data=scenes, recipe=job.resolved(),
        minutes=job.minutes, device="cpu", force=True,
        console=Console(stderr=True, force_terminal=False, width=160),
    )  # fmt: skip
    return record(job, bundle, summary) | {"int8": int8(bundle, scenes)}


def record(job: Job, bundle: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What dense.jsonl holds of a run."""
    distill = cc.Recipe.load(bundle / "recipe.yaml").distill
    assert distill.batch_size is not None and distill.steps is not None  # a bundle's recipe leaves nothing out
    kept = [layer for layer in summary["layers"] if layer["status"] == "kept"]
    return {
        "key": job.key, **asdict(job), "images": distill.steps * distill.batch_size, "steps": distill.steps,
        "kept": len(kept), "seconds": round(summary["distill"]["seconds"], 1), "macs": summary["macs"],
        "teacher": summary["accuracy"]["teacher"], "castled": summary["accuracy"]["castled"],
    }  # fmt: skip


def bundle_of(job: Job, bed: Path) -> Path:
    return bed / "bundles" / job.key.replace(" ", "-")


def on_more(job: Job, bed: Path) -> dict[str, Any]:
    """What `castling evaluate` says of the bundle on the other scenes, in a record whose key is not the run's."""
    scores, _ = evaluate(bundle_of(job, bed), str(more_scenes(BED)))
    return {"key": f"more {job.key}", **{name: score.to_dict() for name, score in scores.items()}}


def int8(bundle: Path, scenes: Path) -> dict[str, Any]:
    """What `castling evaluate` says of the artifact for onnxruntime, calibrated on training scenes."""
    artifact = bundle / "int8.onnx"
    cc.export(bundle, artifact, precision="int8", calibration=str(scenes))
    scores, _ = evaluate(artifact, str(scenes))
    return dict(scores["castled"].to_dict())


def latency(kind: str, size: int, seconds: float = SECONDS) -> dict[str, Any]:
    """Of a ViT-S/16 alone or with a head, random weights, in one interleaved run with softmax."""
    arguments: dict[str, Any] = {"img_size": size}
    name = SMALL_VIT if kind == "backbone" else kind
    arguments |= {"num_classes": 0} if kind == "backbone" else {"num_classes": CLASSES, "backbone": SMALL_VIT}
    softmax = softmax_baseline_(timm.create_model(name, **arguments).eval())
    castled = castled_twin(softmax, cc.Recipe.load("castling"))
    result = measure(
        Case("onnx", "fp32", (size, size), 1), castled, softmax, threads=2, seconds=seconds, trained=False,
        memory=False,
    )  # fmt: skip
    return {
        "key": f"latency {kind} {size}", "kind": kind, "size": size, "baseline": result.baseline,
        "softmax": result.latency[result.baseline].median, "castled": result.latency[CASTLED].median,
        "ratio": asdict(result.ratio), "torch": torch.__version__,
    }  # fmt: skip


def latencies(results: Path = RESULTS) -> str:
    """A table of those that are there."""
    rows = [
        (
            r["kind"], r["size"], f"{r['softmax']:.0f}", f"{r['castled']:.0f}",
            f"{r['ratio']['value']:.2f} [{r['ratio']['low']:.2f}, {r['ratio']['high']:.2f}]",
        )
        for r in sorted(read(results).values(), key=lambda r: r["size"])
        if "ratio" in r
    ]  # fmt: skip
    return markdown(("graph", "pixels", "softmax, ms", "castled, ms", "ratio [95 %]"), rows)


def some_of_parts(scenes: Path, place: Path, parts: Mapping[str, int]) -> Path:
    """So many of the first scenes of each part."""
    for part, few in parts.items():
        described = json.loads((scenes / part / "instances.json").read_text())
        chosen = {image["id"]: image for image in described["images"][:few]}
        described["images"] = list(chosen.values())
        described["annotations"] = [note for note in described["annotations"] if note["image_id"] in chosen]
        for image in chosen.values():
            for inner, suffix in (("images", ".jpg"), ("masks", ".png")):
                file = Path(part, inner, image["file_name"]).with_suffix(suffix)
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(scenes / file, place / file)
        (place / part / "instances.json").write_text(json.dumps(described))
    return place


def page(results: Path) -> str:
    """The Markdown page of what is there."""
    done = read(results)
    rows = []
    groups = dict.fromkeys((job.task, job.size, job.trained, job.recipe, job.minutes) for job in jobs())
    for task, size, trained, recipe, minutes in groups:
        records = [
            r
            for r in done.values()
            if "task" in r
            and (r["task"], r["size"], r["trained"], r.get("recipe", DEFAULT), r.get("minutes"))
            == (task, size, trained, recipe, minutes)
        ]
        if not records:
            continue
        key, word = find_task(task).score
        macs = [records[0]["macs"][name] / 1e9 for name in ("teacher", "castled")]
        quantised = [(r["int8"][key] - r["teacher"][key], r["int8"]["agreement"]) for r in records if "int8" in r]
        points, same = zip(*quantised, strict=True) if quantised else ((), ())
        more = [done[f"more {r['key']}"] for r in records if f"more {r['key']}" in done]
        timed = [r for r in records if r["seconds"] is not None]  # how long one took that was resumed is not known
        rows.append((
            f"{task}, {word}", recipe if minutes is None else f"{recipe}, --minutes {minutes:g}", size, trained,
            records[0]["images"] // records[0]["steps"], len(records), f"{of(records, 'images'):.0f}",
            f"{of(timed, 'seconds') / 60:.1f}" if timed else "",
            f"{mean(r['teacher'][key] for r in records):.1f}",
            difference([r["castled"][key] - r["teacher"][key] for r in records]),
            f"{mean(r['castled']['agreement'] for r in records):.1f}", difference(points),
            f"{mean(same):.1f}" if same else "",
            f"{mean(r['teacher'][key] for r in more):.1f}" if more else "",
            difference([r["castled"][key] - r["teacher"][key] for r in more]),
            f"{mean(r['castled']['agreement'] for r in more):.1f}" if more else "", f"{macs[0]:.1f} to {macs[1]:.1f}",
        ))  # fmt: skip
    head = (
        "task", "recipe", "pixels", "in training", "batch", "seeds", "images", "minutes", "teacher", "castled, points",
        "agreement", "int8, points", "int8, agreement", "more scenes: teacher", "castled, points", "agreement", "GMACs",
    )  # fmt: skip
    return f"""# Dense tasks

A segmenter and a detector around a real DINOv2 ViT-S/14, frozen, each with a light head trained on 600 scenes; 200
scenes of other photographs and other stamps to measure on. The teacher's figures are as they are because its kinds are
hard to tell on stamps it has never seen (a linear classifier on the same backbone gets half of them right). All twelve
layers castled, all masks closed, folded, the head as it was. Minutes are those of the training, on one or two cores,
some beside another run, so they are upper bounds. Points are those of the score against the teacher's, mean
over the seeds and range in brackets; agreement is that of pixels, or of detections (score above 0.3, IoU above 0.5, the
same kind), with the teacher's. int8 is onnxruntime's, of the seeds that it was measured with. 200 scenes are few:
*more scenes* are {MORE} others of the same photographs and stamps, where it was measured on them too.

Made by `python benchmarks/dense.py`; the single runs are in `dense.jsonl`. At 518 pixels trained at 266 the runs of
2,800 images with `castling` were made by `distill` with the same recipe, without the rest of a conversion, and
measured on more scenes beside their teachers. `castling-window` there is from before the trial that finds the rate of
the second phase took no hard batch for harm any more, and had a quarter of the others' rate. The two seeds of
`detect` at 280 pixels have heads trained on two machines (21.8 and 22.5 % mAP), and so have the two rows of `detect`
at 518. With `--minutes 15` two cores with AVX-512 did the work, with heads trained anew; the segmenter's minutes are
those of the first seed, as the second was resumed, and the detector's are more than 15, as its steps were slower than
those that were timed. The int8 at 280 pixels is of a CPU without VNNI, before sessions asked onnxruntime for precise
products there, and may be better now.

{markdown(head, rows)}
"""


def difference(points: Sequence[float]) -> str:
    """Mean and range; nothing of nothing."""
    if not points:
        return ""
    return f"{mean(points):+.1f}" + (f" [{min(points):+.1f}, {max(points):+.1f}]" if len(points) > 1 else "")


def of(records: Iterable[dict[str, Any]], name: str) -> float:
    return mean(record[name] for record in records)


def keep(record: dict[str, Any], results: Path) -> None:
    with results.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two steps of each task, into benchmarks/.cache")
    parser.add_argument("--table", action="store_true", help="only write the page")
    parser.add_argument("--only", default="", help="runs whose task, pixels and seed begin so, such as 'segment 280'")
    parser.add_argument("--latency", action="store_true", help="only the latencies")
    parser.add_argument("--more", action="store_true", help="only measure the bundles there are on more scenes")
    arguments = parser.parse_args()
    results, table = (CACHE / "dense-quick.jsonl", CACHE / "dense-quick.md") if arguments.quick else (RESULTS, TABLE)
    listed = [Job(task, 280, 280, 0, 16) for task in MODELS] if arguments.quick else jobs()
    done = read(results)
    todo = [job for job in listed if job.key not in done and job.key.startswith(arguments.only)]
    if arguments.latency:
        for size, kind in product(LATENCIES, ("backbone", *(model for model, _ in MODELS.values()))):
            if f"latency {kind} {size}" not in done:
                keep(latency(kind, size), results)
        return
    bed = CACHE / "dense-quick" if arguments.quick else BED
    if arguments.more:
        for job in listed:
            if job.key in done and f"more {job.key}" not in done and bundle_of(job, bed).is_dir():
                keep(on_more(job, bed), results)
    elif not arguments.table:
        scenes = make_scenes(BED)
        if arguments.quick:
            scenes = some_of_parts(scenes, CACHE / "scenes-quick", FEW)
            bed.mkdir(exist_ok=True)
            if not (bed / "packages").exists():
                (bed / "packages").symlink_to(BED / "packages")
        for count, job in enumerate(todo, start=1):
            print(f"[{count}/{len(todo)}] {job.key}", flush=True)
            keep(run(job, bed, scenes), results)
    table.write_text(page(results))
    print(f"wrote {table}")


if __name__ == "__main__":
    main()
