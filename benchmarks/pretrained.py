"""What conversion leaves of a real pretrained ViT: by recipe, budget, image size, and kind of data.

    python benchmarks/pretrained.py             every run that is not in pretrained.jsonl yet, then pretrained.md
    python benchmarks/pretrained.py --quick     a few steps for each section on a few images, into benchmarks/.cache
    python benchmarks/pretrained.py --table     the page from the runs that are there
    python benchmarks/pretrained.py --list      what is still to do
    python benchmarks/pretrained.py --more --only "images=10000"      once more, to be measured on more images
    python benchmarks/pretrained.py --hybrid    with --layers auto and a budget of 0.3 points, two seeds
    python benchmarks/pretrained.py --device cuda --only "seed=1"     some of them, trained on a GPU

    python benchmarks/pretrained.py --model NAME --data TRAIN --val VAL     any timm model, on your own images

The test bed is that of `bed.py`: a DINOv2 ViT-S/14, photographs with objects on them, made once and kept in
benchmarks/.cache/bed. Every run is a conversion with a shipped recipe, all layers castled, all masks closed, folded,
and one line of `pretrained.jsonl`; an interrupted table goes on where it stopped, and what was trained already stays in
benchmarks/.cache/bed/students and is not trained again. Minutes are those of the training.
The machine should have nothing else to do: the training of the thirty runs that are there took twelve hours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from bed import MORE_IMAGES, PROBE_C, SETS, fresh, make, more_images
from rich.console import Console
from torch import Tensor

import castling_convert as cc
from castling_convert.artifact.onnx_model import OnnxModel
from castling_convert.bundle import REJECTED, read_summary
from castling_convert.data.loaders import eval_loader
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.spec import open_data
from castling_convert.distillation.progress import Progress
from castling_convert.errors import CheckFailed
from castling_convert.pipeline.output import begun_fingerprint
from castling_convert.tasks.features import alike

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
BED = CACHE / "bed"
RESULTS, TABLE = HERE / "pretrained.jsonl", HERE / "pretrained.md"
SHORT, LONG, LONGEST, BATCH = 10_000, 20_000, 33_000, 8
"""Images learned from: in about 12 minutes on two cores with AVX-512, twice as many, in about 40; and in a step."""
AT_280, VARIANT = 2_400, 4_000
"""In about 12 minutes at 280 pixels; and where recipes are compared in which one thing is changed."""
FEW = 10
"""Images of a folder in a smoke test."""
MAX_DROP = 0.3
"""Points of top-1 that `--layers auto` may lose; of 2,000 images that it plans with, six."""
AGAIN = "again"
"""Before the key of a run that was made once more, to be measured on more images."""
RECIPES = ("castling", "castling-window", "castling-fast")
SEEDS = (0, 1)
DATA = {"labelled scenes": "data/train", "photographs without objects": "photos-train", "generated": "generated"}


@dataclass(frozen=True)
class Job:
    """One conversion. Without `classes` the teacher is a feature model; `changes` are made to the recipe, and `note`
    says what they are in the table."""

    recipe: str
    images: int
    seed: int = 0
    size: int = 140
    data: str = "labelled scenes"
    classes: bool = True
    changes: tuple[str, ...] = ()
    note: str = ""

    def resolved(self) -> cc.Recipe:
        steps = max(1, self.images // BATCH)
        fixed = (f"distill.steps={steps}", f"distill.batch_size={BATCH}", f"distill.seed={self.seed}")
        return cc.Recipe.load(self.recipe, (*fixed, *self.changes))

    @property
    def key(self) -> str:
        """What decides the outcome."""
        recipe = self.resolved().model_dump(mode="json", include={"layers", "attention", "distill", "data"})
        for free in ("images", "checkpoint_every", "checkpoint_minutes"):
            recipe["distill"].pop(free)
        if recipe["data"]["sizes"] is None:  # recipes of before there were several sizes have it not
            recipe["data"].pop("sizes")
        return hashlib.sha256(
            json.dumps([recipe, self.size, self.data, self.classes], sort_keys=True).encode()
        ).hexdigest()[:16]


def jobs() -> list[Job]:
    """Every run, the ones that matter most first."""
    found = [Job(recipe, SHORT, seed) for seed in SEEDS for recipe in RECIPES[:2]]
    found += [Job(recipe, SHORT, seed) for seed in SEEDS for recipe in RECIPES[2:]]
    found += [Job(recipe, images, seed) for images in (LONG, LONGEST) for seed in SEEDS for recipe in RECIPES[:2]]
    found += [Job(recipe, AT_280, seed, size=280) for seed in SEEDS for recipe in RECIPES[:2]]
    found += [Job("castling", SHORT, seed, classes=False) for seed in SEEDS]
    found += [Job("castling", SHORT, data=data) for data in DATA if data != "labelled scenes"]
    found += [Job("castling-window", SHORT, seed, changes=NO_CONVOLUTION, note=AGAINST_WINDOW) for seed in SEEDS]
    found += [Job("castling", SHORT, seed, changes=LIGHT_CLASSES, note=AGAINST_CASTLING) for seed in SEEDS]
    found += [Job("castling", SHORT, changes=VARIANTS[note], note=note) for note in (ALONE, HALF)]
    found += [Job("castling", VARIANT, changes=changes, note=note) for note, changes in VARIANTS.items()]
    return found


FEATURES = "As a feature model: top-1 is a linear probe's on frozen features, agreement the same nearest neighbour"
NO_CONVOLUTION, AGAINST_WINDOW = ("attention.depthwise=none",), "castling-window without its convolution"
LIGHT_CLASSES, AGAINST_CASTLING = ("distill.loss.logits=0.1",), "castling with the classes at a tenth of the weight"
ALONE, HALF = "layers alone, nothing after", "half of the steps with layers alone"
VARIANTS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    ALONE: ("distill.align.share=1",),
    HALF: ("distill.align.share=0.5",),
    "the whole student from the first step on": ("distill.align.share=0",),
    "in batches of 64": ("distill.batch_size=64", f"distill.steps={VARIANT // 64}"),
    "in batches of two": ("distill.batch_size=2", f"distill.steps={VARIANT // 2}"),
    "every batch once": ("distill.align.echo=1",),
    "the classifier as it is": ("distill.refit=false",),
    "half as many landmarks": ("attention.landmarks=32",),
    "learned angular features in place of landmarks": ("attention={form: features}",),
    "no softmax rows for the class token": ("attention.prefix_rows=false",),
    "no depthwise residual": ("attention.depthwise=none",),
    "annealed from the teacher's own layers, the first one first": (
        "distill.mask.schedule=gate", "distill.mask.branch=teacher", "distill.mask.order=first",
        "distill.mask.closed_from=0.7",
    ),
}  # fmt: skip


def section(job: Job) -> str:
    """Where a run stands in the page."""
    return (
        "One thing changed" if job.note
        else FEATURES if not job.classes
        else "Without images of the model's own kind" if job.data != "labelled scenes"
        else f"Recipes at {job.size} pixels"
    )  # fmt: skip


def smoke_test() -> list[Job]:
    """A few steps of the first run of every section."""
    firsts = {section(job): job for job in reversed(jobs())}
    return [replace(job, images=64) for job in reversed(firsts.values())]


def some_of(bed: Path) -> Path:
    """A bed of the first FEW images of every folder of another, without its teacher."""
    place = CACHE / "bed-quick"
    for folder in ("data/train", "photos-train", *SETS.values()):
        for inner in (bed / folder, *(path for path in (bed / folder).iterdir() if path.is_dir())):
            for file in sorted(path for path in inner.iterdir() if path.is_file())[:FEW]:
                copy = place / file.relative_to(bed)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
    return place


def run(job: Job, bed: Path, images: Path, device: str) -> dict[str, Any]:
    """Convert, fold, and measure on every validation set; in onnxruntime int8 as well. The teacher is that of `bed`,
    the images are those of `images`, another bed or the same."""
    teacher = timm.create_model(f"local-dir:{make(bed, job.size)}", pretrained=True).eval()
    if not job.classes:
        teacher.reset_classifier(0)
    data = DATA[job.data] if job.data == "generated" else str(images / DATA[job.data])
    kept = images / "students" / job.key
    if not kept.is_dir():
        deploy, seconds = converted(teacher, data, job.resolved(), device)
        how = {"seconds": round(seconds, 1), "threads": torch.get_num_threads(), "device": processor(device)}
        with fresh(kept) as part:
            torch.save((deploy.cpu(), how), part / "student.pt")
    deploy, how = torch.load(kept / "student.pt", weights_only=False)
    size = (job.size, job.size)
    teacher, deploy = teacher.to(device), deploy.to(device)
    sets = {name: measured(teacher, deploy, str(images / place), size) for name, place in SETS.items()}
    if not job.classes:
        sets = {
            name: values | found
            for (name, values), found in zip(sets.items(), probes(teacher, deploy, images), strict=True)
        }
    more = more_of(teacher, deploy, bed, size) if job.classes and not job.note and images == bed else None
    quantised = int8(teacher, deploy.cpu(), images) if job.classes and job.seed == 0 and not job.note else None
    return {
        "key": job.key, **asdict(job), "steps": job.resolved().distill.steps, "different": different(job.resolved()),
        **how, "sets": sets, "more": more, "int8": quantised,
    }  # fmt: skip


def more_of(teacher: Any, deploy: Any, bed: Path, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """The same on more images of each set: of 900 one is a ninth of a point, and two seeds differ by a dozen."""
    folder = more_images(bed)
    return {name: measured(teacher, deploy, str(folder / name), size) for name in SETS}


def hybrid(bed: Path, seed: int, device: str) -> dict[str, Any]:
    """`castling convert --layers auto --max-drop 0.3`, which plans with, and measures on, more images of both sets. One
    that was interrupted goes on; how long it took is not known then."""
    bundle, started = bed / "bundles" / f"hybrid-{seed}", time.monotonic()
    resume = begun_fingerprint(bundle) is not None
    try:
        cc.convert(
            f"local-dir:{make(bed, 140)}", bundle, data=mixed(bed), recipe=Job("castling", SHORT, seed).resolved(),
            layers="auto", max_drop=MAX_DROP, device=device, resume=resume, force=not resume,
            console=Console(stderr=True, force_terminal=False, width=160),
        )  # fmt: skip
        found = bundle
    except CheckFailed as error:
        found = bundle / REJECTED
        if not found.is_dir():  # no plan was within the budget
            raise
        print(error, flush=True)  # more was lost on the others: that is a result, too
    seconds, summary = time.monotonic() - started, read_summary(found)
    return {
        "key": hybrid_key(seed), "seed": seed, "plan": summary["plan"], "accuracy": summary["accuracy"],
        "seconds": None if resume else round(seconds, 1), "threads": torch.get_num_threads(),
        "device": processor(device),
    }  # fmt: skip


def hybrid_key(seed: int) -> str:
    return f"layers auto {MAX_DROP} {SHORT} {seed}"


def mixed(bed: Path) -> Path:
    """The bed's training images, and more images of both validation sets, a folder a kind, in one."""
    place = bed / "mixed"
    if not place.is_dir():
        more = more_images(bed).resolve()
        with fresh(place) as part:
            (part / "train").symlink_to((bed / "data/train").resolve())
            for name in SETS:
                for file in (more / name).rglob("*.jpg"):
                    link = part / "val" / file.parent.name / f"{name}-{file.name}"
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file)
    return place


