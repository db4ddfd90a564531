"""TensorRT, which can't be installed here: its names by version, its operators, and the builder's road
against a stand-in that has those names alone. No engine was built by these tests."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import castling_convert as cc
from castling_convert.errors import CheckFailed, ExportError, Interrupted
from castling_convert.export import FORMATS, trt
from castling_convert.export.options import ExportOptions
from castling_convert.export.trt_operators import operators, refused
from tests.models import FAST, FEATURES, KINDS, LANDMARKS, WINDOW, closed_student, tiny

from .trt_api import SUPPORTED, attributes, names, there

SOURCE = inspect.getsource(trt)
# The variables of trt.py that hold objects of TensorRT, and their classes.
HOLDS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "shapes": "IOptimizationProfile", "inspector": "EngineInspector", "engine": "ICudaEngine",
    "context": "IExecutionContext",
}  # fmt: skip


def folded(kind: str = "deit", layers: str | None = None, form: dict[str, Any] = LANDMARKS) -> Any:
    torch.manual_seed(0)
    return cc.fold(closed_student(tiny(KINDS[kind]), layers, **form))


# --- names


@pytest.mark.parametrize("version", SUPPORTED)
def test_every_name_of_the_module_is_there(version):
    for dotted in attributes(SOURCE):
        if dotted[0] == "__version__":
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
    assert seen == set(HOLDS) - {"network"}


def test_what_the_table_says_is_gone_is_gone():
    assert there("BuilderFlag", "FP16", "v10.16")
    assert not there("BuilderFlag", "FP16", "v11.0")
    assert "BuilderFlag.FP16" not in SOURCE


# --- operators


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize(
    ("kind", "layers", "form"),
    [
        *((kind, None, LANDMARKS) for kind in KINDS),
        ("deit", "0", LANDMARKS),
        ("deit", None, FEATURES),
        ("deit", None, FAST),
        ("deit", None, WINDOW),
    ],
)
def test_every_graph_is_taken(tmp_path, kind, layers, form, precision):
    made = FORMATS["trt"].exporter.export(
        folded(kind, layers, form), tmp_path / "model.plan", ExportOptions.make(precision=precision, onnx_only=True)
    )
    assert list(refused(onnx.load(made.artifact))) == []
    assert [path.name for path in tmp_path.iterdir()] == ["model.trt.onnx"]


def graph_of(
    *nodes: onnx.NodeProto, opset: int = 20, type_: int = TensorProto.FLOAT, **constants: Any
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", type_, [2, 3])
    y = helper.make_tensor_value_info("y", type_, None)
    graph = helper.make_graph(
        list(nodes), "g", [x], [y], [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def node(kind: str, *inputs: str, name: str = "here", **attributes_: Any) -> onnx.NodeProto:
    return helper.make_node(kind, ["x", *inputs], ["y"], name=name, **attributes_)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (graph_of(node("Det")), "Det here: no such operator"),
        (graph_of(node("Abs"), opset=8), "opset 8"),
        (graph_of(node("Abs"), opset=25), "opset 25"),
        (graph_of(node("ReduceSum", "axes")), "must be an initializer"),
        (graph_of(node("Unsqueeze", "axes")), "axes must be resolvable"),
        (graph_of(node("Resize", "", "", "s", mode="cubic")), "no cubic"),
        (graph_of(node("Resize", "", "", "s", mode="linear", antialias=1)), "Resize here"),
        (graph_of(node("QuantizeLinear", "s", "z"), s=np.float32(1), z=np.int8(3)),
         "y_zero_point must be 0"),
        (graph_of(helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean"], name="here"),
                  s=np.ones(3, "float32")), "only the first output"),
        (graph_of(node("Erf"), type_=TensorProto.INT32), "not INT32"),
        (graph_of(helper.make_node("Abs", ["x"], ["y"], name="here", domain="my.own")), "no such operator"),
    ],
)  # fmt: skip
def test_what_tensorrt_would_refuse_is_named(graph, words):
    if any(n.domain for n in graph.graph.node):
        graph.opset_import.append(helper.make_opsetid("my.own", 1))
    assert any(words in complaint for complaint in refused(graph)), list(refused(graph))


def test_what_tensorrt_takes_is_not_complained_of():
    assert list(refused(graph_of(node("ReduceSum", "axes"), axes=np.array([1])))) == []
    assert list(refused(graph_of(node("Cast", to=TensorProto.FLOAT), type_=TensorProto.UINT8))) == []


def test_the_table_is_read():
    assert len(operators()) > 150
    assert operators()["RMSNormalization"].types == {"FP32", "FP16", "BF16"}
    assert not operators()["Det"].supported


# --- here, without TensorRT


def test_without_tensorrt_it_says_so_and_how_to_go_on(tmp_path):
    with pytest.raises(ExportError, match=r"tensorrt package.*pip install.*--onnx-only") as raised:
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


# --- the builder's road, against a stand-in


def layer(api: StandIn, node: onnx.NodeProto) -> dict[str, Any]:
    """As the inspector writes it, for one ONNX node: in the type that the graph gives it, unless the last
    product of the second block's attention was to be built in another one."""
    words = {onnx.TensorProto.FLOAT: "Float", onnx.TensorProto.FLOAT16: "Half", onnx.TensorProto.BFLOAT16: "BFloat16"}
    inferred = onnx.shape_inference.infer_shapes(api.graph).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    word = words.get(types.get(node.output[0], 0), "Int64")
    products = [other.name for other in api.graph.graph.node if other.op_type == "MatMul"]
    if api.says == "precision" and node.name == products[-4]:  # before it proj, after it the two of the MLP
        word = "Float"
    entry = {"Name": node.output[0], "Format/Datatype": word}
    metadata = "" if api.says == "silent" else f"[ONNX Layer: node_before]\x1f[ONNX Layer: {node.name}]"
    return {"Name": f"__myl_{node.op_type}", "LayerType": "gemm", "Inputs": [entry], "Outputs": [entry],
            "Metadata": metadata}  # fmt: skip


