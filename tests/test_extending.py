"""From outside the package: each file of examples/extending adds one thing, and it goes the whole road."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import castling_convert as cc
from castling_convert.attention import FORMS, FoldedAttention
from castling_convert.castling import close_masks
from castling_convert.errors import ExportError
from castling_convert.exporting import FORMATS
from castling_convert.exporting.onnx_graph import open_artifact
from castling_convert.families import FAMILIES
from castling_convert.folding import certify
from castling_convert.quantize import QUANTIZERS
from castling_convert.tasks import TASKS, task_of
from tests.models import images, tiny

FOLDER = Path(__file__).parent.parent / "examples" / "extending"


@pytest.fixture(autouse=True)
def _registries_are_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(FOLDER))
    kept = [dict(registry) for registry in (FORMS, TASKS, FORMATS, QUANTIZERS)], list(FAMILIES)
    yield
    for registry, before in zip((FORMS, TASKS, FORMATS, QUANTIZERS), kept[0], strict=True):
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]
    FAMILIES[:] = kept[1]
    for name in [name for name in sys.modules if name.startswith("toy_")]:
        del sys.modules[name]


def short(**attention: Any) -> cc.Recipe:
    overrides = [f"attention.{key}={value}" for key, value in attention.items()]
    return cc.Recipe.load("castling", ["distill.steps=4", "distill.batch_size=4", *overrides])


def the_road(teacher: Any, recipe: cc.Recipe, folder: Path) -> Any:
    """castle, distil, fold, export to ONNX; the folded model, after parity was seen."""
    student = cc.castle(teacher, recipe)
    cc.distill(student, teacher, "generated", recipe, device="cpu")
    folded, certificate = certify(student, images())
    assert certificate.holds
    assert set(certificate.float64_blocks)
    file = cc.export(folded, folder / "model.onnx")
    with torch.no_grad():
        torch.testing.assert_close(open_artifact(file)(images()), folded(images()), atol=1e-4, rtol=0)
    return folded


def test_a_family(tmp_path: Path) -> None:
    toy = import_module("toy_family")
    folded = the_road(toy.ToyNet().eval(), short(), tmp_path)
    assert folded.castling.family == "toy"
    assert folded.castling.choice == "0,1"
    assert all(isinstance(stage.attention, FoldedAttention) for stage in folded.stages)
    assert cc.castle(toy.ToyNet(), layers="stages.1.*").castling.castled == ["stages.1.attention"]
    with pytest.raises(ExportError, match="need float32 is not known"):
        cc.export(folded, tmp_path / "half.onnx", precision="fp16")


def test_an_open_layer_of_it_is_the_teachers() -> None:
    toy = import_module("toy_family")
    teacher = toy.ToyNet().eval()
    student = cc.castle(teacher, "castling-fast").eval()
    with torch.no_grad():
        torch.testing.assert_close(student(images()), teacher(images()), atol=1e-5, rtol=0)


def test_a_form(tmp_path: Path) -> None:
    import_module("toy_form")
    recipe = cc.Recipe.parse({"attention": {"form": "mean"}, "distill": {"steps": 4, "batch_size": 4}}, "test")
    folded = the_road(tiny(), recipe, tmp_path)
    assert folded.castling.attention.form == "mean"
    cc.save(folded, tmp_path / "bundle", recipe=recipe)
    with torch.no_grad():
        assert torch.equal(cc.load(tmp_path / "bundle")(images()), folded(images()))
    assert cc.Recipe.load(tmp_path / "bundle" / "recipe.yaml").attention == recipe.attention


def test_a_task(tmp_path: Path) -> None:
    import_module("toy_task")
    teacher = tiny()
    teacher.regresses = True
    assert task_of(teacher).name == "regress"
    summary = cc.convert(teacher, tmp_path / "bundle", data="digits", recipe=short(), max_drop=100.0, device="cpu")
    assert 0 < summary["accuracy"]["numbers"]["error"] < 10
    the_road(teacher, short(), tmp_path)


def test_a_format_with_its_runtime(tmp_path: Path) -> None:
    import_module("toy_format")
    student = cc.castle(tiny())
    close_masks(student)
    folded = cc.fold(student)
    file = cc.export(folded, tmp_path / "model.ts", format="torchscript")
    session = cc.Session(file)
    with torch.no_grad():
        torch.testing.assert_close(session(images()), folded(images()), atol=1e-4, rtol=0)


def test_a_quantizer(tmp_path: Path) -> None:
    import_module("toy_quantizer")
    student = cc.castle(tiny())
    close_masks(student)
    folded = cc.fold(student)
    session = cc.Session(cc.export(folded, tmp_path / "model.onnx", precision="int8", quantizer="rounded"))
    with torch.no_grad():
        error = (session(images()) - folded(images())).abs().max()
    assert 1e-6 < error < 0.5
    with pytest.raises(ExportError, match="no quantizer 'round'; did you mean rounded"):
        cc.export(folded, tmp_path / "other.onnx", precision="int8", quantizer="round")
