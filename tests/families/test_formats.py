"""OpenVINO and int8 of one variant of each group of families, with parity; test_eva has the rotary ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import castling_convert as cc
from castling_convert.artifact.options import ExportOptions
from castling_convert.exporting import FORMATS
from tests.families import test_beit, test_levit, test_mvit, test_pvt, test_sam, test_swin
from tests.models import LANDMARKS, closed_student

GROUPS: dict[str, Callable[[], Any]] = {
    "biases and pooled queries": lambda: test_levit.small("pooled tokens"),
    "pooled keys": lambda: test_mvit.small("plain"),
    "high resolution": test_sam.small,
    "windows": lambda: test_swin.small(img_size=32),
    "reduced keys": lambda: test_pvt.small((64, 64)),
    "position biases": lambda: test_beit.small("own"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "precision", "group"),
    [
        *(
            (format, precision, group)
            for group in GROUPS
            for format, precision in (("openvino", "fp32"), ("onnx", "int8"))
        ),
        # Too noisy with every layer in int8: some have to go back to float.
        ("openvino", "int8", "reduced keys"),
    ],
)
def test_other_formats(tmp_path: Path, format: str, precision: str, group: str) -> None:
    exporter = FORMATS[format].exporter
    if exporter.missing() is not None:
        pytest.skip(exporter.missing())
    model = cc.fold(closed_student(GROUPS[group](), **LANDMARKS))
    made = exporter.export(model, tmp_path / f"model{FORMATS[format].suffix}", ExportOptions.make(precision=precision))
    assert made.parity is not None
    assert made.parity.holds
