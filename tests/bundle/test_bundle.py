from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import timm
import torch

import castling_convert as cc
from castling_convert import bundle
from castling_convert.errors import BundleError, CastlingError, FoldError, OutputError
from tests.models import (
    ATTENTION,
    FAST,
    FEATURES,
    KINDS,
    LANDMARKS,
    SNIPPET,
    WINDOW,
    closed_student,
    images,
    recipe,
    tiny,
)


@pytest.fixture(scope="module")
def student() -> Any:
    return closed_student(tiny())


@pytest.fixture(scope="module")
def folded(student: Any) -> Any:
    return cc.fold(student)


@pytest.fixture(scope="module")
def saved(folded: Any, student: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle; tests that change it take `copied`."""
    folder = tmp_path_factory.mktemp("saved")
    metrics = folder / "metrics.jsonl"
    metrics.write_text('{"step": 0}\n')
    return cc.save(
        folded,
        folder / "bundle",
        recipe=recipe(),
        summary={"accuracy": None},
        metrics=metrics,
        trained=student,
    )


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


def from_timm(path: Path, **arguments: Any) -> Any:
    return timm.create_model(f"local-dir:{path}", pretrained=True, **arguments).eval()


LOADERS: list[Callable[[Path], Any]] = [cc.load, from_timm]


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(images())


def test_files_of_a_bundle(saved: Path) -> None:
    names = {p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()}
    assert names == {
        "config.json", "model.safetensors", "recipe.yaml", "metrics.jsonl", "summary.json",
        "train/trained.safetensors",
    }  # fmt: skip
    summary = json.loads((saved / "summary.json").read_text())
    assert set(summary["sha256"]) == names - {"summary.json"}
    assert cc.Recipe.load(saved / "recipe.yaml") == recipe()
    config = json.loads((saved / "config.json").read_text())
    assert {"architecture", "model_args", "pretrained_cfg", "castling"} <= config.keys()
    assert config["castling"]["format"] == 2


@pytest.mark.parametrize("loader", LOADERS)
def test_round_trip_is_exact(saved: Path, folded: Any, loader: Callable[[Path], Any]) -> None:
    loaded = loader(saved)
    assert not loaded.training
    assert torch.equal(outputs(loaded), outputs(folded))
    assert loaded.castling.castled == folded.castling.castled
    assert loaded.castling.attention == folded.castling.attention
    assert loaded.state_dict().keys() == folded.state_dict().keys()


def test_the_account_of_the_layers_comes_back_as_it_was(folded: Any, saved: Path) -> None:
    assert cc.load(saved).castling == folded.castling


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["castling", "reference"])
def test_round_trip_of_every_kind(kind: str, form: str, tmp_path: Path) -> None:
    attention = ATTENTION if form == "castling" else cc.Recipe.load("reference").attention.model_dump()
    folded = cc.fold(closed_student(tiny(KINDS[kind]), **attention))
    path = cc.save(folded, tmp_path / "bundle")
    assert torch.equal(outputs(cc.load(path)), outputs(folded))


def test_hybrid_selection_and_model_arguments_survive(tmp_path: Path) -> None:
    arguments = {"img_size": (32, 48), "init_values": 0.1, "qk_norm": True, "reg_tokens": 2}
    folded = cc.fold(closed_student(tiny(**arguments), "1"))
    loaded = cc.load(cc.save(folded, tmp_path / "bundle"))
    assert loaded.castling.castled == ["blocks.1.attn"]
    with torch.no_grad():
        assert torch.equal(loaded(images(2, 32, 48)), folded(images(2, 32, 48)))


@pytest.mark.parametrize("when", ["before castling", "after castling", "after folding"])
def test_a_model_that_was_resized_survives(tmp_path: Path, when: str) -> None:
    model = tiny()
    if when == "before castling":
        model.set_input_size(img_size=(48, 24))
        model.reset_classifier(7)
    model = closed_student(model)
    if when == "after castling":
        model.set_input_size(img_size=(48, 24))
        model.reset_classifier(7)
    model = cc.fold(model)
    if when == "after folding":
        model.set_input_size(img_size=(48, 24))
        model.reset_classifier(7)
    loaded = cc.load(cc.save(model, tmp_path / "bundle"))
    with torch.no_grad():
        assert torch.equal(loaded(images(2, 48, 24)), model(images(2, 48, 24)))


def test_the_trained_student_comes_back(saved: Path, student: Any) -> None:
    trained = bundle.load_trained(saved)
    assert trained is not None
    assert torch.equal(outputs(trained), outputs(student))


def test_a_bundle_without_the_student(folded: Any, tmp_path: Path) -> None:
    assert bundle.load_trained(cc.save(folded, tmp_path / "bundle")) is None


@pytest.mark.parametrize("order", ["timm, castling_convert", "castling_convert, timm"])
def test_timm_loads_it_in_a_fresh_process(saved: Path, folded: Any, tmp_path: Path, order: str) -> None:
    torch.save(images(), tmp_path / "images.pt")
    code = f"""
import {order}, torch
model = timm.create_model("local-dir:{saved}", pretrained=True).eval()
with torch.no_grad():
    torch.save(model(torch.load("{tmp_path}/images.pt")), "{tmp_path}/logits.pt")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), outputs(folded))


