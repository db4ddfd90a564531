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
    results = tmp_path / "results.jsonl"
    for job in pretrained.jobs()[:4]:
        record = {
            "key": job.key, "seconds": 60.0 * (1 + job.seed), "sets": sets, "int8": int8 if job.seed == 0 else None,
            "size": job.size, "device": "cpu" if job.seed == 0 else "NVIDIA X", "threads": 2, "images": job.images,
            "different": pretrained.BATCH * pretrained.different(job),
        }  # fmt: skip
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
    page = pretrained.page(results, pretrained.jobs())
    assert "| castling (2 seeds) | 10000 (6000) | 1.0 | 166.7 | 2.0 | -1.0 [-1.0, -1.0] | 84.0 | 0.950, 0.940 |" in page
    assert "A GPU is NVIDIA X," in page
    assert "-2.0, -2.0 | 83.0, 83.0 |" in page


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
