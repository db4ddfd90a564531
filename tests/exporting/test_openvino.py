"""OpenVINO: float and int8 files, run for real."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import castling_convert as cc
from castling_convert.artifact.options import ExportOptions
from castling_convert.data.probe import probe_images
from castling_convert.errors import ExportError
from castling_convert.exporting import FORMATS, openvino_ir
from tests.models import KINDS, closed_student, images, tiny

pytestmark = pytest.mark.slow


def folded(kind: str = "deit", layers: str | None = None) -> Any:
    """One block of a kind has all that there is of it; two where one of them is kept."""
    torch.manual_seed(0)
    return cc.fold(closed_student(tiny(KINDS[kind], depth=2 if layers else 1), layers))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An artifact, its .bin beside it; tests that change it copy it."""
    return cc.export(folded(), tmp_path_factory.mktemp("whole") / "model.xml", format="openvino")


def copied(artifact: Path, folder: Path) -> Path:
    for suffix in (".xml", ".bin"):
        shutil.copy(artifact.with_suffix(suffix), folder)
    return folder / artifact.name


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(("kind", "layers"), [*((kind, None) for kind in KINDS), ("deit", "1")])
def test_every_kind_runs_within_its_bounds(tmp_path, kind, layers, precision):
    model = folded(kind, layers)
    path = cc.export(model, tmp_path / "model.xml", format="openvino", precision=precision)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    run = openvino_ir.open_artifact(path)
    assert run.precision == precision
    x = probe_images(model, 32, seed=1)  # int8 is calibrated on images like these
    with torch.no_grad():
        expected = model(x)
    error = (run(x) - expected).square().mean().sqrt() / expected.std()
    assert error <= {"fp32": 1e-5, "fp16": 0.01, "int8": 0.1}[precision]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_same_bytes_again(tmp_path, precision):
    model = folded()
    first, second = (
        cc.export(model, tmp_path / f"{name}.xml", format="openvino", precision=precision) for name in "ab"
    )
    for suffix in (".xml", ".bin"):
        assert first.with_suffix(suffix).read_bytes() == second.with_suffix(suffix).read_bytes()


def test_pixels_in_probabilities_out(tmp_path):
    model = folded()
    path = cc.export(model, tmp_path / "model.xml", format="openvino", preprocess=True, batch=2)
    run = openvino_ir.open_artifact(path)
    assert (run.signature.input, run.batch) == ("pixels", 2)
    with torch.no_grad():
        expected = model(clean(run, images(3)))
    torch.testing.assert_close(run(images(3)), expected.softmax(-1), atol=1e-5, rtol=0)


def clean(run: Any, x: torch.Tensor) -> torch.Tensor:
    """Images as they are after a way through uint8."""
    pixels = run.signature.pixels(x).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (run.signature.mean, run.signature.std))
    return (pixels - mean) / std


@pytest.mark.parametrize("damage", ["truncated", "no bin", "text", "another XML"])
def test_a_damaged_file(whole, tmp_path, capfd, damage):
    path = copied(whole, tmp_path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "text":
        path.write_text("not a graph")
    elif damage == "another XML":
        path.write_text("<a>\n<b>\n</b>\n</a>")
    else:
        path.with_suffix(".bin").unlink()
    capfd.readouterr()
    with pytest.raises(ExportError, match=r"can't be run by OpenVINO|is no model of OpenVINO's") as raised:
        openvino_ir.open_artifact(path)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""  # of the libraries below OpenVINO


def test_without_openvino_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_ir, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"needs openvino and nncf: pip install 'castling-convert\[openvino\]'"):
        cc.export(folded(), tmp_path / "model.xml", format="openvino")
    assert not list(tmp_path.iterdir())


def test_precisions_that_it_does_not_have(tmp_path):
    with pytest.raises(ExportError, match="can't be made in 'bf16'"):
        cc.export(folded(), tmp_path / "model.xml", format="openvino", precision="bf16")
    assert FORMATS["openvino"].exporter.missing() is None
    assert ExportOptions.make(precision="int8").tolerance.noise is not None


def test_a_wrong_graph_is_never_published(tmp_path: Path, monkeypatch):
    other = folded("deit3")
    preparing = openvino_ir.prepare
    monkeypatch.setattr(openvino_ir, "prepare", lambda _model, options: preparing(other, options))
    with pytest.raises(cc.CastlingError, match="differs from the model"):
        cc.export(folded(), tmp_path / "model.xml", format="openvino")
    assert not list(tmp_path.iterdir())


def test_weights_that_were_changed_are_found(whole, tmp_path):
    path = copied(whole, tmp_path)
    assert openvino_ir.open_artifact(path).intact
    weights = bytearray(path.with_suffix(".bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    path.with_suffix(".bin").write_bytes(weights)
    assert not openvino_ir.open_artifact(path).intact
