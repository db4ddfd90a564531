"""castling bench."""

from __future__ import annotations

import json
import shutil

import pytest

from castling_convert.bench.memory import STATUS


@pytest.fixture
def bundle(here, made):
    shutil.copytree(made, here / "out")
    return here / "out"


COMMAND = ("bench", "out", "--seconds", 0, "--threads", 1, "--image-size", 16)


def test_a_bundle(castling, bundle, here, monkeypatch):
    monkeypatch.setattr("castling_convert.bench.memory.STATUS", here / "nowhere")  # no Linux: a process each less
    out = castling(*COMMAND, "--image-size", "32x16", "--plot", "latency.png").done().out
    assert "out, 1 threads" in out
    assert "onnx fp32, 16x16, batch 1" in out
    assert "onnx fp32, 32x16, batch 1" in out
    assert (here / "latency.png").is_file()


def test_as_json(castling, bundle):
    (only,) = json.loads(castling(*COMMAND, "--json").done().out)
    assert only["case"] == {"runtime": "onnx", "precision": "fp32", "image_size": [16, 16], "batch": 1}
    assert only["ratio"]["low"] <= only["ratio"]["value"] <= only["ratio"]["high"]
    assert only["latency"]["castled"]["median"] > 0
    assert set(only["memory"]) == (set(only["latency"]) if STATUS.exists() else set())


def test_what_a_user_can_get_wrong(castling, bundle):
    castling("bench", "nowhere").refused("nowhere")
    castling("bench", "out", "--runtime", "tpu").refused("not in 'tpu'")
    castling("bench", "out", "--plot", "latency.pdf").refused("--plot", ".svg or .png")
