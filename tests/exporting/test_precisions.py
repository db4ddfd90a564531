"""fp16, bf16 and int8: parity, islands, preprocessing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import castling_convert as cc
from castling_convert.artifact import prepare as prepare_module
from castling_convert.artifact.onnx_model import OnnxModel
from castling_convert.artifact.options import ExportOptions
from castling_convert.artifact.prepare import prepare
from castling_convert.artifact.runner import check, judge
from castling_convert.artifact.signature import Signature
from castling_convert.castling import close_masks
from castling_convert.errors import CheckFailed, ExportError
from castling_convert.exporting import FORMATS, onnx_graph
from castling_convert.quantize.onnx_qdq import split_gemm
from tests.models import FAST, FEATURES, KINDS, LANDMARKS, WINDOW, closed_student, images, tiny

HALF = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}


def folded(
    kind: str = "deit", layers: str | None = None, form: dict[str, Any] = LANDMARKS, depth: int | None = None
) -> Any:
    """Two blocks of the first kind, and of the one whose pooling would outweigh one; of the others one, which has all
    that there is of them."""
    torch.manual_seed(0)
    return cc.fold(closed_student(tiny(KINDS[kind], depth=depth or 1 + (kind in ("deit", "siglip"))), layers, **form))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    @cache
    def make(kind: str, precision: str, layers: str | None = None, **options: Any) -> tuple[Any, Path]:
        model = folded(kind, layers)
        path = tmp_path_factory.mktemp("precision") / "model.onnx"
        return model, cc.export(model, path, precision=precision, **options)

    return make


def types_of(path: Path) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The graph and the element type of every value in it."""
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = proto.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return proto, types | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(("kind", "layers"), [*((kind, None) for kind in KINDS), ("deit", "1")])
def test_every_kind_runs_within_its_bounds(exports, kind, layers, precision) -> None:
    """Parity is checked by the export; here on other images, against the float32 model. bfloat16 has no more than what
    the export checks, for onnxruntime has none on the CPU."""
    model, path = exports(kind, precision, layers)
    x = images(6)
    with torch.no_grad():
        expected = model(x)
    error = (OnnxModel(path)(x) - expected).square().mean().sqrt() / expected.std()
    assert error <= {"fp16": 0.01, "int8": 0.1}[precision]
    assert error > 1e-7, "this is not another precision"


@pytest.mark.slow
@pytest.mark.parametrize("form", [FAST, FEATURES, WINDOW], ids=["fast", "features", "window"])
@pytest.mark.parametrize(
    ("format", "precision"),
    [
        ("onnx", "fp16"),
        ("onnx", "bf16"),
        ("onnx", "int8"),
        ("openvino", "fp32"),
        ("openvino", "int8"),
        ("torch", "fp16"),
    ],
)
def test_the_other_forms_run_within_their_bounds(tmp_path, form, format, precision) -> None:
    """Parity is checked by the export, at a batch of as many images as there are heads too."""
    path = tmp_path / f"model{FORMATS[format].suffix}"
    for batch in (3, "1:2:4"):
        options = ExportOptions.make(precision=precision, batch=batch)
        assert FORMATS[format].exporter.export(folded(form=form, depth=1), path, options).parity.holds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision"), [*((kind, "fp16") for kind in KINDS), ("deit", "bf16"), ("siglip", "bf16")]
)
def test_norms_and_sums_over_tokens_are_float32_and_the_rest_is_half(exports, kind, precision) -> None:
    proto, types = types_of(exports(kind, precision)[1])
    linear = []
    for node in proto.graph.node:
        taken = {types[name] for name in node.input if types.get(name) in (onnx.TensorProto.FLOAT, HALF[precision])}
        if node.op_type in ("LayerNormalization", "RMSNormalization", "ReduceSum", "ReduceMean"):
            assert taken == {onnx.TensorProto.FLOAT}, (node.op_type, node.name)
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            linear.append(taken)
    assert all(len(taken) == 1 for taken in linear)
    constants = {tensor.name for tensor in proto.graph.initializer}
    assert not [node.name for node in proto.graph.node if node.op_type == "Cast" and node.input[0] in constants]
    share = sum(taken == {HALF[precision]} for taken in linear) / len(linear)
    assert share > 0.5
    assert types["images"] == types["logits"] == onnx.TensorProto.FLOAT


