"""Segmenters on the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

SMALL = shlex.split(
    "--model-arg backbone=vit_tiny_patch16_224 --model-arg patch_size=8 --model-arg depth=2 --model-arg embed_dim=32 "
    "--model-arg num_heads=2 --image-size 32 --device cpu --set distill.batch_size=4"
)
SEGMENTER = ["--model", "segmenter", "--no-pretrained", "--num-classes", "5", *SMALL]
QUICK = ["--steps", "2", "--data", "scenes", "-o", "out"]


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("castling_convert.data.scenes.VALIDATION", 40)


@pytest.mark.slow
def test_the_whole_road(castling: Any, here: Path) -> None:
    shown = castling("convert", *SEGMENTER, *QUICK).done()
    assert "mIoU, 40 held out" in " ".join(shown.out.split())
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert summary["task"] == "segment"
    assert set(summary["accuracy"]["castled"]) == {"images", "miou", "pixels", "agreement", "standard_error"}
    castling("export", "out").done()
    castling("verify", "out/model.onnx", "--data", "scenes").done()
    ladder = castling("verify", "out", "--data", "scenes", "--limit", 8).done()
    assert "right pixels" in ladder.out
    measured = json.loads(castling("evaluate", "out/model.onnx", "--data", "scenes", "--json").done().out)
    assert measured["castled"]["miou"] == pytest.approx(summary["accuracy"]["castled"]["miou"], abs=0.01)
    assert measured["teacher"]["miou"] == pytest.approx(summary["accuracy"]["teacher"]["miou"], abs=1e-6)
    castling("report", "out", "--no-latency").done()
    page = (here / "out" / "report.html").read_text()
    assert "mIoU (40 held out)" in page
    assert page.count("<figure>") >= 1


def test_the_head_is_kept_or_trained(castling: Any, here: Path) -> None:
    torch.manual_seed(0)
    teacher = timm.create_model(
        "segmenter", backbone="vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, depth=2, embed_dim=32,
        num_heads=2,
    )  # fmt: skip
    save_for_hf(teacher, "teacher", safe_serialization=True)
    options = ("--model", "local-dir:teacher", "--device", "cpu", "--set", "distill.batch_size=4", "--steps", 4)
    import castling_convert as cc

    castling("convert", *options, "-o", "kept").done()
    castling("convert", *options, "--train", "head", "-o", "trained").done()
    torch.testing.assert_close(cc.load("kept").classifier.weight, teacher.classifier.weight, rtol=0, atol=0)
    assert not torch.equal(cc.load("trained").classifier.weight, teacher.classifier.weight)
    castling("convert", *options, "--train", "tail", "-o", "out").refused("--train", "tail")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "digits"], ["digits"]),
        (["--task", "classify"], ["to segment, not to classify"]),
        (["--task", "features"], ["to segment, not to features"]),
        (["--task", "detect"], ["to segment, not to detect"]),
        (["--task", "stuff"], ["no task 'stuff'"]),
        (["--image-size", "33"], ["33"]),
        (["--model-arg", "backbone=resnet18"], ["resnet18"]),
        (["--model-arg", "backbone=vit_tinny"], ["vit_tinny"]),
        (["--model-arg", "backbone=3"], ["no model 3 for a backbone"]),
        (["--pretrained"], ["no pretrained weights for segmenter"]),
        (["--set", "data.sizes=[36]"], ["36 is no multiple of the patch"]),
        (["--model-arg", "backbone=vit_relpos_small_patch16_224", "--set", "data.sizes=[48]"], ["images of 48x48"]),
        (["--model-arg", "out_indices=[9]"], ["9"]),
        (["--model-arg", "wings=2"], ["wings"]),
    ],
)
def test_what_does_not_fit(castling: Any, arguments: list[str], words: list[str]) -> None:
    castling("convert", *SEGMENTER, "--steps", "2", "-o", "out", *arguments).refused(*words)


def test_a_task_that_a_classifier_has_not(castling: Any, tiny: Any) -> None:
    castling("convert", *tiny, "--task", "segment", "-o", "out").refused("to classify, not to segment", "docs/dense.md")


def test_scenes_for_a_classifier(castling: Any, tiny: Any) -> None:
    castling("convert", *tiny, "--data", "scenes", "-o", "out").refused("scenes")


def test_a_forged_bundle(castling: Any, here: Path) -> None:
    castling("convert", *SEGMENTER, "--steps", "1", "-o", "out").done()
    config = json.loads((here / "out" / "config.json").read_text())
    for key, value in (("checkpoint_path", "x.pth"), ("backbone", "../x"), ("backbone", "resnet18"), ("pretrained", 1)):
        forged = json.loads(json.dumps(config))
        forged["model_args"]["base_args"][key] = value
        (here / "out" / "config.json").write_text(json.dumps(forged))
        castling("export", "out").failed(2, "out")
