"""A detector's bundle, its artifacts, and the commands on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import castling_convert as cc
from castling_convert.cli import cli
from castling_convert.errors import ExportError
from castling_convert.evaluation.evaluate import evaluate
from castling_convert.verification.artifact import verify
from castling_convert.verification.ladder import ladder
from tests.dense.detectors import scenes
from tests.exporting.test_detectors import folded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("onnx"),
]


def test_a_bundle_and_what_is_made_of_it(tmp_path: Path) -> None:
    bundle = cc.save(folded(), tmp_path / "bundle")
    x, _ = scenes(2)
    with torch.no_grad():
        assert torch.equal(cc.load(bundle)(x), folded()(x))
    raw = cc.export(bundle)
    verified = verify(raw)
    assert verified.holds
    assert verified.folded.agreement == 100
    result = CliRunner().invoke(cli, ["export", str(bundle), "--nms", "-o", str(bundle / "detections.onnx")])
    assert result.exit_code == 0, result.output
    with pytest.raises(ExportError, match=r"gives detections after non-maximum suppression, .* exported without --nms"):
        verify(bundle / "detections.onnx")
    rungs: dict[str, Any] = {rung.name: rung for rung in ladder(bundle).rungs}
    assert rungs["model.onnx"].holds
    assert rungs["model.onnx"].parity is not None
    assert rungs["detections.onnx"].note.startswith("not run: it gives detections")
    for artifact in ("model.onnx", "detections.onnx"):
        scores, _ = evaluate(bundle / artifact, "generated", limit=16)
        assert scores["castled"].images == 16
