"""castling analyze."""

from __future__ import annotations

import json
import shlex

import pytest

TINY = shlex.split(
    "--model vit_t --model-arg patch_size=8 --model-arg depth=2 --model-arg embed_dim=32 --model-arg num_heads=2"
)


@pytest.mark.slow
def test_analyze(castling, monkeypatch):
    monkeypatch.setattr("castling_convert.bench.layers.SIDES", (3, 5))  # each is an export of every variant
    command = ("analyze", *TINY, "--image-size", 32, "--image-size", "16x32", "--seconds", 0, "--threads", 1)
    out = castling(*command, "--runtime", "onnx", "--runtime", "torch").done().out
    for words in ("vit_t, attention layers, 1 threads", "2 of 16", "onnx fp32, ms", "break-even in torch: a layer of",
                  "onnx fp32, 32x32, batch 1: the gain is", "torch fp32, 16x32, batch 1: the gain is"):  # fmt: skip
        assert words in out
    values = json.loads(castling(*command, "--runtime", "torch", "--json").done().out)
    assert [layer["tokens"] for layer in values["layers"]] == [17, 9]
    assert values["layers"][0]["softmax"]["macs"] == 4 * 17 * 32 * 32 + 2 * 17**2 * 32
    assert [case["case"]["image_size"] for case in values["cases"]] == [[32, 32], [16, 32]]
    assert {advice["gain"] for advice in values["advice"]} <= {"none", "small", "moderate", "large"}


def test_what_a_user_can_get_wrong(castling):
    castling("analyze").refused("--model")
    castling("analyze", "--model", "deit_x").refused("deit_x")
    castling("analyze", "--model", "resnet18").refused("resnet18")
    castling("analyze", *TINY, "--runtime", "tpu").refused("not in 'tpu'")
    castling("analyze", *TINY, "--precision", "fp8").refused("fp8")
    castling("analyze", *TINY, "--recipe", "nothing").refused("nothing")
    castling("analyze", *TINY, "--image-size", 4, "--runtime", "torch").refused("4x4")
