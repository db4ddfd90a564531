"""One artifact for many image sizes: positions resampled in the graph, nothing frozen by tracing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import castling_convert as cc
from castling_convert.artifact.signature import Signature
from castling_convert.cli import cli
from castling_convert.errors import CheckFailed, DataError, ExportError
from castling_convert.exporting import format_of
from castling_convert.families import vit
from castling_convert.families.positions import cubic_weights
from tests.models import FAST, FEATURES, KINDS, LANDMARKS, WINDOW, closed_student, images, tiny

RANGE = {"image_size": (32, 32), "image_range": ((16, 16), (48, 64))}
SIZES = [(16, 16), (32, 32), (24, 64), (48, 16), (48, 64)]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


FORMS = {"landmarks": LANDMARKS, "features": FEATURES, "window": WINDOW, "fast": FAST}


def folded(kind: str = "deit", layers: str | None = None, form: str = "landmarks") -> Any:
    """One block, for what depends on the image size is before the blocks and within each; two where one is kept."""
    torch.manual_seed(0)
    return cc.fold(closed_student(tiny(KINDS[kind], depth=2 if layers else 1), layers, **FORMS[form]))


def timm_logits(kind: str, size: tuple[int, int], x: torch.Tensor, *how: Any) -> torch.Tensor:
    """Of a model that timm itself brought to that size."""
    model = folded(kind, *how)
    model.set_input_size(img_size=size)
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize(("old", "new"), [(14, 14), (14, 37), (37, 14), (7, 8), (16, 3), (5, 64), (1, 4), (4, 1)])
def test_the_weights_are_those_of_antialiased_bicubic_interpolation(old, new):
    expected = F.interpolate(torch.eye(old)[None, None], (new, old), mode="bicubic", antialias=True)[0, 0]
    torch.testing.assert_close(cubic_weights(old, new), expected, atol=5e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
@pytest.mark.parametrize(
    ("kind", "layers", "form"),
    [*((kind, None, "landmarks") for kind in KINDS), ("deit", "1", "landmarks"), ("deit", None, "features"),
     ("deit", None, "fast"), ("deit", None, "window"), ("dinov2", None, "window")],
)  # fmt: skip
def test_every_kind_at_sizes_it_was_not_traced_with(tmp_path, kind, layers, form, format):
    model = folded(kind, layers, form)
    if (form, format) == ("window", "torch"):
        with pytest.raises(ExportError, match=r"can't have attention windows; .*--format onnx"):
            cc.export(model, tmp_path / "model.pt2", format=format, **RANGE)
        assert not list(tmp_path.iterdir())
        return
    path = cc.export(model, tmp_path / f"model{SUFFIXES[format]}", format=format, **RANGE)
    run = format_of(path).exporter.open_artifact(path)
    for size in SIZES:
        x = images(2, *size)
        torch.testing.assert_close(run(x), timm_logits(kind, size, x, layers, form), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "precision"), [("onnx", "fp16"), ("onnx", "int8"), ("openvino", "int8")])
def test_in_other_precisions(tmp_path, format, precision):
    path = cc.export(folded(), tmp_path / f"model{SUFFIXES[format]}", format=format, precision=precision, **RANGE)
    run = format_of(path).exporter.open_artifact(path)
    assert run.precision == precision
    assert run(images(1, 24, 40)).shape == (1, 10)


def test_a_size_frozen_by_tracing_is_found_by_the_check(tmp_path, monkeypatch):
    monkeypatch.setattr(vit, "cubic_weights", lambda old, new: cubic_weights(old, int(new)))
    with pytest.raises(CheckFailed, match=r"can't be run on images of shape|differs from the model"):
        cc.export(folded(), tmp_path / "model.onnx", **RANGE)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_graph_passes_the_operator_check_of_tensorrt(tmp_path):
    path = cc.export(folded(), tmp_path / "model.plan", format="trt", onnx_only=True, preprocess=True, **RANGE)
    assert path.is_file()


def test_a_session_takes_every_size_within_the_range_and_no_other(tmp_path):
    session = cc.Session(cc.export(folded(), tmp_path / "model.onnx", preprocess=True, **RANGE))
    for height, width in SIZES:
        assert session(np.zeros((2, height, width, 3), np.uint8)).shape == (2, 10)
    for height, width in ((8, 16), (56, 64), (30, 32)):
        with pytest.raises(DataError, match=r"from \(16, 16\) to \(48, 64\) in multiples of \(8, 8\)"):
            session(np.zeros((1, height, width, 3), np.uint8))


def test_a_signature_survives_its_way_through_json():
    signature = Signature((3, 32, 32), smallest=(16, 16), largest=(48, 64), stride=(8, 8))
    assert Signature.from_json(signature.to_json()) == signature


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (32, 32), "image_range": ((16, 16), (50, 64))}, "multiples of the patch"),
        ({"image_size": (80, 32), "image_range": ((16, 16), (48, 64))}, "MIN <= OPT <= MAX"),
        ({"image_size": (16, 16), "image_range": ((16, 16), (16, 16))}, "MIN < MAX"),
        ({"image_range": ((40, 40), (48, 64))}, "not within"),
    ],
)
def test_ranges_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        cc.export(folded(), tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["16:32", "16:32:", "a:b:c", "0:16:32"])
def test_ranges_that_can_not_be_read(text):
    result = CliRunner().invoke(cli, ["export", "nowhere", "--image-size", text])
    assert result.exit_code == 2
    assert "--image-size" in result.output
