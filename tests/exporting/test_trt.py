"""TensorRT, which can't be installed here: its names by version, its operators, and the builder's road with TensorRT
for RTX in its place, up to where a GPU is needed. Engines of TensorRT itself were not built by these tests."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from rich.console import Console

import castling_convert as cc
from castling_convert.artifact.options import ExportOptions
from castling_convert.artifact.signature import Signature
from castling_convert.errors import CheckFailed, ExportError, Interrupted
from castling_convert.exporting import FORMATS, trt, trt_engine, trt_precision
from castling_convert.exporting.trt_engine import EngineBuild, parse, signature_in
from castling_convert.exporting.trt_operators import operators, refused
from castling_convert.exporting.trt_precision import products_of, prove_engine
from tests.models import KINDS, LANDMARKS, closed_student, tiny

from .trt_api import SUPPORTED, attributes, names, there

SOURCE = "".join(inspect.getsource(module) for module in (trt, trt_engine, trt_precision))
# The variables of these modules that hold objects of TensorRT, and their classes.
HOLDS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "shapes": "IOptimizationProfile", "inspector": "EngineInspector", "engine": "ICudaEngine",
    "context": "IExecutionContext", "error": "ParserError",
}  # fmt: skip


def folded(kind: str = "deit", layers: str | None = None, form: dict[str, Any] = LANDMARKS) -> Any:
    torch.manual_seed(0)
    return cc.fold(closed_student(tiny(KINDS[kind], depth=1), layers, **form))


# --- names


@pytest.mark.parametrize("version", SUPPORTED)
def test_every_name_of_the_module_is_there(version):
    for dotted in attributes(SOURCE):
        if dotted[0].startswith("__"):
            continue
        owner, member = (dotted[0], "") if len(dotted) == 1 else dotted[-2:]
        if member in names():  # a class inside a class
            owner, member = member, ""
        assert there(owner, member, version), f"tensorrt.{'.'.join(dotted)} in {version}"


@pytest.mark.parametrize("version", SUPPORTED)
def test_every_method_of_its_objects_is_there(version):
    seen = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Attribute):
            holder = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
            if holder in HOLDS and node.attr not in ("cuda_stream",):
                seen.add(holder)
                assert there(HOLDS[holder], node.attr, version), f"{HOLDS[holder]}.{node.attr} in {version}"
    assert seen == set(HOLDS)


def test_what_the_table_says_is_gone_is_gone():
    assert there("BuilderFlag", "FP16", "v10.16")
    assert not there("BuilderFlag", "FP16", "v11.0")
    assert "BuilderFlag.FP16" not in SOURCE


# --- operators


def graph_of(
    *nodes: onnx.NodeProto, opset: int = 20, type_: int = TensorProto.FLOAT, wants_axes: bool = False, **constants: Any
) -> onnx.ModelProto:
    """A graph of input `x` and, if it is wanted, `axes`; `constants` are initializers."""
    inputs = [helper.make_tensor_value_info("x", type_, [2, 3])]
    if wants_axes:
        inputs.append(helper.make_tensor_value_info("axes", TensorProto.INT64, [1]))
    y = helper.make_tensor_value_info("y", type_, None)
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", inputs, [y], tensors)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my.own", 1)]
    own = any(node.domain for node in nodes)
    return helper.make_model(graph, opset_imports=imports if own else imports[:1], ir_version=10)


def node(kind: str, *inputs: str, name: str = "here", **attributes_: Any) -> onnx.NodeProto:
    return helper.make_node(kind, ["x", *inputs], ["y"], name=name, **attributes_)


SCALES = np.float32([2, 2])
REFUSED = [
    (graph_of(node("Det")), "Det here: no such operator"),
    (graph_of(node("ReduceSum", "axes"), wants_axes=True), "must be an initializer"),
    (graph_of(node("Unsqueeze", "axes"), wants_axes=True), "axes must be resolvable"),
    (graph_of(node("Resize", "", "s", mode="linear", antialias=1), s=SCALES), "Resize here"),
    (graph_of(node("QuantizeLinear", "s", "z"), s=np.float32(1), z=np.int8(3)), "y_zero_point must be 0"),
    (graph_of(helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean"], name="here"), s=np.ones(3, "float32")),
     "only the first output"),
    (graph_of(node("Erf"), type_=TensorProto.INT32), "not INT32"),
    (graph_of(node("Transpose"), type_=TensorProto.UINT8), "not UINT8"),
]  # fmt: skip
TOLERATED = [
    (graph_of(node("Resize", "", "s", mode="cubic"), s=SCALES), "no cubic"),
    (graph_of(node("Abs"), opset=8), "opset 8"),
    (graph_of(node("Abs"), opset=25), "opset 25"),
    (graph_of(helper.make_node("Abs", ["x"], ["y"], name="here", domain="my.own")), "no such operator"),
]
"""What TensorRT for RTX takes all the same, and the other one's documentation does not promise."""


