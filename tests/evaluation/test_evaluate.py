"""Which teacher a bundle is set beside, and what is said when there is none."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

import castling_convert as cc
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.spec import open_data
from castling_convert.doctor import examine
from castling_convert.errors import WeightsError
from castling_convert.evaluation.evaluate import evaluate
from castling_convert.exporting import FORMATS
from castling_convert.families import family_of
from castling_convert.pipeline.conversion import convert
from castling_convert.recipe import Recipe
from castling_convert.tasks import task_of

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
RECIPE = Recipe.load("castling", ["distill.steps=1", "distill.batch_size=2"])


def model():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, **SMALL).eval()


def test_the_teacher_is_found_again_by_its_weights_file(tmp_path):
    teacher = model()
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    made = convert(
        "vit_t", tmp_path / "out", data="digits", recipe=RECIPE, weights=tmp_path / "teacher.safetensors",
        image_size=(32, 32), model_args=SMALL, device="cpu",
    )  # fmt: skip
    results, notes = evaluate(tmp_path / "out", "digits")
    assert notes == []
    assert list(results) == ["teacher", "castled"]
    assert results["teacher"].to_dict() == made["accuracy"]["teacher"]
    assert results["castled"].to_dict() == made["accuracy"]["castled"]


def test_a_bundle_on_another_machine_says_what_is_missing_and_how_to_give_it(tmp_path):
    """Of a weights file, and of a folder."""
    file, folder, here = tmp_path / "teacher.safetensors", tmp_path / "teacher", tmp_path / "here"
    save_file(model().state_dict(), file)
    options = {"data": "digits", "recipe": RECIPE, "device": "cpu"}
    convert("vit_t", tmp_path / "of file", weights=file, image_size=(32, 32), model_args=SMALL, **options)
    save_for_hf(model(), folder, safe_serialization=True)
    convert(f"local-dir:{folder}", tmp_path / "of folder", **options)
    here.mkdir()
    file.rename(here / file.name)
    folder.rename(here / folder.name)

    results, notes = evaluate(tmp_path / "of file", "digits")
    assert list(results) == ["castled"]
    assert notes == [
        f"without the teacher: the bundle's teacher is vit_t with the weights in {file}, which are not on this "
        "machine; give them with --teacher-weights FILE"
    ]
    results, notes = evaluate(tmp_path / "of file", "digits", teacher_weights=here / file.name)
    assert (list(results), notes) == (["teacher", "castled"], [])
    with pytest.raises(WeightsError) as wrong:
        evaluate(tmp_path / "of file", "digits", teacher_weights=file)
    assert str(wrong.value) == f"weights file {file} not found; give them with --teacher-weights FILE"

    results, notes = evaluate(tmp_path / "of folder", "digits")
    assert list(results) == ["castled"]
    assert notes == [
        f"without the teacher: the teacher is the model in {folder}, which is not on this machine; give it with "
        "--teacher local-dir:DIR"
    ]
    results, notes = evaluate(tmp_path / "of folder", "digits", teacher=f"local-dir:{here / folder.name}")
    assert (list(results), notes) == (["teacher", "castled"], [])


def test_a_teacher_that_was_handed_over_is_not_replaced_by_another(tmp_path):
    """Its name alone does not bring back its weights, so there is nothing to set beside the bundle."""
    convert(model(), tmp_path / "out", data="digits", recipe=RECIPE, device="cpu")
    results, notes = evaluate(tmp_path / "out", "digits")
    assert list(results) == ["castled"]
    assert "--teacher" in notes[0]


def test_an_artifact_of_another_size_is_evaluated_at_its_own(tmp_path):
    teacher = model()
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    convert(
        "vit_t", tmp_path / "out", data="digits", recipe=RECIPE, weights=tmp_path / "teacher.safetensors",
        image_size=(32, 32), model_args=SMALL, device="cpu",
    )  # fmt: skip
    artifact = tmp_path / "out" / "larger.onnx"
    cc.export(tmp_path / "out", artifact, image_size=(48, 48))
    results, notes = evaluate(artifact, "digits")
    assert notes == []
    folded = cc.load(tmp_path / "out")
    for resized in (teacher, folded):
        family_of(resized).resize_(resized, (48, 48))
    images = open_data("digits", Preprocessing.of(folded), "validation")
    by_hand = task_of(folded).measure({"teacher": teacher, "castled": folded}, images)
    assert {name: score.to_dict() for name, score in results.items()} == {
        name: score.to_dict() for name, score in by_hand.items()
    }


def test_limit(tmp_path):
    convert(model(), tmp_path / "out", data="digits", recipe=RECIPE, device="cpu")
    results, _ = evaluate(tmp_path / "out", "digits", limit=10)
    assert 10 <= results["castled"].images < 597


def test_doctor_names_every_format():
    report = examine()
    assert set(report["formats"]) == set(FORMATS)
    assert report["versions"]["timm"] == timm.__version__
    assert "cpu" in report["devices"]
    assert all(isinstance(value, str) for rows in report.values() for value in rows.values())