class LargestSum(TorchDispatchMode):
    """The largest sum of magnitudes that any half-precision operation forms: what float16 has to hold,
    in whatever order a kernel adds."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[str, float] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function.overloadpacket.__name__
        tensors = [x for x in args if isinstance(x, Tensor)]
        if tensors and tensors[0].dtype == torch.float16:
            wide = [x.float().abs() for x in tensors]
            found = None
            if name in ("mean", "sum"):
                found = wide[0].sum(args[1] if len(args) > 1 and args[1] is not None else None)
            elif name in ("mm", "bmm"):
                found = wide[0] @ wide[1]
            elif name == "addmm":
                found = wide[1] @ wide[2]
            elif name in ("native_layer_norm", "rms_norm", "_fused_rms_norm", "pow"):
                found = wide[0].square().sum(-1)
            if found is not None:
                self.largest[name] = max(self.largest.get(name, 0.0), found.max().item())
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module", params=["castling", "castling-fast"])
def large(request: pytest.FixtureRequest) -> Any:
    """Three blocks of DeiT-S at 1024x1024 with values of which a sum over 4,097 tokens, and queries and keys of which a
    sum of squares over 64 channels, exceed float16. Landmarks are a softmax of them, so theirs are as large as softmax
    itself bears in half precision: with logits in the hundreds it is another one, the teacher's as well."""
    torch.manual_seed(0)
    teacher = timm.create_model("deit_small_patch16_224", img_size=1024, depth=3).eval()
    student = cc.castle(teacher, request.param)
    close_masks(student)
    model = cc.fold(student)
    sharp = 6 if request.param == "castling" else 120
    with torch.no_grad():
        for block in model.blocks:
            size = block.attn.num_heads * block.attn.head_dim
            q, k, v, *_ = block.attn.qkv.weight.split(size)
            q.mul_(sharp)
            k.mul_(sharp)
            v.mul_(120)
            block.attn.qkv.bias[2 * size : 3 * size].add_(20)
            block.attn.proj.weight.div_(120)
    return model