@pytest.mark.parametrize(("graph", "words"), [*REFUSED, *TOLERATED])
def test_what_tensorrt_would_refuse_is_named(graph, words):
    assert any(words in complaint for complaint in refused(graph)), list(refused(graph))


@pytest.mark.parametrize("graph", [graph for graph, _ in REFUSED], ids=[words for _, words in REFUSED])
def test_the_real_parser_refuses_the_same_in_one_line(tmp_path, parser, graph):
    onnx.save(graph, tmp_path / "model.onnx")
    assert not parser.supports_model_v2(graph.SerializeToString())
    with pytest.raises(ExportError, match=r"TensorRT can't read model\.onnx: \w+ here: [A-Z_]+ in \w+: .") as raised:
        parse(parser, tmp_path / "model.onnx")
    assert "\n" not in str(raised.value)


def test_what_tensorrt_takes_is_not_complained_of():
    assert list(refused(graph_of(node("ReduceSum", "axes"), axes=np.array([1])))) == []
    assert list(refused(graph_of(node("Cast", to=TensorProto.FLOAT), type_=TensorProto.UINT8))) == []


def test_the_table_is_read():
    assert len(operators()) > 150
    assert operators()["RMSNormalization"].types == {"FP32", "FP16", "BF16"}
    assert not operators()["Det"].supported


# --- here, without TensorRT


def test_without_tensorrt_it_says_so_and_how_to_go_on(tmp_path):
    with pytest.raises(ExportError, match=r"tensorrt package.*pip install.*--onnx-only.*--format trt-rtx") as raised:
        cc.export(folded(), tmp_path / "model.plan", format="trt")
    assert raised.value.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_line_for_the_gpu_machine(tmp_path):
    options = ExportOptions.make(precision="fp16", onnx_only=True, batch="1:4:8")
    made = FORMATS["trt"].exporter.export(folded(), tmp_path / "model.plan", options)
    words = made.notes["trtexec"].split()
    assert words == [
        "trtexec", f"--onnx={tmp_path}/model.trt.onnx", "--stronglyTyped", f"--saveEngine={tmp_path}/model.plan",
        f"--timingCacheFile={tmp_path}/model.timing", "--minShapes=images:1x3x32x32", "--optShapes=images:4x3x32x32",
        "--maxShapes=images:8x3x32x32", "--memPoolSize=workspace:4096", "--profilingVerbosity=detailed",
        f"--exportLayerInfo={tmp_path}/model.layers.json", "--skipInference",
    ]  # fmt: skip
    assert made.artifact == tmp_path / "model.trt.onnx"


# --- the builder's road, with TensorRT for RTX in the place of TensorRT, which has the same names


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, ExportOptions]:
    """A graph, and what it was exported with."""
    options: dict[str, Any] = {"precision": "fp16", "batch": "1:4:8", "onnx_only": True, "verify": False}
    path = cc.export(folded(), tmp_path_factory.mktemp("graph") / "model.plan", format="trt", **options)
    return path, ExportOptions.make(**options)


