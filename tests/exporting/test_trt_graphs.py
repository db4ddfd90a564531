"""Every kind of model in every precision as a graph for TensorRT: held against the operator table of the one flavour,
and read, proven and built into an engine by the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch

import castling_convert as cc
from castling_convert.artifact.options import ExportOptions
from castling_convert.exporting import FORMATS
from castling_convert.exporting.trt_engine import EngineBuild, signature_in
from castling_convert.exporting.trt_operators import refused
from tests.models import FAST, FEATURES, KINDS, LANDMARKS, SNIPPET, WINDOW, closed_student, tiny

MODELS = {
    **{kind: (kind, None, LANDMARKS) for kind in KINDS},
    "hybrid": ("deit", "0", LANDMARKS),
    "features": ("deit", None, FEATURES),
    "fast": ("deit", None, FAST),
    "window": ("deit", None, WINDOW),
    "snippet": ("deit", None, SNIPPET),
}
"""The castled layers and their form; of the hybrid one layer is left as softmax."""


def depth_of(name: str) -> int:
    """One block has all that a graph of its kind and form has; two where one is kept, and of the first kind."""
    return 2 if name in ("deit", "hybrid") else 1


every_graph = pytest.mark.parametrize(
    ("name", "precision"), [(name, precision) for name in MODELS for precision in FORMATS["trt-rtx"].precisions]
)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    @cache
    def make(name: str, precision: str) -> Path:
        torch.manual_seed(0)
        kind, layers, form = MODELS[name]
        model = cc.fold(closed_student(tiny(KINDS[kind], depth=depth_of(name)), layers, **form))
        folder = tmp_path_factory.mktemp("graph")
        path = cc.export(model, folder / "model.plan", format="trt", precision=precision, onnx_only=True)
        assert [file.name for file in folder.iterdir()] == ["model.trt.onnx"]
        return path

    return make


@pytest.mark.slow
@every_graph
def test_the_operator_table_takes_it(graphs, name, precision):
    assert list(refused(onnx.load(graphs(name, precision)))) == []


@pytest.mark.slow
@every_graph
def test_an_engine_is_built(rtx, parser, graphs, name, precision):
    """What the table takes TensorRT's own parser takes; every product is in the precision that its graph means."""
    path = graphs(name, precision)
    assert parser.supports_model_v2(path.read_bytes())
    making = EngineBuild(rtx, path, signature_in(onnx.load(path)), ExportOptions.make(precision=precision))
    linear = 4 * depth_of(name) + 1  # of the blocks, and the head or the patches
    assert making.products[precision] >= linear
    assert set(making.products) <= {precision, "fp32"}
    assert making.build()
