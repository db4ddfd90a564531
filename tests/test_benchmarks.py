"""The benchmarks, a few steps long: of pretrained models, on a model and images made here; of TensorRT; of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.models import save_for_hf

import castling_convert as cc
from castling_convert.exporting import FORMATS
from tests.models import tiny

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def pretrained(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import pretrained

    yield pretrained
    for name in ("pretrained", "bed"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_any_model_on_anybodys_images(pretrained, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for part, kind, index in ((p, k, i) for p in ("train", "val") for k in ("a", "b") for i in range(8)):
        folder = tmp_path / "images" / part / kind
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    save_for_hf(tiny(num_classes=2), tmp_path / "teacher", safe_serialization=True)
    images = tmp_path / "images"
    pretrained.own(
        f"local-dir:{tmp_path / 'teacher'}", str(images / "train"), str(images / "val"), ("castling",), 64, "cpu"
    )
    line = capsys.readouterr().out.strip()
    values = json.loads(line[line.index("{") :])
    assert set(values) == {"teacher", "castled", "agreement", "prefix", "patches"}
    assert all(0 <= values[name] <= 100 for name in ("teacher", "castled", "agreement"))
    assert all(0.5 < values[name] <= 1 + 1e-5 for name in ("prefix", "patches"))


def test_probes_of_models_without_classes(pretrained, tmp_path, monkeypatch):
    """The features of a model and of itself: the same neighbours, and the same probe."""
    rng = np.random.default_rng(0)
    for place, kind, index in (
        (p, k, i) for p in ("data/train", "data/val", "unseen") for k in range(2) for i in range(8)
    ):
        folder = tmp_path / place / str(kind)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (40, 40, 3), dtype=np.uint8) + np.uint8(120 * kind)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    model = tiny(num_classes=0)
    for found in pretrained.probes(model, model, tmp_path):
        assert found["teacher"] == found["castled"] == 100  # dark and bright
        assert found["agreement"] == 100


def test_every_run_is_another_one(pretrained):
    jobs = pretrained.jobs()
    assert len({job.key for job in jobs}) == len(jobs) > 15
    assert {job.recipe for job in jobs} == set(pretrained.RECIPES)


def test_the_page_says_what_is_there(pretrained, tmp_path):
    sets = {"photographs": {"teacher": 78.0, "castled": 77.0, "agreement": 84.0, "prefix": 0.95, "patches": 0.94}}
    sets["stamps"] = sets["photographs"]
    int8 = {name: {"castled": 76.0, "agreement": 83.0} for name in sets}
    more = {name: values | {"castled": 77.5, "agreement": 85.0} for name, values in sets.items()}
    results = tmp_path / "results.jsonl"
    for job in pretrained.jobs()[:4]:
        record = {
            "key": job.key, "seconds": 60.0 * (1 + job.seed), "sets": sets, "int8": int8 if job.seed == 0 else None,
            "size": job.size, "device": "cpu" if job.seed == 0 else "NVIDIA X", "threads": 2, "images": job.images,
            "different": pretrained.different(job.resolved()), **({"more": more} if job.seed == 1 else {}),
        }  # fmt: skip
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
    once_more = {name: values | {"castled": 78.5, "agreement": 86.0} for name, values in sets.items()}
    with results.open("a") as file:
        file.write(json.dumps(record | {"key": f"again {pretrained.jobs()[0].key}", "more": once_more}) + "\n")
    page = pretrained.page(results, pretrained.jobs())
    assert "| castling (2 seeds) | 10000 (6000) | 1.0 | 166.7 | 2.0 | -1.0 [-1.0, -1.0] | 84.0 | 0.950, 0.940 |" in page
    assert "A GPU is NVIDIA X," in " ".join(page.split())
    assert "| +0.0, +0.0 | 85.5, 85.5 | -2.0, -2.0 | 83.0, 83.0 |" in page
    assert "| -0.5, -0.5 | 85.0, 85.0 | -2.0, -2.0 | 83.0, 83.0 |" in page
    assert "--max-drop" not in page
    hybrid = {
        "key": pretrained.hybrid_key(1), "seed": 1, "seconds": 600.0,
        "plan": {"images": 2000, "trials": [{"kept": [], "drop": 0.4}, {"kept": [3, 0], "drop": -0.1}]},
        "accuracy": {"teacher": {"top1": 70.0}, "castled": {"top1": 69.75, "agreement": 90.0, "standard_error": 0.4}},
    }  # fmt: skip
    with results.open("a") as file:
        file.write(json.dumps(hybrid) + "\n")
    both = pretrained.page(results, pretrained.jobs())
    assert both.startswith(page)
    assert "| 1 | 3, 0 | +0.10 | -0.25 | 0.40 | 90.0 | 10 |" in both
    assert "2,000 to plan with" in both


@pytest.mark.slow
def test_the_table_of_tensorrt_says_what_was_not_run():
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which [dev] has on Linux x86-64")
    command = [sys.executable, str(BENCHMARKS / "tensorrt.py"), "--quick"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| trt-rtx")
    ]
    assert [row[4] for row in rows] == ["softmax", "castling", "castling-fast"]
    for row in rows:
        layers, integer, casts = (int(cell.replace(",", "")) for cell in row[5:8])
        assert layers > integer + casts > 0
        assert float(row[8]) > 1
        assert (row[10] == "not run") is (FORMATS["trt-rtx"].exporter.cannot_run() is not None)


@pytest.fixture
def long_run(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import long_run

    yield long_run
    sys.modules.pop("long_run", None)


def test_a_leak_would_be_seen(long_run):
    """1 % more over a phase, and one that only warms up."""
    assert long_run.growth([1000 + step // 10 for step in range(1000)]) == pytest.approx(0.07, abs=0.02)
    assert long_run.growth([500] * 90 + [1000] * 910) == 0


@pytest.mark.slow
def test_a_long_run_made_short(long_run):
    command = [sys.executable, str(BENCHMARKS / "long_run.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["align", "closed"]
    assert all("300 steps" in line for line in lines[:2])
    assert lines[-1].startswith("too few steps to judge by: ")


@pytest.fixture
def dense(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import dense

    yield dense
    for name in ("dense", "pretrained", "bed"):
        sys.modules.pop(name, None)


def test_the_page_of_dense_tasks(dense, tmp_path, monkeypatch):
    records = [
        {
            "key": f"{task} 280 {seed}", "task": task, "size": 280, "trained": 280, "seed": seed, "images": 3000,
            "steps": 750, "seconds": 900.0, "macs": {"teacher": 12e9, "castled": 11e9},
            "teacher": {score: 40.0}, "castled": {score: 39.0 + seed, "agreement": 95.0},
            **({"int8": {score: 38.5, "agreement": 94.0}} if seed == 0 else {}),
        }
        for task, score in (("segment", "miou"), ("detect", "map"))
        for seed in (0, 1)
    ]  # fmt: skip
    timed = {
        "key": "segment 280 0 15 minutes",
        "minutes": 15.0,
        "images": 2000,
        "steps": 1000,
        "int8": {"miou": 40.0, "agreement": 94.0},
    }
    records.append(records[0] | timed)
    more = {"teacher": {"miou": 30.0}, "castled": {"miou": 29.25, "agreement": 96.0}}
    records.append({"key": "more segment 280 0", **more})
    (tmp_path / "dense.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = [line for line in dense.page(tmp_path / "dense.jsonl").splitlines() if line.startswith("| segment")]
    assert rows == [
        "| segment, mIoU | castling | 280 | 280 | 4 | 2 | 3000 | 15.0 | 40.0 | -0.5 [-1.0, +0.0] | 95.0 | -1.5 | 94.0 "
        "| 30.0 | -0.8 | 96.0 | 12.0 to 11.0 |",
        "| segment, mIoU | castling, --minutes 15 | 280 | 280 | 2 | 1 | 2000 | 15.0 | 40.0 | -1.0 | 95.0 | +0.0 | 94.0 "
        "|  |  |  | 12.0 to 11.0 |",
    ]


def test_within_minutes_all_but_the_seed_is_left_to_the_tool(dense):
    timed = [job for job in dense.jobs() if job.minutes is not None]
    assert len(timed) == 8
    for job in timed:
        assert job.resolved() == cc.Recipe.load("castling", [f"distill.seed={job.seed}"])
    assert len({job.key for job in dense.jobs()}) == len(dense.jobs())


def test_a_folder_is_there_when_all_of_it_is(dense, tmp_path):
    from bed import fresh

    def made(*names: str) -> None:
        with fresh(tmp_path / "images") as place:
            for name in names:
                (place / name).touch()
                if name == "stopped":
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made("a", "stopped", "b")
    assert not (tmp_path / "images").exists()
    made("b", "c")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_scenes_are_drawn(dense, tmp_path):
    from bed import draw_scenes, draw_stamped

    rng = np.random.default_rng(0)
    photographs = [tmp_path / f"{index}.png" for index in range(2)]
    for path in photographs:
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(path)
    stamp = np.zeros((60, 40, 4), np.uint8)
    stamp[10:50, 5:35] = 255
    Image.fromarray(stamp).save(tmp_path / "stamp.png")
    import random

    draw_scenes(tmp_path / "scenes/train", 4, photographs, {"a": [tmp_path / "stamp.png"]}, random.Random(0))
    described = json.loads((tmp_path / "scenes/train/instances.json").read_text())
    assert len(described["images"]) == 4
    for note in described["annotations"]:
        mask = np.asarray(Image.open(tmp_path / f"scenes/train/masks/{note['image_id']:05d}.png"))
        x, y, width, height = note["bbox"]
        assert set(np.unique(mask)) <= {0, 1}
        assert mask[y : y + height, x : x + width].any()
    draw_stamped(
        tmp_path / "images",
        3,
        photographs,
        {"a/b": [tmp_path / "stamp.png"], "c": [tmp_path / "stamp.png"]},
        random.Random(0),
    )
    assert sorted(str(path.relative_to(tmp_path / "images")) for path in (tmp_path / "images").rglob("*.jpg")) == [
        "a-b/00000.jpg",
        "a-b/00002.jpg",
        "c/00001.jpg",
    ]
    copy = dense.some_of_parts(tmp_path / "scenes", tmp_path / "few", {"train": 2})
    assert len(list((copy / "train/images").iterdir())) == 2
