from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import castling_convert as cc
from castling_convert.artifact.onnx_model import OnnxModel
from castling_convert.artifact.options import ExportOptions
from castling_convert.errors import CheckFailed, ExportError, FoldError, OutputError
from castling_convert.exporting import onnx_graph
from tests.models import FAST, FEATURES, KINDS, LANDMARKS, WINDOW, closed_student, images, recipe, tiny

pytestmark = pytest.mark.xdist_group("onnx")  # exports are shared, so one worker runs them all


@dataclass
class Exported:
    model: Any
    path: Path

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    @property
    def operators(self) -> Counter[str]:
        return Counter(node.op_type for node in self.proto.graph.node)


def folded(kind: str = "deit", layers: str | None = None, **attention: Any) -> Any:
    """Two blocks of the first kind and one of the others, which has all that there is of them."""
    torch.manual_seed(0)
    return cc.fold(closed_student(tiny(KINDS[kind], depth=1 + (kind == "deit")), layers, **attention))


def export(model: Any, path: Path, **options: Any) -> Exported:
    return Exported(model, cc.export(model, path, format="onnx", precision="fp32", **options))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """An export of each kind in a form, made when it is first asked for."""

    def make(kind: str, form: str = "landmarks") -> Exported:
        return export(folded(kind, **FORMS[form]), tmp_path_factory.mktemp(kind) / "model.onnx")

    return cache(make)