def processor(device: str) -> str:
    """What a run was trained on, as the page says it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def different(recipe: cc.Recipe) -> int:
    """How many images a run reads, where some are met more than once."""
    config = recipe.distill
    assert config.steps is not None
    assert config.batch_size is not None
    aligned = round(config.align.share * config.steps)
    return config.batch_size * (math.ceil(aligned / config.align.echo) + config.steps - aligned)


def converted(teacher: Any, data: str, recipe: cc.Recipe, device: str) -> tuple[Any, float]:
    """The folded student, and how long its training took."""
    student = cc.castle(teacher, recipe)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        cc.distill(student, teacher, data, recipe, device=device, progress=Lines(Path(folder)))
        seconds = time.monotonic() - started
    return cc.fold(student), seconds


class Lines(Progress):
    """A line of progress now and then, whatever the output is."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Console(stderr=True, force_terminal=False, width=160))


def on_device_of(model: Any, batches: Iterable[Any]) -> Iterator[list[Tensor]]:
    device = next(model.parameters()).device
    return ([part.to(device) for part in batch] for batch in batches)


@torch.inference_mode()
def measured(teacher: Any, deploy: Any, spec: str, size: tuple[int, int]) -> dict[str, float]:
    """Top-1 of both, agreement in percent, and the mean cosine of the last class and patch tokens."""
    data = open_data(spec, Preprocessing.of(teacher).at(size), "validation")
    prefix, sums, seen = teacher.num_prefix_tokens, {}, 0
    for images, labels in on_device_of(teacher, eval_loader(data)):
        expected, features = teacher.forward_features(images), deploy.forward_features(images)
        logits, wanted = (model.forward_head(x) for model, x in ((deploy, features), (teacher, expected)))
        cosine = F.cosine_similarity(features, expected, dim=-1)
        found = {
            "teacher": (wanted.argmax(-1) == labels).float(), "castled": (logits.argmax(-1) == labels).float(),
            "agreement": (logits.argmax(-1) == wanted.argmax(-1)).float(),
            "prefix": cosine[:, :prefix].mean(1), "patches": cosine[:, prefix:].mean(1),
        }  # fmt: skip
        for name, values in found.items():
            sums[name] = sums.get(name, 0.0) + values.sum().item()
        seen += len(labels)
    return {name: value / seen * (1 if name in ("prefix", "patches") else 100) for name, value in sums.items()}


