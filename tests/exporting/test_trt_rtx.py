"""TensorRT for RTX: real engines, built here; what is proven of them without a GPU, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import castling_convert as cc
from castling_convert.artifact.options import ExportOptions
from castling_convert.errors import CheckFailed, ExportError
from castling_convert.exporting import FORMATS, trt_rtx
from castling_convert.exporting.trt_engine import EngineBuild, EngineModel, Sidecar, count_layers, parse, signature_in
from castling_convert.exporting.trt_operators import refused
from castling_convert.exporting.trt_precision import products_of, products_read, prove_network
from castling_convert.files import sha256
from tests.models import KINDS, LANDMARKS, closed_student, images, tiny

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
EXPORTER = FORMATS["trt-rtx"].exporter


def folded() -> Any:
    torch.manual_seed(0)
    return cc.fold(closed_student(tiny(KINDS["deit"], depth=1), **LANDMARKS))


SHAPES: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    "static": ({"batch": 2}, [[2, 3, 32, 32]] * 3),
    "any size": (
        {"image_size": (32, 32), "image_range": ((16, 16), (48, 64))},
        [[1, 3, 16, 16], [8, 3, 32, 32], [16, 3, 48, 64]],
    ),
    "preprocess": ({"batch": "1:4:8", "preprocess": True}, [[1, 32, 32, 3], [4, 32, 32, 3], [8, 32, 32, 3]]),
}
"""Options, and the profile that they make; the dynamic batch alone is in test_trt_graphs."""


@pytest.mark.slow
@no_gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", FORMATS["trt-rtx"].precisions)
def test_an_engine_and_what_stands_beside_it(tmp_path, rtx, precision, shape):
    options, profile = SHAPES[shape]
    path = tmp_path / "model.rtxplan"
    made = EXPORTER.export(folded(), path, ExportOptions.make(precision=precision, verify=False, **options))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.rtx.onnx", "model.rtxplan", "model.rtxplan.json"]
    beside = json.loads((tmp_path / "model.rtxplan.json").read_text())
    assert beside["tensorrt"] == made.notes["tensorrt"] == rtx.__version__
    assert beside["target"] == "portable: Ampere and later"
    assert beside["precision"] == precision
    assert beside["products"][precision] >= 5
    assert list(beside["profile"].values()) == profile
    assert beside["engine_sha256"] == sha256(path)
    assert beside["onnx_sha256"] == sha256(tmp_path / "model.rtx.onnx")
    assert made.notes["engine"] == "built, not run: no GPU here"
    assert list(refused(onnx.load(tmp_path / "model.rtx.onnx"))) == []  # the table of the other flavour agrees
    if precision == "int8":
        assert beside["products"]["int8"] == made.notes["quantized"]


@pytest.fixture(scope="module")
def engine(rtx, tmp_path_factory) -> Path:
    """In fp16, inputs and outputs too, for two GPUs; checked."""
    path = tmp_path_factory.mktemp("engine") / "model.rtxplan"
    options = {"precision": "fp16", "io": "same", "compute_capabilities": ("8.9", "12.0", "8.9")}
    return cc.export(folded(), path, format="trt-rtx", **options)


def test_it_says_what_it_is_for(engine):
    sidecar = Sidecar.read(engine)
    assert sidecar.target == "8.9, 12.0"
    assert json.loads(sidecar.metadata["castling.signature"])["dtype"] == "float16"


@no_gpu
def test_the_parity_of_an_engine_that_was_not_run_is_that_of_its_graph(tmp_path, rtx):
    made = EXPORTER.export(folded(), tmp_path / "model.rtxplan", ExportOptions.make())
    assert made.parity.holds
    assert made.notes["parity_of"] == f"{tmp_path}/model.rtx.onnx in onnxruntime"
    run = FORMATS["onnx"].exporter.open_artifact(tmp_path / "model.rtx.onnx")
    with torch.no_grad():
        torch.testing.assert_close(run(images(3)), folded()(images(3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("here", "targets", "expected"),
    [
        ("8.6", (), True), ("12.1", (), True), ("13.0", (), True),
        ("9.0", (), False), ("10.0", (), False), ("7.5", (), False),
        ("7.5", ("7.5",), True), ("8.9", ("8.6", "8.9"), True), ("8.9", ("12.0",), False), ("13.0", ("12.0",), False),
    ],
)  # fmt: skip
def test_which_gpus_an_engine_is_for(rtx, here, targets, expected):
    """As TensorRT for RTX itself said on an H200: 8.0 8.6 8.9 12.0 12.1 >12.0, and not 9.0."""
    assert trt_rtx.runs_on(here, targets, trt_rtx.known_targets(rtx)) is expected


@no_gpu
def test_on_a_gpu_that_it_is_not_for_it_is_built_and_not_run(tmp_path, rtx, monkeypatch):
    """What torch says of such a GPU is all that is needed of it: nothing is run there."""
    monkeypatch.setattr(trt_rtx, "gpu", lambda: "NVIDIA H200")
    monkeypatch.setattr(trt_rtx, "capability", lambda: "9.0")
    made = EXPORTER.export(folded(), tmp_path / "model.rtxplan", ExportOptions.make())
    assert made.notes["engine"] == "built, not run: it is not for NVIDIA H200, which has compute capability 9.0"
    assert made.notes["parity_of"] == f"{tmp_path}/model.rtx.onnx in onnxruntime"
    assert Sidecar.read(tmp_path / "model.rtxplan").target == trt_rtx.PORTABLE
    with pytest.raises(ExportError, match=r"can't be run here: it runs on compute.*, and NVIDIA H200 has 9\.0; the gr"):
        EXPORTER.open_artifact(tmp_path / "model.rtxplan")


@no_gpu
def test_without_a_gpu_it_can_not_be_run_and_says_so(engine):
    for run in (cc.Session, EXPORTER.open_artifact):
        with pytest.raises(ExportError, match=r"can't be run here: it needs an NVIDIA GPU.*model\.rtx\.onnx") as raised:
            run(engine)
        assert raised.value.exit_code == 2


@pytest.mark.skipif(EXPORTER.cannot_run() is not None, reason="no GPU here that runs an engine")
def test_with_a_gpu_it_is_run(engine):
    session = cc.Session(engine)
    with torch.no_grad():
        torch.testing.assert_close(session(images(3)), folded()(images(3)), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(("count", "calls"), [(1, [4]), (4, [4]), (9, [8, 4]), (17, [8, 8, 4])])
def test_batches_are_filled_up_and_split_as_the_profile_takes_them(count, calls):
    """Of an engine for 4 to 8 images; the engine itself needs a GPU."""
    seen: list[int] = []

    class Counted(EngineModel):
        def __init__(self) -> None:
            self.smallest, self.largest, self.batch = 4, 8, None

        def run(self, values):
            seen.append(len(values))
            return values

    values = np.arange(2 * count).reshape(count, 2)
    np.testing.assert_array_equal(Counted().rows(values), values)
    assert seen == calls


@no_gpu
def test_an_engine_is_looked_at_before_it_is_loaded(engine, rtx, tmp_path):
    sidecar = Sidecar.read(engine)
    with pytest.raises(ExportError, match=r"built by TensorRT 1\.0, here is"):
        EngineModel(rtx, engine, replace(sidecar, tensorrt="1.0"))
    cut = tmp_path / engine.name
    cut.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(ExportError, match="not the file that was written"):
        EngineModel(rtx, cut, sidecar)
    with pytest.raises(ExportError, match=r"TensorRT can't read the engine of .*driver"):
        EngineModel(rtx, engine, sidecar)
    with pytest.raises(ExportError, match=r"model\.rtxplan\.json.* is missing or damaged"):
        Sidecar.read(cut)


def test_without_the_package_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(trt_rtx, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install 'castling-convert\[tensorrt-rtx\]'.*--onnx-only"):
        cc.export(folded(), tmp_path / "model.rtxplan", format="trt-rtx")
    assert not list(tmp_path.iterdir())


def test_the_line_for_nvidias_own_tool(tmp_path):
    options = ExportOptions.make(batch="1:4:8", onnx_only=True, verify=False, compute_capabilities=("8.9", "12.0"))
    made = EXPORTER.export(folded(), tmp_path / "model.rtxplan", options)
    assert made.artifact == tmp_path / "model.rtx.onnx"
    assert made.notes["tensorrt_rtx"].split() == [
        "tensorrt_rtx", f"--onnx={tmp_path}/model.rtx.onnx", f"--saveEngine={tmp_path}/model.rtxplan",
        "--minShapes=images:1x3x32x32", "--optShapes=images:4x3x32x32", "--maxShapes=images:8x3x32x32",
        "--computeCapabilities=89,120", "--skipInference",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("format", "target", "words"),
    [
        ("trt-rtx", "9.9", r"builds for compute capability 7\.5, 8\.0, .*12\.0.*, not for 9\.9; without --compute"),
        ("trt-rtx", "sm_89", r"written X\.Y, such as 8\.9, not 'sm_89'"),
        ("onnx", "8.9", r"for --format trt-rtx, not for onnx; leave out --compute-capability"),
        # Of a castled model the sums over tokens stay in float32, in whatever precision.
        (
            "trt-rtx",
            "7.5",
            r"can't build an engine of model\.rtx\.onnx: .*FP32 GEMM is not supported.*; without --compute",
        ),
    ],
)
def test_compute_capabilities_that_can_not_be(tmp_path, rtx, format, target, words):
    options = {"precision": "fp16", "verify": False, "compute_capabilities": ("8.6", target)}
    with pytest.raises(ExportError, match=words) as raised:
        cc.export(folded(), tmp_path / "model.rtxplan", format=format, **options)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_layers_are_counted(network, parser, tmp_path):
    """Of x.half() * y, with the shape of x beside it, for which TensorRT needs two layers."""
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "y"], ["z"], "times"),
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
    ]
    kinds = {"x": TensorProto.FLOAT, "y": TensorProto.FLOAT16, "z": TensorProto.FLOAT16, "shape": TensorProto.INT64}
    values = [helper.make_tensor_value_info(name, kind, [2] if name == "shape" else [2, 3])
              for name, kind in kinds.items()]  # fmt: skip
    graph = helper.make_graph(nodes, "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    parse(parser, tmp_path / "model.onnx")
    assert count_layers(network) == {"all": 4, "integer": 2, "casts": 1}


# --- graphs that were edited by hand


@pytest.fixture(scope="module")
def graphs(tmp_path_factory) -> dict[str, Path]:
    """Of one model, for a dynamic batch."""
    folder = tmp_path_factory.mktemp("graphs")
    options = {"opset": 20, "verify": False}
    names = ("fp32", "fp16", "int8")
    return {name: cc.export(folded(), folder / f"{name}.onnx", precision=name, **options) for name in names}


def building(rtx: Any, path: Path, **options: Any) -> EngineBuild:
    return EngineBuild(rtx, path, signature_in(onnx.load(path)), ExportOptions.make(**options))


def without(proto: onnx.ModelProto, *kinds: str, before: str) -> onnx.ModelProto:
    """`proto` without the first nodes of these kinds, one after the other, that feed a node of the kind `before`."""
    makers = {node.output[0]: node for node in proto.graph.node}
    for last in (node for node in proto.graph.node if node.op_type == before):
        chain = [makers.get(last.input[0])]
        while chain[-1] is not None and len(chain) < len(kinds):
            chain.append(makers.get(chain[-1].input[0]))
        if [node.op_type if node else "" for node in chain] == list(reversed(kinds)):
            last.input[0] = chain[-1].input[0]
            for node in chain:
                proto.graph.node.remove(node)
            return proto
    raise AssertionError(f"no {' and '.join(kinds)} before a {before}")


def test_an_fp32_graph_is_not_fp16(graphs, rtx):
    with pytest.raises(CheckFailed, match=r"no product of matrices is in fp16 \(\d+ in fp32\)"):
        building(rtx, graphs["fp32"], precision="fp16")


def test_a_cast_that_is_missing_is_refused(graphs, rtx, tmp_path):
    edited = tmp_path / "edited.onnx"
    onnx.save(without(onnx.load(graphs["fp16"]), "Cast", before="MatMul"), edited)
    with pytest.raises(ExportError, match=r"can't read edited\.onnx: MatMul .*must have same input types") as raised:
        building(rtx, edited, precision="fp16")
    assert "\n" not in str(raised.value)


def test_a_product_that_was_moved_to_fp32_is_found(graphs, network, parser, tmp_path):
    """Its cast is taken away, its weights are widened, and its result is cast: the graph is well typed again."""
    whole, edited = onnx.load(graphs["fp16"]), onnx.load(graphs["fp16"])
    weights = {tensor.name: tensor for tensor in edited.graph.initializer}
    makers = {node.output[0]: node for node in edited.graph.node}
    index, product = next(
        (index, node) for index, node in enumerate(edited.graph.node)
        if node.op_type == "MatMul" and node.input[1] in weights and makers[node.input[0]].op_type == "Cast"
    )  # fmt: skip
    product.input[0] = makers[product.input[0]].input[0]
    weight = weights[product.input[1]]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name))
    result = product.output[0]
    product.output[0] = "wide"
    edited.graph.node.insert(index + 1, helper.make_node("Cast", ["wide"], [result], "back", to=TensorProto.FLOAT16))
    del edited.graph.value_info[:]
    onnx.save(edited, tmp_path / "edited.onnx")
    parse(parser, tmp_path / "edited.onnx")
    assert products_read(network) == products_of(edited)
    with pytest.raises(CheckFailed, match=f"{product.name} is meant to be in fp16 and TensorRT reads it in fp32"):
        prove_network(network, whole, "fp16")


@pytest.mark.parametrize("which", ["activation", "weight"])
def test_a_pair_that_is_missing_is_found(graphs, rtx, tmp_path, which):
    edited = onnx.load(graphs["int8"])
    if which == "activation":
        without(edited, "QuantizeLinear", "DequantizeLinear", before="MatMul")
    else:
        dequantize = next(node for node in edited.graph.node if node.input[0].endswith("weight_quantized"))
        product = next(node for node in edited.graph.node if dequantize.output[0] in node.input)
        wide = np.ones(next(t.dims for t in edited.graph.initializer if t.name == dequantize.input[0]), np.float32)
        edited.graph.node.remove(dequantize)
        product.input[1] = "wide"
        edited.graph.initializer.append(numpy_helper.from_array(wide, "wide"))
    onnx.save(edited, tmp_path / "edited.onnx")
    with pytest.raises(CheckFailed, match="meant to be in int8 and TensorRT reads it in int8 on one side alone"):
        building(rtx, tmp_path / "edited.onnx", precision="int8")


def test_a_graph_that_was_cut_off_is_refused(graphs, parser, tmp_path):
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(graphs["fp32"].read_bytes()[:5000])
    with pytest.raises(ExportError, match=r"can't read cut\.onnx: MODEL_DESERIALIZE_FAILED in .*Failed to parse"):
        parse(parser, cut)


def test_a_profile_that_the_graph_does_not_have_is_refused(rtx, tmp_path):
    path = cc.export(folded(), tmp_path / "two.onnx", opset=20, batch=2, verify=False)
    with pytest.raises(ExportError, match=r"can't build an engine of two\.onnx: .*profile") as raised:
        building(rtx, path, batch="1:4:8").build()
    assert "\n" not in str(raised.value)