def test_a_relative_path(saved: Path, folded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    assert torch.equal(outputs(cc.load("bundle")), outputs(folded))
    assert torch.equal(outputs(from_timm(Path("bundle"))), outputs(folded))


@torch.no_grad()
def test_features_only(saved: Path, folded: Any) -> None:
    maps = from_timm(saved, features_only=True, out_indices=[0, 1])(images())
    expected = folded.forward_intermediates(images(), indices=[0, 1], intermediates_only=True)
    assert len(maps) == 2
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


@torch.no_grad()
def test_another_number_of_classes(saved: Path, folded: Any) -> None:
    model = from_timm(saved, num_classes=4)
    assert outputs(model).shape == (2, 4)
    assert torch.equal(model.forward_features(images()), folded.forward_features(images()))
    bare = from_timm(saved, num_classes=0)
    assert torch.equal(outputs(bare), folded.forward_head(folded.forward_features(images()), pre_logits=True))


@torch.no_grad()
def test_another_image_size(saved: Path, folded: Any) -> None:
    model = from_timm(saved, img_size=48)
    assert model(images(1, 48, 48)).isfinite().all()
    assert (model.blocks[0].attn.grid.height, model.blocks[0].attn.grid.width) == (6, 6)


def truncate(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def empty(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (path / "model.safetensors").write_bytes(content)


def edit(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    config["model_args"]["castling"]["attention"]["normalization"] = "gain"
    (path / "config.json").write_text(json.dumps(config))


def lose_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def lose_summary(path: Path) -> None:
    (path / "summary.json").unlink()


def break_summary(path: Path) -> None:
    (path / "summary.json").write_text("{")


def no_hashes(path: Path) -> None:
    (path / "summary.json").write_text("{}")


DAMAGES = [truncate, empty, flip, edit, lose_weights, lose_summary, break_summary, no_hashes]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_a_clear_error(copied: Path, damage: Callable[[Path], None], loader: Callable[[Path], Any]) -> None:
    damage(copied)
    with pytest.raises(BundleError, match=str(copied)) as raised:
        loader(copied)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"castling": 5}', '{"castling": {"format": "x"}}', '{"castling": {"format": 99}}', "{}"],
)
def test_broken_configs(copied: Path, text: str) -> None:
    (copied / "config.json").write_text(text)
    with pytest.raises(BundleError, match=str(copied)):
        cc.load(copied)


@pytest.mark.parametrize("text", ['{"sha256": 5}', '{"sha256": []}', '{"sha256": null}'])
def test_broken_records(copied: Path, text: str) -> None:
    (copied / "summary.json").write_text(text)
    with pytest.raises(BundleError):
        cc.load(copied)


def test_missing_bundles(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        cc.load(tmp_path / "nowhere")
    (copied / "config.json").unlink()
    with pytest.raises(BundleError, match=r"config\.json"):
        cc.load(copied)
    with pytest.raises(BundleError, match="no bundle at"):
        cc.load(copied / "model.safetensors")


def test_damage_to_the_trained_student(copied: Path) -> None:
    file = copied / "train" / "trained.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(BundleError, match=r"trained\.safetensors"):
        bundle.load_trained(copied)


def test_a_plain_timm_folder_is_no_bundle(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    save_for_hf(tiny(), str(tmp_path / "plain"), safe_serialization=True)
    with pytest.raises(BundleError, match=r"plain timm model.*castling convert"):
        cc.load(tmp_path / "plain")


def dataset(path: Path) -> None:
    """An image data set as everybody lays it out: its folder `train` must not pass for a bundle's."""
    for part in ("train", "val"):
        (path / part / "cats").mkdir(parents=True)
        (path / part / "cats" / "1.jpg").write_bytes(b"precious")


def other_summary(path: Path) -> None:
    path.mkdir()
    (path / "summary.json").write_text('{"thesis": "precious"}')


def plain_folder(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("precious")


def other_config(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"architecture": "resnet50"}')


def plain_file(path: Path) -> None:
    path.write_text("precious")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("make", [dataset, other_summary, plain_folder, other_config, plain_file])
def test_what_is_no_bundle_is_never_replaced(
    folded: Any, tmp_path: Path, make: Callable[[Path], None], force: bool
) -> None:
    target = tmp_path / "mine"
    make(target)
    before = {p: p.read_bytes() for p in (target, *target.rglob("*")) if p.is_file()}
    with pytest.raises(BundleError):
        cc.save(folded, target, force=force)
    with pytest.raises(BundleError):
        bundle.refuse_in_the_way(target, force=force)
    assert {p: p.read_bytes() for p in (target, *target.rglob("*")) if p.is_file()} == before


def test_a_bundle_is_replaced_only_with_force(copied: Path, folded: Any) -> None:
    (copied / "model.onnx").write_bytes(b"of the bundle that was here")
    with pytest.raises(BundleError, match="--force"):
        cc.save(folded, copied)
    assert (copied / "model.onnx").exists()
    cc.save(folded, copied, force=True)
    assert not (copied / "model.onnx").exists()
    assert torch.equal(outputs(cc.load(copied)), outputs(folded))
    assert [p.name for p in copied.parent.iterdir()] == ["bundle"]


def test_an_empty_folder_may_be_used(folded: Any, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    assert bundle.check(cc.save(folded, tmp_path / "bundle"))


def test_saving_a_loaded_bundle_again(saved: Path, folded: Any, tmp_path: Path) -> None:
    second = cc.save(cc.load(saved), tmp_path / "second")
    third = cc.save(cc.load(second), tmp_path / "third")
    assert torch.equal(outputs(cc.load(third)), outputs(folded))
    configs = [json.loads((path / "config.json").read_text()) for path in (second, third)]
    assert configs[0]["model_args"] == configs[1]["model_args"]


@torch.no_grad()
def test_a_loaded_bundle_that_was_changed_can_be_saved(saved: Path, tmp_path: Path) -> None:
    model = cc.load(saved)
    model.set_input_size(img_size=(48, 24))
    model.reset_classifier(7)
    again = cc.load(cc.save(model, tmp_path / "again"))
    assert torch.equal(again(images(2, 48, 24)), model(images(2, 48, 24)))


def test_only_folded_models_are_saved(student: Any, tmp_path: Path) -> None:
    for model in (student, tiny()):
        with pytest.raises(FoldError, match="fold"):
            cc.save(model, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_nothing_half_written(
    folded: Any, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, force: bool
) -> None:
    def fail(_state: Any, path: Path, **_: Any) -> NoReturn:
        Path(path).write_bytes(b"half")
        raise OSError(code, "failed")

    monkeypatch.setattr("castling_convert.bundle.writing.save_file", fail)
    target = copied if force else tmp_path / "deep" / "new"
    with pytest.raises(OutputError, match=r"space|write"):
        cc.save(folded, target, force=force)
    assert [p.name for p in target.parent.iterdir()] == (["bundle"] if force else [])
    if force:
        assert torch.equal(outputs(cc.load(copied)), outputs(folded))


def test_too_little_space_is_seen_before_writing(folded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match="no space"):
        cc.save(folded, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(folded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("castling_convert.bundle.writing.save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cc.save(folded, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_newest(saved: Path, tmp_path: Path) -> None:
    assert bundle.newest(saved.parent) == saved
    with pytest.raises(BundleError, match="castling convert"):
        bundle.newest(tmp_path)


def test_a_model_timm_did_not_create_is_refused(tmp_path: Path) -> None:
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=10
    )
    with pytest.raises(CastlingError, match=r"timm\.create_model"):
        cc.save(cc.fold(closed_student(model)), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["angular", "snippet"])
def test_bundles_from_before_there_were_forms_still_load(form: str) -> None:
    """Written by version 0.1, their logits beside them."""
    path = Path(__file__).parent.parent / "files" / "before_forms" / form
    model = cc.load(path)
    expected = torch.tensor(json.loads((path / "logits.json").read_text()))
    assert model.castling.attention.form == form
    with torch.no_grad():
        torch.testing.assert_close(model(images(2, 16, 16)), expected, rtol=0, atol=1e-6)
        trained = bundle.load_trained(path)
        torch.testing.assert_close(trained(images(2, 16, 16)), expected, rtol=0, atol=1e-5)
    assert cc.Recipe.load(path / "recipe.yaml").attention == model.castling.attention


@pytest.mark.parametrize(
    "form", [LANDMARKS, WINDOW, FEATURES, FAST, SNIPPET], ids=lambda form: "-".join(map(str, form.values()))
)
def test_every_form_makes_the_round_trip(form: dict[str, Any], tmp_path: Path) -> None:
    student = closed_student(tiny(KINDS["dinov2"]), **form)
    folded = cc.fold(student)
    bundle.save(folded, tmp_path / "bundle", recipe=recipe(**form), trained=student)
    assert torch.equal(outputs(cc.load(tmp_path / "bundle")), outputs(folded))
    assert torch.equal(outputs(bundle.load_trained(tmp_path / "bundle")), outputs(student))
    assert cc.load(tmp_path / "bundle").castling.attention == recipe(**form).attention


def test_the_version_of_what_is_not_installed() -> None:
    assert bundle.version_of("timm") == timm.__version__
    assert bundle.version_of("no_such_package") == "not installed"


@pytest.mark.parametrize("name", ["castling", "castling-window", "castling-fast", "datafree", "reference"])
def test_bundles_from_before_there_were_tasks_still_load(name: str) -> None:
    """Written before the package was laid out anew, by every recipe; their logits beside them."""
    path = Path(__file__).parent.parent / "files" / "before_tasks" / name
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    expected = torch.tensor(json.loads((path / "logits.json").read_text()))
    with torch.no_grad():
        torch.testing.assert_close(cc.load(path)(images), expected, rtol=0, atol=1e-5)
    assert cc.Recipe.load(path / "recipe.yaml").attention == cc.load(path).castling.attention