@pytest.mark.slow
def test_large_activations_stay_finite_at_1024(large, tmp_path) -> None:
    prepared = prepare(large, ExportOptions.make(precision="fp16"))
    x = images(1, 1024, 1024)
    with torch.no_grad(), LargestSum() as sums:
        half = prepared(x)
    assert sums.largest
    assert max(sums.largest.values()) < 65504, sums.largest
    with torch.no_grad():
        expected = large(x)
    assert (half - expected).abs().max() < 0.02 * expected.abs().max()
    path = cc.export(large, tmp_path / "model.onnx", precision="fp16", batch=1)
    logits = OnnxModel(path)(x)
    assert logits.isfinite().all()
    assert (logits - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("island", ["norms", "sums"])
def test_without_its_islands_float16_would_not_hold_them(large, monkeypatch, island) -> None:
    if island == "sums" and large.castling.attention.form in ("features", "landmarks"):
        pytest.skip("its weights sum to one; float32 keeps their precision, not their range")
    if island == "norms":
        monkeypatch.setattr("castling_convert.families.vit.NORMS", ())
    else:
        monkeypatch.setattr(torch, "promote_types", lambda dtype, _other: dtype)
    prepared = prepare(large, ExportOptions.make(precision="fp16"))
    with torch.no_grad(), LargestSum() as sums:
        prepared(100 * images(1, 1024, 1024) if island == "norms" else images(1, 1024, 1024))
    assert max(sums.largest.values()) > 65504, sums.largest


@pytest.mark.slow
def test_inputs_and_outputs_in_half_precision(exports) -> None:
    model, path = exports("deit", "fp16", io="same")
    _, types = types_of(path)
    assert types["images"] == types["logits"] == onnx.TensorProto.FLOAT16
    run = OnnxModel(path)
    assert run.signature.dtype == "float16"
    with torch.no_grad():
        assert (run(images()) - model(images())).abs().max() < 0.02


def test_bfloat16_goes_in_and_out_as_float32(tmp_path) -> None:
    with pytest.raises(ExportError, match="numpy has no bfloat16"):
        cc.export(folded(), tmp_path / "model.onnx", precision="bf16", io="same")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_preprocessing_in_the_graph(exports, precision) -> None:
    """uint8 pixels in, probabilities out: what timm's transform, the model and a softmax give."""
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    model, path = exports("deit", precision, preprocess=True)
    run = OnnxModel(path)
    assert (run.signature.input, run.signature.output) == ("pixels", "probabilities")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    transform = create_transform(**resolve_model_data_config(model) | {"input_size": (3, 32, 32), "crop_pct": 1.0})
    x = torch.stack([transform(Image.fromarray(image)) for image in pixels])
    with torch.no_grad():
        expected = model(x).softmax(-1)
    actual = run.rows(pixels)
    np.testing.assert_allclose(actual.sum(-1), 1, rtol=1e-3)
    np.testing.assert_allclose(actual, expected, atol=1e-5 if precision == "fp32" else 0.02)
    assert torch.equal(run.signature.pixels(x), torch.from_numpy(pixels))
    torch.testing.assert_close(run(x), torch.from_numpy(actual))


def test_a_signature_survives_the_file() -> None:
    signature = Signature((3, 32, 48), "pixels", "probabilities", "float16", (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert Signature.from_json(signature.to_json()) == signature


@pytest.mark.slow
class TestInt8:
    def test_linear_layers_are_quantised_as_tensorrt_takes_them(self, exports) -> None:
        proto = onnx.load(exports("deit", "int8")[1])
        zeros = [onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name.endswith("zero_point")]
        assert zeros
        assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
        producers = {name: node.op_type for node in proto.graph.node for name in node.output}
        linear = [node for node in proto.graph.node if node.op_type in ("MatMul", "Gemm")]
        taken = [[producers.get(name) for name in node.input[:2]] for node in linear]
        assert taken.count(["DequantizeLinear"] * 2) == 9  # qkv, proj, fc1, fc2 of two blocks, and the head

    def test_weights_have_a_scale_a_channel(self, exports) -> None:
        proto = onnx.load(exports("deit", "int8")[1])
        scales = [t for t in proto.graph.initializer if t.name.endswith("_scale")]
        assert sorted(tuple(t.dims) for t in scales if t.dims) == sorted([(144,), (48,), (192,), (48,)] * 2 + [(10,)])

    def test_onnxruntime_multiplies_in_int8(self, exports, tmp_path) -> None:
        """And not in float, with weights that it dequantises anew at every call."""
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(exports("deit", "int8")[1], options, providers=["CPUExecutionProvider"])
        operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
        assert operators["MatMulIntegerToFloat"] == 9
        assert operators["Gemm"] == operators["DequantizeLinear"] == 0

    def test_products_do_not_overflow_where_the_cpu_has_no_vnni(self, tmp_path) -> None:
        """On such a CPU onnxruntime adds pairs of products in 16 bits, unless it is told to be precise."""
        one = np.float32(1)
        constants = {"scale": one, "zero": np.int8(0), "w": np.full((64, 8), 127, np.int8)}
        pair = [("QuantizeLinear", ["x", "scale", "zero"], "q"), ("DequantizeLinear", ["q", "scale", "zero"], "a"),
                ("DequantizeLinear", ["w", "scale", "zero"], "b"), ("MatMul", ["a", "b"], "y")]  # fmt: skip
        nodes = [onnx.helper.make_node(kind, taken, [given]) for kind, taken, given in pair]
        shapes = [onnx.helper.make_tensor_value_info(name, 1, [2, size]) for name, size in (("x", 64), ("y", 8))]
        tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        graph = onnx.helper.make_graph(nodes, "g", shapes[:1], shapes[1:], tensors)
        path = tmp_path / "model.onnx"
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
        run = OnnxModel(path)
        assert (run.run(np.full((2, 64), 127 * one)) == 64 * 127 * 127).all()

    @pytest.mark.parametrize("turned", [0, 1])
    @pytest.mark.parametrize("biased", [True, False])
    def test_a_gemm_is_split_into_the_same_numbers(self, turned, biased) -> None:
        generator = np.random.default_rng(0)
        weight, bias = generator.normal(size=(4, 6)), generator.normal(size=6)
        tensors = [("w", weight.T if turned else weight), *([("b", bias)] if biased else [])]
        node = onnx.helper.make_node("Gemm", ["x", *(name for name, _ in tensors)], ["y"], "gemm", transB=turned)
        shapes = [onnx.helper.make_tensor_value_info(name, 1, [2, size]) for name, size in (("x", 4), ("y", 6))]
        weights = [onnx.numpy_helper.from_array(value.astype("f"), name) for name, value in tensors]
        graph = onnx.helper.make_graph([node], "g", shapes[:1], shapes[1:], weights)
        whole = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        split = split_gemm(whole)
        onnx.checker.check_model(split, full_check=True)
        assert [node.op_type for node in split.graph.node] == ["MatMul", "Sub"][: 1 + biased]
        assert len(split.graph.initializer) == 1 + biased
        x = generator.normal(size=(2, 4)).astype("f")
        expected, actual = (onnx.reference.ReferenceEvaluator(one).run(None, {"x": x})[0] for one in (whole, split))
        np.testing.assert_allclose(actual, expected, rtol=1e-5)

    def test_for_latency_alone_every_layer_is_quantised_unasked(self, tmp_path) -> None:
        model = folded()
        with torch.no_grad():
            model.blocks[0].mlp.fc1.weight[0] *= 1000  # what the search would leave in float
        for format, name in (("onnx", "model.onnx"), ("openvino", "model.xml")):
            options = ExportOptions.make(precision="int8", latency_only=True, verify=False)
            made = FORMATS[format].exporter.export(model, tmp_path / name, options)
            assert made.parity is None
            if format == "onnx":
                graph = onnx.load(tmp_path / name).graph
                producers = {out: node.op_type for node in graph.node for out in node.output}
                products = [node for node in graph.node if node.op_type == "MatMul"]
                taken = [[producers.get(value) for value in node.input] for node in products]
                assert taken.count(["DequantizeLinear"] * 2) == made.notes["quantized"] == 9
            else:
                assert made.notes["nodes"]["FakeQuantize"] == 10  # the nine's inputs and the patch embedding's
                nodes = pytest.importorskip("openvino").Core().read_model(tmp_path / name).get_ops()
                products = [node for node in nodes if node.get_type_name() == "MatMul"]
                taken = [node.input_value(0).get_node().get_type_name() for node in products]
                assert taken.count("FakeQuantize") == 9

    @pytest.mark.parametrize("options", [{"verify": True}, {"verify": False, "calibration": "digits"}])
    def test_for_latency_alone_is_refused_where_accuracy_is_meant(self, options) -> None:
        with pytest.raises(ExportError, match="latency_only"):
            ExportOptions.make(precision="int8", latency_only=True, **options)

    def test_layers_that_int8_hurts_are_left_in_float(self, tmp_path) -> None:
        model = folded()
        with torch.no_grad():
            # One channel of a thousand times the others: its neighbours are nothing in eight bits.
            model.blocks[0].mlp.fc1.weight[0] *= 1000
            model.blocks[0].mlp.fc1.bias[0] = 1000.0
            model.blocks[0].mlp.fc2.weight[:, 0] *= 1e-3
        made = FORMATS["onnx"].exporter.export(model, tmp_path / "model.onnx", ExportOptions.make(precision="int8"))
        assert made.notes["float"]
        assert made.notes["quantized"] + len(made.notes["float"]) == 9
        assert made.notes["noise"] <= 0.05
        assert "generated images" in made.notes["warning"]

    def test_calibration_images(self, tmp_path) -> None:
        from PIL import Image

        for index in range(20):
            Image.new("RGB", (40, 40), (index, 0, 0)).save(tmp_path / f"{index}.png")
        with pytest.raises(ExportError, match="20 images, 100 are needed"):
            cc.export(folded(), tmp_path / "out.onnx", precision="int8", calibration=str(tmp_path))
        assert not (tmp_path / "out.onnx").exists()

    def test_the_same_bytes_again(self, exports, tmp_path) -> None:
        model, path = exports("deit", "int8")
        again = cc.export(model, tmp_path / "again.onnx", precision="int8")
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_wrong_graph_is_never_published(tmp_path, monkeypatch, precision) -> None:
    model, other = folded(depth=1), folded("deit3")
    whole = prepare_module.prepare
    monkeypatch.setattr(onnx_graph, "prepare", lambda _model, options, **how: whole(other, options, **how))
    with pytest.raises(CheckFailed, match=precision):
        cc.export(model, tmp_path / "model.onnx", precision=precision)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("format", "name"), [("onnx", "model.onnx"), ("openvino", "model.xml")])
def test_int8_for_one_batch_size_alone(tmp_path, format, name) -> None:
    path = cc.export(folded(depth=1), tmp_path / name, format=format, precision="int8", batch=3, calibration="digits")
    run = FORMATS[format].exporter.open_artifact(path)
    assert run.batch == 3
    assert run(images(4)).shape == (4, 10)


class Wrong(OnnxModel):
    """An artifact that gives other probabilities than it computes."""

    def __init__(self, path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(path)
        self.change = change

    def run(self, values: np.ndarray) -> np.ndarray:
        return self.change(super().run(values))


WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeros": np.zeros_like,
    "all classes alike": lambda p: np.full_like(p, 1 / p.shape[1]),
    "other classes": lambda p: np.roll(p, 1, 1),
    "not one in all": lambda p: 2 * p,
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_wrong_probabilities_do_not_pass(exports, precision) -> None:
    model, path = exports("deit", precision, preprocess=True)
    options = ExportOptions.make(precision=precision, preprocess=True)
    assert check(OnnxModel(path), model, options).holds
    for change in WRONG.values():
        with pytest.raises(CheckFailed, match="differs from the model"):
            check(Wrong(path, change), model, options)


@pytest.mark.parametrize("precision", FORMATS["onnx"].precisions)
def test_of_many_classes_wrong_probabilities_do_not_pass(precision) -> None:
    """They are all near zero, within every tolerance of a logit."""
    signature = Signature((3, 8, 8), output="probabilities")
    tolerance = ExportOptions.make(precision=precision).tolerance
    right = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert judge([(right, right)], signature, tolerance)[0].holds
    for change in WRONG.values():
        wrong = torch.from_numpy(change(right.numpy()))
        assert not judge([(wrong, right)], signature, tolerance)[0].holds
