"""castling bench."""

from __future__ import annotations

import json
import shutil

import pytest


@pytest.fixture
def bundle(here, made):
    shutil.copytree(made, here / "out")
    return here / "out"


def test_a_bundle(castling, bundle, here):
    command = ("bench", "out", "--seconds", 0, "--image-size", 16, "--image-size", "32x16", "--threads", 1)
    out = castling(*command, "--plot", "latency.png").done().out
    assert "out, 1 threads" in out
    assert "onnx fp32, 16x16, batch 1" in out
    assert "onnx fp32, 32x16, batch 1" in out
    assert (here / "latency.png").is_file()
    first, second = json.loads(castling(*command, "--json").done().out)
    assert first["case"] == {"runtime": "onnx", "precision": "fp32", "image_size": [16, 16], "batch": 1}
    assert second["ratio"]["low"] <= second["ratio"]["value"] <= second["ratio"]["high"]
    assert first["latency"]["castled"]["median"] > 0


def test_what_a_user_can_get_wrong(castling, bundle):
    castling("bench", "nowhere").refused("nowhere")
    castling("bench", "out", "--runtime", "tpu").refused("not in 'tpu'")
    castling("bench", "out", "--plot", "latency.pdf").refused("--plot", ".svg or .png")