class Strict:
    """An object of a class of the table: what is not in the table for `version` is not there."""

    owner: ClassVar[str]

    def __init__(self, api: StandIn) -> None:
        self.__dict__["api"] = api

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in ("api", "owner"):
            api, owner = object.__getattribute__(self, "api"), type(self).owner
            if not there(owner, name, api.version):
                raise AttributeError(f"{owner}.{name} is not in {api.version}")
            api.calls.append(f"{owner}.{name}")
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        api, owner = object.__getattribute__(self, "api"), type(self).owner
        if not there(owner, name, api.version):
            raise AttributeError(f"{owner}.{name} is not in {api.version}")
        api.calls.append(f"{owner}.{name}=")
        self.__dict__[name] = value


class Names:
    """An enumeration or namespace of the table."""

    def __init__(self, owner: str, version: str, **inner: Any) -> None:
        self.__dict__.update(inner, owner=owner, version=version)

    def __getattr__(self, name: str) -> Any:
        if not there(self.owner, name, self.version):
            raise AttributeError(f"{self.owner}.{name} is not in {self.version}")
        return sorted(names()[self.owner]).index(name)


class StandIn(ModuleType):
    """`import tensorrt` for one version; `says` is what goes wrong, if anything does."""

    def __init__(self, version: str, says: str = "") -> None:
        super().__init__("tensorrt")
        self.version, self.says, self.calls = version, says, []
        self.__version__ = version.removeprefix("v") + ".0"
        self.__spec__ = ModuleSpec("tensorrt", None)
        for owner in ("NetworkDefinitionCreationFlag", "MemoryPoolType", "ProfilingVerbosity", "BuilderFlag",
                      "LayerInformationFormat"):  # fmt: skip
            setattr(self, owner, Names(owner, version))
        self.ILogger = Names("ILogger", version, Severity=Names("Severity", version))
        api = self

        class Logger(Strict):
            owner = "Logger"

            def __init__(self, severity: int) -> None:
                super().__init__(api)

        class Profile(Strict):
            owner = "IOptimizationProfile"

            def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
                api.profile = (input, tuple(min), tuple(opt), tuple(max))

        class Cache(Strict):
            owner = "ITimingCache"

            def serialize(self) -> bytes:
                return b"timings"

        class Config(Strict):
            owner = "IBuilderConfig"

            def set_memory_pool_limit(self, pool: int, pool_size: int) -> None: ...
            def clear_flag(self, flag: int) -> None:
                api.cleared = flag

            def add_optimization_profile(self, profile: Profile) -> int:
                return 0

            def create_timing_cache(self, serialized_timing_cache: bytes) -> Cache:
                api.timings = serialized_timing_cache
                return Cache(api)

            def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
                return True

            def get_timing_cache(self) -> Cache:
                return Cache(api)

        class Network(Strict):
            owner = "INetworkDefinition"

        class Error(Strict):
            owner = "ParserError"

            def desc(self) -> str:
                return "unsupported node"

        class Parser(Strict):
            owner = "OnnxParser"

            def __init__(self, network: Network, logger: Logger) -> None:
                super().__init__(api)

            def parse_from_file(self, model: str) -> bool:
                onnx.checker.check_model(model)
                api.graph = onnx.load(model)
                return api.says != "parse"

            num_errors = 1

            def get_error(self, index: int) -> Error:
                return Error(api)

        class Builder(Strict):
            owner = "Builder"

            def __init__(self, logger: Logger) -> None:
                super().__init__(api)

            def create_network(self, flags: int) -> Network:
                assert flags == 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
                return Network(api)

            def create_builder_config(self) -> Config:
                return Config(api)

            def create_optimization_profile(self) -> Profile:
                return Profile(api)

            def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
                monitor = config.__dict__["progress_monitor"]
                monitor.phase_start("Building", None, 2)
                if api.says == "cancel":
                    monitor.cancelled = True
                go_on = all(monitor.step_complete("Building", step) for step in range(2))
                monitor.phase_finish("Building")
                return None if api.says == "build" or not go_on else b"an engine"

        class Inspector(Strict):
            owner = "EngineInspector"

            def get_engine_information(self, format: int) -> str:
                return json.dumps({"Layers": [layer(api, node) for node in api.graph.graph.node]})

        class Engine(Strict):
            owner = "ICudaEngine"

            def create_engine_inspector(self) -> Inspector:
                return Inspector(api)

        class Runtime(Strict):
            owner = "Runtime"

            def __init__(self, logger: Logger) -> None:
                super().__init__(api)

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine:
                assert serialized_engine == b"an engine"
                return Engine(api)

        class Monitor:
            def __init__(self) -> None: ...

        self.Logger, self.Builder, self.OnnxParser, self.Runtime = Logger, Builder, Parser, Runtime
        self.IProgressMonitor = Monitor
        self.classes = (Logger, Profile, Cache, Config, Network, Error, Parser, Builder, Inspector, Engine, Runtime)


