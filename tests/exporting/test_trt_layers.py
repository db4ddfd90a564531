"""How many layers TensorRT's parser makes of a castled model, beside softmax and beside itself in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest
import timm
import torch

import castling_convert as cc
from castling_convert.analysis.analyze import castled_twin
from castling_convert.artifact.options import ExportOptions
from castling_convert.bench.bench import softmax_baseline_
from castling_convert.exporting.trt_engine import EngineBuild, count_layers, read_graph, signature_in

TO_SOFTMAX = {"castling": 1.7, "castling-window": 2.4, "castling-fast": 1.6}
"""At most so many times the layers of softmax. That is more than one: softmax is one product of q and k and one with v,
landmarks are seven products, three softmaxes and a convolution."""
TO_SINGLE = 1.2
"""fp16 to fp32."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def layers(rtx, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, int]]:
    """Of two blocks of DeiT-S at batch 1, castled by a recipe as it is shipped, or with softmax."""
    softmax = softmax_baseline_(timm.create_model("deit_small_patch16_224", depth=2))

    @cache
    def count(name: str, precision: str) -> dict[str, int]:
        torch.manual_seed(0)
        model = softmax if name == "softmax" else castled_twin(softmax, cc.Recipe.load(name))
        options = ExportOptions.make(precision=precision, batch=1)
        path: Path = cc.export(
            model, tmp_path_factory.mktemp(name) / "model.plan", format="trt", precision=precision, batch=1,
            onnx_only=True, verify=False, **({"latency_only": True} if precision == "int8" else {}),
        )  # fmt: skip
        return count_layers(EngineBuild(rtx, path, signature_in(onnx.load(path)), options).network)

    return count


@pytest.fixture(scope="module")
def torchs(rtx, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, int]]:
    """Of the graph that torch alone makes of timm's model: what TensorRT is given where this package is not."""

    @cache
    def count(precision: str) -> dict[str, int]:
        dtype = torch.float32 if precision == "fp32" else torch.float16
        model = timm.create_model("deit_small_patch16_224", depth=2).eval().to(dtype)
        graph = tmp_path_factory.mktemp("torch") / "model.onnx"
        torch.onnx.export(model, (torch.zeros(1, 3, 224, 224, dtype=dtype),), graph, dynamo=True, verbose=False)
        read = read_graph(rtx, graph)
        return count_layers(read.network)

    return count


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", TO_SOFTMAX)
def test_a_castled_model_has_no_more_arithmetic_of_shapes_than_softmax_and_few_layers_more(layers, name, precision):
    castled, softmax = layers(name, precision), layers("softmax", precision)
    assert castled["integer"] <= softmax["integer"]
    assert castled["all"] <= TO_SOFTMAX[name] * softmax["all"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", TO_SOFTMAX)
def test_a_castled_model_has_fewer_layers_than_the_graph_that_torch_makes_of_timms(layers, torchs, name, precision):
    castled, other = layers(name, precision), torchs(precision)
    assert castled["all"] < other["all"]
    assert castled["integer"] < other["integer"] / 2


@pytest.mark.parametrize("name", TO_SOFTMAX)
def test_half_precision_adds_little_more_than_its_casts(layers, name):
    assert layers(name, "fp16")["all"] <= TO_SINGLE * layers(name, "fp32")["all"]
