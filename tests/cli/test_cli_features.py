"""A model without classes, on the command line from end to end."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow

SMALL = (
    "--image-size",
    28,
    *(word for pair in ("embed_dim=48", "depth=2", "num_heads=3") for word in ("--model-arg", pair)),
)


def test_dinov2_as_a_feature_model(castling, here):
    made = castling(
        "convert", "--model", "dinov2_s", "--no-pretrained", *SMALL, "--data", "digits", "--steps", 2,
        "--set", "distill.batch_size=4", "--device", "cpu", "-o", "out",
    ).done()  # fmt: skip
    assert "same nearest neighbour" in made.out
    assert "parity with the folded model" in castling("export", "out", "--format", "onnx").done().out
    parity = json.loads(castling("verify", "out/model.onnx", "--data", "digits", "--json").done().out)
    assert parity["holds"] is True
    assert parity["folded"]["agreement"] > 90
    castling("verify", "out", "--data", "digits").done()

    # The weights were random: the seed makes them again.
    values = json.loads(castling("evaluate", "out", "--data", "digits", "--json").done().out)
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert values["castled"] == summary["accuracy"]["features"]
    assert values["teacher"]["images"] == 597
    shown = castling("evaluate", "out/model.onnx", "--data", "digits").done().out
    assert "cosine with teacher" in shown
    castling("inspect", "--model", "dinov2_s", "--no-pretrained", *SMALL, "--sensitivity", "--data", "digits").done()


def test_a_random_teacher_that_does_not_come_out_the_same_is_none(castling, here):
    castling(
        "convert", "--model", "vit_t", "--no-pretrained", *SMALL, "--model-arg", "num_classes=0",
        "--model-arg", "patch_size=7",         "--data", "digits", "--steps", 2,
        "--set", "distill.batch_size=4", "--device", "cpu", "-o", "out",
    ).done()  # fmt: skip
    summary = json.loads((here / "out" / "summary.json").read_text())
    summary["identity"]["teacher_weights"] = "0" * 64
    (here / "out" / "summary.json").write_text(json.dumps(summary))
    castling("evaluate", "out", "--data", "digits").refused("do not come out the same here", "--teacher")