@torch.inference_mode()
def probes(teacher: Any, deploy: Any, bed: Path) -> list[dict[str, float]]:
    """Of models without classes: top-1 of a linear probe on the frozen features of each, fitted to the training images,
    and in how many percent the nearest image, by cosine, is the same for both."""
    from sklearn.linear_model import LogisticRegression

    def features(place: str) -> tuple[list[Tensor], Any]:
        """Of the teacher and of the castled model, and the labels."""
        loader = eval_loader(open_data(str(bed / place), Preprocessing.of(teacher), "train"))
        batches = ((teacher(x), deploy(x), y) for x, y in on_device_of(teacher, loader))
        *both, labels = (torch.cat(part).cpu() for part in zip(*batches, strict=True))
        return both, labels.numpy()

    trained, labels = features("data/train")
    fitted = [LogisticRegression(C=PROBE_C, max_iter=2000).fit(x.numpy(), labels) for x in trained]
    found = []
    for place in SETS.values():
        both, labels = features(place)
        first, second = (100 * float(f.score(x.numpy(), labels)) for f, x in zip(fitted, both, strict=True))
        found.append({"teacher": first, "castled": second, "agreement": alike(*both).neighbours})
    return found


def int8(teacher: Any, deploy: Any, bed: Path) -> dict[str, dict[str, float]]:
    """Top-1 and agreement of the int8 graph in onnxruntime, calibrated on training images."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        cc.export(deploy, file, precision="int8", calibration=str(bed / "data/train"))
        artifact = OnnxModel(file)
        for name, place in SETS.items():
            results[name] = agreement(teacher, artifact, str(bed / place))
    return results


@torch.inference_mode()
def agreement(teacher: Any, classifier: Callable[[Tensor], Tensor], spec: str) -> dict[str, float]:
    right = same = seen = 0
    device = next(teacher.parameters()).device
    for images, labels in eval_loader(open_data(spec, Preprocessing.of(teacher), "validation")):
        top = classifier(images).argmax(-1)
        right += int((top == labels).sum())
        same += int((top == teacher(images.to(device)).argmax(-1).cpu()).sum())
        seen += len(labels)
    return {"castled": 100 * right / seen, "agreement": 100 * same / seen}


def read(path: Path) -> dict[str, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["key"]: record for record in map(json.loads, lines)}


def keep(record: dict[str, Any], results: Path) -> None:
    with results.open("a") as file:
        file.write(json.dumps(record) + "\n")


def sentence(record: dict[str, Any]) -> str:
    parts = [
        f"{name} {values['castled']:.1f} (teacher {values['teacher']:.1f}), agreement {values['agreement']:.1f}, "
        f"cosines {values['prefix']:.3f} {values['patches']:.3f}"
        for name, values in record["sets"].items()
    ]
    what = record["note"] or record["data"]
    return (
        f"{record['recipe']}, {record['images']} images, seed {record['seed']}, {record['size']} pixels, {what}: "
        + ("; ".join(parts) + f"; {record['seconds'] / 60:.1f} min")
    )


HEAD = (
    "images", "minutes", "images/s", "minutes on a GPU",
    *(f"{name}: {what}" for name in SETS for what in ("top-1", "agreement", "cosines")),
    "more images: top-1", "more images: agreement", "int8: top-1", "int8: agreement",
)  # fmt: skip


def cells(records: list[dict[str, Any]]) -> list[str]:
    """Of the same run with several seeds: means, top-1 as points against the teacher."""
    here, gpu = ([r for r in records if (r["device"] == "cpu") is cpu] for cpu in (True, False))
    out = [
        f"{records[0]['images']} ({records[0]['different']})",
        f"{mean(r['seconds'] for r in here) / 60:.1f}" if here else "",
        f"{mean(r['images'] / r['seconds'] for r in here):.1f}" if here else "",
        f"{mean(r['seconds'] for r in gpu) / 60:.1f}" if gpu else "",
    ]
    for name in SETS:
        found = [r["sets"][name] for r in records]
        drops = [values["castled"] - values["teacher"] for values in found]
        spread = f" [{min(drops):+.1f}, {max(drops):+.1f}]" if len(drops) > 1 else ""
        out += [
            f"{mean(drops):+.1f}{spread}",
            f"{mean(values['agreement'] for values in found):.1f}",
            ", ".join(f"{mean(values[part] for values in found):.3f}" for part in ("prefix", "patches")),
        ]
    for key, teachers in (("more", "more"), ("int8", "sets")):
        found = [(r[key], r[teachers]) for r in records if r.get(key) is not None]
        if found:
            drops = [mean(ours[name]["castled"] - theirs[name]["teacher"] for ours, theirs in found) for name in SETS]
            same = [mean(ours[name]["agreement"] for ours, _ in found) for name in SETS]
            out += [", ".join(f"{drop:+.1f}" for drop in drops), ", ".join(f"{value:.1f}" for value in same)]
        else:
            out += ["", ""]
    return out


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def page(results: Path, listed: Iterable[Job]) -> str:
    """The Markdown page of what is there of the jobs `listed`."""
    done = read(results)
    groups: dict[str, list[tuple[str, list[dict[str, Any]]]]] = {}
    for job in dict.fromkeys(replace(job, seed=0) for job in listed):
        records = [
            done[key] | {"more": done.get(f"{AGAIN} {key}", done[key]).get("more")}
            for seed in SEEDS
            if (key := replace(job, seed=seed).key) in done
        ]
        if not records:
            continue
        name = job.note or (job.recipe if job.data == "labelled scenes" else f"{job.recipe}, {job.data}")
        groups.setdefault(section(job), []).append((f"{name} ({len(records)} seed{'s' * (len(records) > 1)})", records))
    runs = [record for record in done.values() if "sets" in record]
    first = next((r for r in runs if r["size"] == 140), None)
    levels = "" if first is None else ", ".join(f"{n} {v['teacher']:.1f} %" for n, v in first["sets"].items())
    threads = " or ".join(map(str, sorted({r["threads"] for r in runs if r["device"] == "cpu"})))
    gpus = ", ".join(sorted({r["device"] for r in runs} - {"cpu"}))
    sections = [
        f"""# A real pretrained ViT

