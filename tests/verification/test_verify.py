"""Verify: what is compared with what, and how an artifact finds its bundle."""

from __future__ import annotations

import copy
import shutil

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert import bundle
from castling_convert.artifact.parity import Parity
from castling_convert.castling import close_masks
from castling_convert.errors import BundleError, DataError, ExportError
from castling_convert.tasks.segment import Segment
from castling_convert.verification.artifact import Verification, verify
from castling_convert.verification.ladder import ladder
from castling_convert.verification.target import find_bundle


@pytest.fixture(scope="module")
def student():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10
    )
    student = cc.castle(teacher)
    close_masks(student)
    return student.eval()


@pytest.fixture(scope="module")
def original(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "out"
    cc.save(cc.fold(student), path, trained=student)
    cc.export(path)
    return path


@pytest.fixture
def made(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(original, tmp_path / "out")


def test_both_models_are_compared(made):
    result = verify(made / "model.onnx")
    assert result.holds
    assert result.folded.images == result.trained.images == 8
    assert result.folded.max_error <= 1e-4
    assert "generated" in result.images
    assert result.to_dict()["trained"]["holds"] is True


def test_real_images(made):
    result = verify(made / "model.onnx", data="digits")
    assert result.folded.images == 64
    assert result.images == "64 images of digits"


def test_each_model_is_run_itself(made, student):
    """A trained model that differs from the folded one is seen, though the artifact matches the folded one."""
    other = copy.deepcopy(student)
    with torch.no_grad():
        other.head.bias.add_(1)
    cc.save(bundle.load(made), made, trained=other, force=True)
    cc.export(made)
    result = verify(made / "model.onnx")
    assert result.folded.holds
    assert not result.trained.holds
    assert not result.holds


@pytest.mark.parametrize("trained", [None, True, False])
@pytest.mark.parametrize("folded", [True, False])
def test_holds_needs_every_comparison(folded, trained):
    def parity(holds: bool) -> Parity:
        return Parity(1, 0.0, 0.0, 0.0, 100.0, holds)

    result = Verification("a", "b", "c", "1e-4", parity(folded), None if trained is None else parity(trained))
    assert result.holds == (folded and trained is not False)


@pytest.mark.parametrize("options", [{"batch": "4"}, {"batch": "1:2:4"}, {"image_size": (48, 32)}, {"simplify": False}])
def test_artifacts_of_every_shape(made, options):
    cc.export(made, made / "other.onnx", **options)
    result = verify(made / "other.onnx")
    assert result.holds
    assert result.folded.images == 8


def test_find_bundle(made, tmp_path):
    identity = bundle.read_summary(made)["sha256"][bundle.WEIGHTS]
    artifact = made / "model.onnx"
    assert find_bundle(artifact, identity, None) == made.resolve()
    assert find_bundle(artifact, identity, made) == made
    assert find_bundle(artifact, None, made) == made
    moved = tmp_path / "moved.onnx"
    with pytest.raises(BundleError, match="--bundle"):
        find_bundle(moved, identity, None)
    with pytest.raises(BundleError, match="does not say which bundle"):
        find_bundle(artifact, None, None)
    with pytest.raises(BundleError, match="not exported from"):
        find_bundle(artifact, "0" * 64, made)
    shutil.copytree(made, tmp_path / "castled" / "x")
    assert find_bundle(moved, identity, None).resolve() == (tmp_path / "castled" / "x").resolve()


def test_a_damaged_summary_beside_others_does_not_stop_the_search(made, tmp_path):
    """The broken bundle is somebody else's; this artifact's own is whole."""
    identity = bundle.read_summary(made)["sha256"][bundle.WEIGHTS]
    (tmp_path / "castled" / "broken").mkdir(parents=True)
    (tmp_path / "castled" / "broken" / "summary.json").write_text("{")
    shutil.copytree(made, tmp_path / "castled" / "whole")
    assert find_bundle(tmp_path / "moved.onnx", identity, None).name == "whole"


@pytest.mark.parametrize(
    ("artifact", "error", "words"),
    [
        ("nowhere.onnx", ExportError, "not found"),
        ("config.json", ExportError, "none of .onnx"),
    ],
)
def test_what_can_not_be_verified(made, artifact, error, words):
    with pytest.raises(error, match=words):
        verify(made / artifact)


def test_data_that_is_not_there(made):
    with pytest.raises(DataError, match="nowhere not found"):
        verify(made / "model.onnx", data="nowhere")


def test_a_bundle_converted_again_is_not_taken_for_the_old_one(made, student):
    other = copy.deepcopy(student)
    with torch.no_grad():
        other.head.bias.add_(1)
    cc.save(cc.fold(other), made, force=True)
    with pytest.raises(ExportError, match="not found"):
        verify(made / "model.onnx")


def test_of_a_segmenter_a_few_outputs_at_once_are_held(tmp_path, monkeypatch):
    """They may be a hundred megabytes an image; what is found is the same as of all at once."""
    monkeypatch.setattr("castling_convert.data.scenes.VALIDATION", 40)
    torch.manual_seed(0)
    student = cc.castle(timm.create_model(
        "segmenter", backbone="vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, depth=1, embed_dim=32,
        num_heads=2,
    ))  # fmt: skip
    close_masks(student)
    path = tmp_path / "out"
    cc.save(cc.fold(student.eval()), path, trained=student)
    cc.export(path)
    seen, agreement = [], Segment.agreement
    monkeypatch.setattr(Segment, "agreement", lambda *how: seen.append(len(how[1])) or agreement(*how))
    few, artifact = ladder(path, "scenes", 37), verify(path / "model.onnx", data="scenes")
    assert torch.is_grad_enabled()
    assert seen == [16, 16, 5, 16, 16, 5, 16, 16, 16, 16, 8, 8]  # the artifact runs once for both models
    for module in ("artifact.runner", "verification.ladder"):
        monkeypatch.setattr(f"castling_convert.{module}.PLACES_AT_ONCE", 64)
    for one, whole in zip(few.rungs, ladder(path, "scenes", 37).rungs, strict=True):
        assert one.top1 == pytest.approx(whole.top1)
        assert one.holds is whole.holds is True
        if whole.parity is not None:
            assert one.parity.images == 37
            assert one.parity.agreement == pytest.approx(whole.parity.agreement)
            assert one.parity.noise == pytest.approx(whole.parity.noise, rel=0.2)
    assert artifact.folded.images == 40
    assert artifact.holds
