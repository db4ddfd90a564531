"""The whole road as a user goes it: DeiT-S from a weights file, photographs, ONNX."""

from __future__ import annotations

import json
import shlex

import pytest
import timm
import torch
from safetensors.torch import save_file

import castling_convert as cc

pytestmark = pytest.mark.slow


def test_deit_s_from_a_file_on_photographs(castling, here, photographs):
    torch.manual_seed(0)
    teacher = timm.create_model("deit_small_patch16_224").eval()
    save_file(teacher.state_dict(), here / "deit_s.safetensors")
    smaller = shlex.split("--image-size 64 --set distill.batch_size=4 --device cpu")  # for a test's time only

    arguments = ("--model", "deit_s", "--weights", "deit_s.safetensors", "--data", photographs, "--steps", 6)
    made = castling("convert", *arguments, "--output", "out", *smaller).done()
    assert "next: castling export out --format onnx" in made.out
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert [layer["status"] for layer in summary["layers"]] == ["castled"] * 12
    assert summary["distill"]["steps"] == 6

    exported = castling("export", "out", "--format", "onnx").done().out
    assert "parity with the folded model" in exported
    verified = castling("verify", "out/model.onnx", "--data", photographs, "--json").done()
    parity = json.loads(verified.out)
    assert parity["holds"] is True
    assert parity["folded"]["images"] == 16
    assert parity["folded"]["max_error"] <= 1e-4
    assert parity["trained"]["max_error"] <= 1e-4

    from castling_convert.artifact.onnx_model import OnnxModel
    from castling_convert.data.loaders import some_images
    from castling_convert.data.preprocessing import Preprocessing
    from castling_convert.data.spec import open_data

    loaded = cc.load("out")
    by_timm = timm.create_model("local-dir:out", pretrained=True).eval()
    images = some_images(open_data(str(photographs), Preprocessing.of(loaded), "validation"), 8)
    with torch.no_grad():
        logits = loaded(images)
        assert torch.equal(by_timm(images), logits)
    assert logits.shape == (8, 1000)
    assert logits.std() > 0.01
    assert (OnnxModel(here / "out" / "model.onnx")(images) - logits).abs().max() <= 1e-4

    values = json.loads(castling("evaluate", "out", "--data", photographs, "--json").done().out)
    assert values["teacher"]["images"] == values["castled"]["images"] == 16
    assert len(values["notes"]) == 1
    assert "2 classes and the model 1000" in values["notes"][0]
    assert values["castled"]["top1"] is None
    assert values["castled"]["agreement"] is not None
    assert sorted(path.name for path in here.iterdir()) == ["deit_s.safetensors", "out"]