@pytest.fixture
def graph(exported, tmp_path) -> tuple[Path, Signature, ExportOptions]:
    """A copy of it in the test's own folder."""
    path = tmp_path / exported[0].name
    shutil.copy(exported[0], path)
    return path, signature_in(onnx.load(path)), exported[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
@pytest.mark.parametrize("timings", [None, b"of another TensorRT"], ids=["no timings", "stale timings"])
def test_it_is_built_for_real_and_not_published_before_it_is_read_back(tmp_path, monkeypatch, rtx, graph, timings):
    """Reading needs a driver, and says so in TensorRT's words; limits, profile and timings were taken."""
    path, signature, options = graph
    if timings is not None:
        (tmp_path / "model.timing").write_bytes(timings)
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    with pytest.raises(ExportError, match=r"can't read the engine of model\.trt\.onnx: .*driver"):
        trt.build(path, tmp_path / "model.plan", tmp_path / "model.timing", signature, options)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.timing", "model.trt.onnx"]


class Impatient(Console):
    """A console where somebody presses Ctrl-C as soon as anything is printed."""

    def print(self, *_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_the_build(rtx, graph):
    before = signal.getsignal(signal.SIGINT)
    path, signature, options = graph
    making = EngineBuild(rtx, path, signature, replace(options, console=Impatient()))
    with pytest.raises(Interrupted, match="interrupted while TensorRT was building"):
        making.build()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_tensorrt_that_is_too_old(tmp_path, monkeypatch):
    old = ModuleType("tensorrt")
    old.__version__, old.__spec__ = "10.9.0", ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(ExportError, match=r"10\.9.* too old.*10\.12"):
        cc.export(folded(), tmp_path / "model.plan", format="trt")


# --- what the engine inspector says


def inspected(graph: onnx.ModelProto, built: Callable[[str, str], str | None]) -> list[dict[str, Any]]:
    """Layers as the inspector writes them, a product of `graph` each, in the type that `built` makes of its name and
    precision; without a name where that is None."""
    layers = []
    for name, precision in products_of(graph).items():
        word = built(name, precision)
        entry = {"Name": "tensor", "Format/Datatype": word or "Half"}
        metadata = "" if word is None else f"[ONNX Layer: before]\x1f[ONNX Layer: {name}]"
        layers.append({"Name": "__myl", "LayerType": "gemm", "Inputs": [entry], "Outputs": [entry],
                       "Metadata": metadata})  # fmt: skip
    return layers


INSPECTOR = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8"}


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    return onnx.load(cc.export(folded(), path, precision="fp16", verify=False))


def test_an_engine_in_the_precision_of_its_graph(half):
    prove_engine(inspected(half, lambda name, precision: INSPECTOR[precision]), half, "fp16")


def test_one_product_in_another_precision_is_found(half):
    chosen = [name for name, precision in products_of(half).items() if precision == "fp16"][-1]
    layers = inspected(half, lambda name, precision: "Float" if name == chosen else INSPECTOR[precision])
    with pytest.raises(CheckFailed, match=f"built {chosen} in Float, not in fp16"):
        prove_engine(layers, half, "fp16")


def test_an_inspector_that_names_nothing_proves_nothing(half):
    with pytest.raises(CheckFailed, match="names no matrix product in fp16"):
        prove_engine(inspected(half, lambda name, precision: None), half, "fp16")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_products_of_castled_layers_are_asked_about(tmp_path, precision):
    """In half precision all but what is summed over tokens, with the logits of its weights, and the head; in int8 all
    but the small products inside attention, five of the landmarks and two of the prefix tokens, and the convolutions:
    of the patches, and a depthwise one in each block."""
    options = {"format": "trt", "precision": precision, "onnx_only": True}
    model = folded()
    graph = onnx.load(cc.export(model, tmp_path / "model.plan", **options))
    products = products_of(graph)
    assert len(products) == sum(node.op_type in ("MatMul", "Gemm", "Conv") for node in graph.graph.node)
    blocks = len(model.blocks)
    islands = {"fp32": 0, "fp16": 3 * blocks + 1, "bf16": 3 * blocks + 1, "int8": 7 * blocks + 1 + blocks}[precision]
    assert list(products.values()).count(precision) == len(products) - islands