A DINOv2 ViT-S/14 (12 layers, width 384, LayerScale), a linear head for 12 kinds of objects on photographs, all layers
castled, all masks closed, folded. Two validation sets of 900 images: new *photographs*, and new *stamps* on new
photographs. The teacher at 140 pixels: {levels}. Top-1 is in points against the teacher, mean over the seeds and range
in brackets; cosines are those of the last class token and of the last patch tokens with the teacher's. *More images*
are {MORE_IMAGES:,} others of each set, of the same photographs and stamps, on which the run was measured, or the same
run made once more (`{AGAIN}` in `pretrained.jsonl`). int8 is onnxruntime's, both sets, of the first seed. Images are
those learned from, {BATCH} a step where nothing else is said, and in brackets how many of them were different crops
(see `distill.align.echo`). {threads} threads; minutes are those of the training, on machines that other work slowed
down at times, so they are upper bounds. A GPU is {gpus or "none yet"}, in float32, several runs on it at a time.

Made by `python benchmarks/pretrained.py`; the single runs are in `pretrained.jsonl`."""
    ]
    for title, rows in groups.items():
        sections.append(f"## {title}\n\n{markdown(('', *HEAD), [(name, *cells(records)) for name, records in rows])}")
    hybrids = [done[key] for seed in SEEDS if (key := hybrid_key(seed)) in done]
    if hybrids:
        sections.append(f"""## With `--layers auto --max-drop {MAX_DROP}`