@pytest.fixture
def tensorrt(monkeypatch):
    def install(version: str, says: str = "") -> StandIn:
        api = StandIn(version, says)
        monkeypatch.setitem(sys.modules, "tensorrt", api)
        monkeypatch.setattr(trt, "gpu", lambda: "a GPU")
        return api

    return install


def build(tmp_path, **options: Any):
    values = {"precision": "fp16", "batch": "1:4:8", "verify": False, **options}
    return FORMATS["trt"].exporter.export(folded(), tmp_path / "model.plan", ExportOptions.make(**values))


def test_the_stand_in_has_no_name_that_tensorrt_has_not():
    for kind in StandIn("v11.1").classes:
        for name in vars(kind):
            if not name.startswith("_") and name != "owner":
                assert all(there(kind.owner, name, version) for version in SUPPORTED), (kind.owner, name)


@pytest.mark.slow
@pytest.mark.parametrize("version", SUPPORTED)
def test_an_engine_and_what_stands_beside_it(tmp_path, tensorrt, version):
    api = tensorrt(version)
    made = build(tmp_path)
    assert made.artifact.read_bytes() == b"an engine"
    beside = json.loads((tmp_path / "model.plan.json").read_text())
    assert beside["tensorrt"] == api.__version__
    assert beside["profile"] == {"smallest": [1, 3, 32, 32], "best": [4, 3, 32, 32], "largest": [8, 3, 32, 32]}
    assert api.profile == ("images", (1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 32, 32))
    assert api.calls.index("OnnxParser.parse_from_file") < api.calls.index("Builder.build_serialized_network")
    assert "EngineInspector.get_engine_information" in api.calls
    assert not hasattr(api, "cleared")  # TF32 is a matter of fp32 alone
    assert api.timings == b""
    build(tmp_path)
    assert api.timings == b"timings"


@pytest.mark.parametrize(
    ("says", "error", "words"),
    [
        ("parse", ExportError, "can't read .*unsupported node"),
        ("build", ExportError, "could not build"),
        ("precision", CheckFailed, "built node_.* in Float, not in fp16"),
        ("silent", CheckFailed, "names no matrix product in fp16"),
        ("cancel", Interrupted, "interrupted while TensorRT was building"),
    ],
)
def test_what_can_go_wrong_leaves_no_engine(tmp_path, tensorrt, says, error, words):
    tensorrt("v11.1", says)
    with pytest.raises(error, match=words):
        build(tmp_path)
    assert not [path for path in tmp_path.iterdir() if ".plan" in path.name]


def test_a_tensorrt_that_is_too_old(tmp_path, tensorrt):
    tensorrt("v10.9.0")
    with pytest.raises(ExportError, match=r"10\.9.* too old.*10\.12"):
        build(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_products_of_castled_layers_are_asked_about(tmp_path, precision):
    """In half precision all but what is summed over tokens, with the logits of its weights, and the head; in int8 all
    but the small products inside attention, five of the landmarks and two of the prefix tokens."""
    options = {"format": "trt", "precision": precision, "onnx_only": True}
    graph = onnx.load(cc.export(folded(), tmp_path / "model.plan", **options))
    products = [node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm")]
    asked = trt.products_in(graph, precision)
    blocks = 2
    islands = {"fp32": 0, "fp16": 3 * blocks + 1, "bf16": 3 * blocks + 1, "int8": 7 * blocks}[precision]
    assert len(asked) == len(products) - islands