FORMS: dict[str, dict[str, Any]] = {
    "landmarks": LANDMARKS, "window": WINDOW, "features": FEATURES, "fast": FAST, "row_sum": {},
}  # fmt: skip
CASES = [
    (kind, form) for kind in KINDS for form in FORMS if form in ("landmarks", "window") or kind in ("deit", "clip")
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def exported(request: pytest.FixtureRequest, exports: Callable[..., Exported]) -> Exported:
    return exports(*request.param)


@pytest.fixture(scope="module")
def deit(exports: Callable[[str], Exported]) -> Exported:
    return exports("deit")


@pytest.mark.slow
class TestEveryKind:
    """One export of each, looked at from all sides."""

    @pytest.mark.parametrize("batch", [1, 5])
    def test_runs_at_any_batch_size_with_parity(self, exported: Exported, batch: int) -> None:
        session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
        assert [i.name for i in session.get_inputs()] == ["images"]
        assert [o.name for o in session.get_outputs()] == ["logits"]
        assert not isinstance(session.get_inputs()[0].shape[0], int)
        assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
        x = images(batch)
        with torch.no_grad():
            expected = exported.model(x).numpy()
        (actual,) = session.run(None, {"images": x.numpy()})
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)

    def test_no_softmax_but_of_the_layers_kept(self, exported: Exported) -> None:
        kept = [layer for layer in exported.model.castling.layers if layer.status == "kept"]
        assert [layer.name for layer in kept] == (["attn_pool"] if exported.model.global_pool == "map" else [])
        castled = [exported.model.get_submodule(name) for name in exported.model.castling.castled]
        linear = sum(
            {"features": 1, "landmarks": 2}.get(layer.config.form, 0)  # weights of the keys; over the landmarks
            + layer.has_rows
            + (layer.config.window > 0 and layer.windows_apart)
            for layer in castled
        )
        assert exported.operators["Softmax"] == len(kept) + linear
        assert exported.operators["Attention"] == 0

    def test_nothing_has_as_many_numbers_as_a_head_has_pairs_of_tokens(self, exported: Exported) -> None:
        if exported.model.global_pool == "map":
            return  # a layer that is kept
        tokens = exported.model.patch_embed.num_patches + exported.model.num_prefix_tokens
        shapes = [
            [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in onnx.shape_inference.infer_shapes(exported.proto).graph.value_info
        ]
        assert len(shapes) > 50
        assert not [shape for shape in shapes if shape.count(tokens) > 1]

    def test_norms_of_q_and_k_are_one_node_each_or_none_with_channels_first(self, exported: Exported) -> None:
        castled = [exported.model.get_submodule(name) for name in exported.model.castling.castled]
        first = sum(layer.can_be_channels_first for layer in castled)
        form = castled[0].config.form
        plain = form in ("features", "landmarks") or getattr(castled[0].config, "normalization", "") == "gain"
        assert first == (len(castled) if plain and not castled[0].config.window else 0)
        normed = 0 if form == "landmarks" else len(castled) - first
        assert exported.operators["RMSNormalization"] == 2 * normed

    def test_no_dead_nodes(self, exported: Exported) -> None:
        graph = exported.proto.graph
        needed = {output.name for output in graph.output}
        for node in reversed(graph.node):
            assert needed & set(node.output), f"{node.op_type} {node.name} is dead"
            needed |= set(node.input)
        assert {tensor.name for tensor in graph.initializer} <= needed

    def test_nothing_of_this_machine_is_left_in_the_file(self, exported: Exported) -> None:
        content = exported.path.read_bytes()
        assert b"/site-packages/" not in content
        assert str(Path(cc.__file__).parent).encode() not in content
        assert exported.proto.producer_name == "castling-convert"
        assert [p.name for p in exported.path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_same_model_same_bytes(deit: Exported, tmp_path: Path) -> None:
    again = export(deit.model, tmp_path / "again.onnx")
    assert again.path.read_bytes() == deit.path.read_bytes()


@pytest.mark.slow
def test_a_hybrid_with_a_fixed_batch_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = folded(layers="0")
    model.train()
    fused = model.blocks[1].attn.fused_attn
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hybrid = export(model, tmp_path / "hybrid.onnx", batch="4", opset=20)
    assert model.training
    assert model.blocks[1].attn.fused_attn == fused
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    # The layer that is kept is MatMul and Softmax; the castled one has neither Softmax nor Attention.
    assert hybrid.operators["Softmax"] == 1
    assert hybrid.operators["Attention"] == 0
    assert hybrid.operators["MatMul"] + hybrid.operators["Gemm"] > 2
    # A fixed batch is fixed, and the opset is the one asked for.
    session = onnxruntime.InferenceSession(hybrid.path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [4, 3, 32, 32]
    assert {i.version for i in hybrid.proto.opset_import if i.domain == ""} == {20}
    with torch.no_grad():
        expected = model.eval()(images(6))
    # Fewer or more images than the batch are filled up and cut.
    torch.testing.assert_close(OnnxModel(hybrid.path)(images(6)), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_another_image_size(tmp_path: Path) -> None:
    model = folded()
    made = export(model, tmp_path / "wide.onnx", image_size=(24, 48), batch="1:2:4")
    assert OnnxModel(made.path).signature.input_size == (3, 24, 48)
    model.set_input_size(img_size=(24, 48))
    with torch.no_grad():
        expected = model(images(4, 24, 48))
    torch.testing.assert_close(OnnxModel(made.path)(images(4, 24, 48)), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_bundle_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = folded()
    bundle = cc.save(model, tmp_path / "bundle")
    path = cc.export("~/bundle")
    assert path == bundle / "model.onnx"
    with torch.no_grad():
        torch.testing.assert_close(OnnxModel(path)(images()), model(images()), rtol=0, atol=1e-4)
    assert torch.equal(cc.load(bundle)(images()), model(images()))


def spoil(proto: onnx.ModelProto, value: float) -> onnx.ModelProto:
    """The graph with its largest weights off by `value`, relatively."""
    floats = (t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    tensor = max(floats, key=lambda t: len(t.raw_data))
    spoiled = numpy_helper.to_array(tensor) * np.float32(1 + value)
    tensor.CopyFrom(numpy_helper.from_array(spoiled, tensor.name))
    return proto


@pytest.mark.parametrize("value", [0.01, float("nan"), float("inf")])
def test_a_wrong_graph_is_never_published(
    deit: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(onnx_graph, "to_proto", lambda *_: spoil(deit.proto, value))
    with pytest.raises(CheckFailed, match="differs from the model") as raised:
        export(deit.model, tmp_path / "model.onnx")
    assert raised.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_the_same_graph_unspoiled_is_published(deit: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "to_proto", lambda *_: spoil(deit.proto, 0.0))
    export(deit.model, tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_tolerances_decide(deit: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "to_proto", lambda *_: spoil(deit.proto, 0.01))
    with pytest.raises(CheckFailed):
        export(deit.model, tmp_path / "model.onnx")
    assert export(deit.model, tmp_path / "model.onnx", atol=10.0).path.is_file()
    assert export(deit.model, tmp_path / "unchecked.onnx", verify=False).path.is_file()


@pytest.mark.parametrize("format", ["onxx", "", "ONNX"])
def test_formats_that_are_not_available(tmp_path: Path, format: str) -> None:
    with pytest.raises(ExportError, match="available: onnx") as raised:
        cc.export(folded(), tmp_path / "model", format=format)
    assert raised.value.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp8", "", "FP16"])
def test_precisions_that_are_not_available(tmp_path: Path, precision: str) -> None:
    with pytest.raises(ExportError, match="available: onnx in fp32, fp16"):
        cc.export(folded(), tmp_path / "model.onnx", precision=precision)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset 17"),
        ({"opset": 25}, "opset 25"),
        ({"batch": "0"}, "batch '0'"),
        ({"batch": "-1"}, "batch '-1'"),
        ({"batch": "many"}, "batch 'many'"),
        ({"batch": ""}, "batch ''"),
        ({"batch": "1:2"}, "batch '1:2'"),
        ({"batch": "1:2:3:4"}, "batch '1:2:3:4'"),
        ({"batch": "4:2:8"}, "MIN <= OPT <= MAX"),
        ({"batch": "0:2:8"}, "batch '0:2:8'"),
        ({"batch": "²"}, "batch '²'"),
        ({"atol": -1.0}, "atol"),
        ({"rtol": -1.0}, "rtol"),
        ({"atol": float("nan")}, "atol"),
        ({"opsets": 18}, "did you mean opset"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message.replace("(", r"\(")):
        cc.export(folded(), tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("batch", "sizes"), [("4", (4,)), (4, (4,)), ("1:8:16", (1, 8, 16)), ("2:2:2", (2,))])
def test_batch_sizes_that_are_checked(batch: Any, sizes: tuple[int, ...]) -> None:
    assert ExportOptions.make(batch=batch).batch_sizes() == sizes


def test_models_that_are_not_folded_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FoldError, match="fold"):
        cc.export(cc.castle(tiny(), recipe()), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_output_is_needed_and_can_not_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="output"):
        cc.export(folded())
    with pytest.raises(OutputError, match="is a folder"):
        cc.export(folded(), tmp_path)


def test_an_image_size_the_model_can_not_take(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="4x4"):
        cc.export(folded(), tmp_path / "model.onnx", image_size=(4, 4))
    assert not list(tmp_path.iterdir())


def test_a_model_larger_than_a_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "SINGLE_FILE_LIMIT", 1000)
    with pytest.raises(ExportError, match=r"the weights are 0\.0 GB, ONNX files end at 2 GB; export a smaller model"):
        export(folded(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="can't be run by onnxruntime") as raised:
        OnnxModel(path)
    assert "\n" not in str(raised.value)