`castling`, {SHORT:,} images, a conversion as `castling convert` makes it. The more images of both validation sets
together: {hybrids[0]["plan"]["images"]:,} to plan with, the others to measure on. Minutes are those of all of it.

{
            markdown(
                (
                    "seed",
                    "layers kept",
                    "points on the planning images",
                    "points on the others",
                    "standard error",
                    "agreement",
                    "minutes",
                ),
                map(hybrid_row, hybrids),
            )
        }""")
    return "\n\n".join(sections) + "\n"


def hybrid_row(record: dict[str, Any]) -> list[object]:
    """The last plan is the one that was published."""
    last, (teacher, castled) = record["plan"]["trials"][-1], (record["accuracy"][who] for who in ("teacher", "castled"))
    return [
        record["seed"], ", ".join(map(str, last["kept"])) or "none", f"{-last['drop']:+z.2f}",
        f"{castled['top1'] - teacher['top1']:+.2f}", f"{castled['standard_error']:.2f}", f"{castled['agreement']:.1f}",
        "" if record["seconds"] is None else f"{record['seconds'] / 60:.0f}",
    ]  # fmt: skip


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def own(model: str, data: str, val: str, recipes: Sequence[str], images: int, device: str) -> None:
    """Any timm model and anybody's images, measured the same way."""
    from castling_convert.loading import load_model

    teacher: Any = load_model(model)
    size = Preprocessing.of(teacher).input_size[1:]
    for recipe in recipes:
        job = Job(recipe, images)
        deploy, seconds = converted(teacher, data, job.resolved(), device)
        values = measured(teacher.to(device), deploy.to(device), val, size)
        print(f"{recipe}, {images} images, {seconds / 60:.1f} min: " + json.dumps(values), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 images for each section, into benchmarks/.cache")
    parser.add_argument("--table", action="store_true", help="only write the page")
    parser.add_argument("--list", action="store_true", help="only say what is to do")
    parser.add_argument(
        "--more", action="store_true", help="make runs once more that more images were not looked at in"
    )
    parser.add_argument("--hybrid", action="store_true", help="only the runs that may keep layers as softmax")
    parser.add_argument("--only", default="", help="runs in whose description, see --list, this text stands")
    parser.add_argument("--device", default="cpu", help="where to train [default: cpu]")
    parser.add_argument("--model", help="a timm name, hf-hub: or local-dir:, with --data and --val")
    parser.add_argument("--data", help="images to train on")
    parser.add_argument("--val", help="images to measure on")
    parser.add_argument("--images", type=int, default=SHORT, help="how many to train on, with --model")
    arguments = parser.parse_args()
    if arguments.model:
        own(
            arguments.model, arguments.data, arguments.val or arguments.data, RECIPES[:2], arguments.images,
            arguments.device,
        )  # fmt: skip
        return
    results, table = (
        (CACHE / "pretrained-quick.jsonl", CACHE / "pretrained-quick.md") if arguments.quick else (RESULTS, TABLE)
    )
    listed = smoke_test() if arguments.quick else jobs()
    done = read(results)
    todo = [job for job in dict.fromkeys(listed) if job.key not in done and arguments.only in str(job)]
    if arguments.more:
        todo = [
            job
            for job in dict.fromkeys(listed)
            if job.classes and not job.note and arguments.only in str(job)
            if job.key in done and not done[job.key].get("more") and f"{AGAIN} {job.key}" not in done
        ]
    torch.backends.cudnn.allow_tf32 = False  # float32 on a GPU is what it is here
    if arguments.hybrid:
        todo = []
        for seed in SEEDS:
            if hybrid_key(seed) not in done and arguments.only in f"seed={seed}":
                keep(hybrid(BED, seed, arguments.device), results)
    if not (arguments.table or arguments.list):
        make(BED)
        images = some_of(BED) if arguments.quick else BED
    if not arguments.table:
        for count, job in enumerate(todo, start=1):
            print(f"[{count}/{len(todo)}] {job}", flush=True)
            if arguments.list:
                continue
            record = run(job, BED, images, arguments.device)
            record["key"] = f"{AGAIN} {job.key}" if arguments.more else job.key
            keep(record, results)
            print(sentence(record), flush=True)
    if not arguments.list:
        table.write_text(page(results, listed))
        print(f"wrote {table}")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
