"""Castled against softmax: what is measured, and that it is the right thing."""

from __future__ import annotations

import shutil

import pytest
import torch

import castling_convert as cc
from castling_convert.attention import FoldedAttention
from castling_convert.bench import bench as bench_module
from castling_convert.bench.bench import bench, models_of
from castling_convert.bench.cases import CASTLED, FUSED, PLAIN, Case, Result
from castling_convert.bench.fused import fuse_attention
from castling_convert.bench.latency import Latency, Ratio
from castling_convert.bench.plot import check_format, crossover, plot_latency
from castling_convert.bench.runtimes import runner
from castling_convert.errors import BundleError, ExportError, OutputError
from tests.models import KINDS, closed_student, images, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bench") / "bundle"
    return cc.save(cc.fold(closed_student(tiny(depth=1))), path)


def test_every_combination_is_measured(bundle):
    options = {"image_sizes": ((32, 32), (16, 48)), "batches": (1, 3), "seconds": 0, "threads": 1, "memory": False}
    found = list(bench(bundle, runtimes=("onnx", "torch"), **options))
    assert [(r.case.runtime, r.case.image_size, r.case.batch) for r in found] == [
        (runtime, size, batch) for runtime in ("onnx", "torch") for size in ((32, 32), (16, 48)) for batch in (1, 3)
    ]
    for result in found:
        assert set(result.latency) == {CASTLED, PLAIN} | ({FUSED} if result.case.runtime == "onnx" else set())
        rivals = {name: latency.median for name, latency in result.latency.items() if name != CASTLED}
        assert result.baseline == min(rivals, key=rivals.__getitem__)
        assert result.ratio.value == pytest.approx(rivals[result.baseline] / result.latency[CASTLED].median)
        assert result.threads == 1
    assert [result.tokens for result in found[:4]] == [17, 17, 13, 13]


@pytest.mark.parametrize("runtime", ["onnx", "openvino", "torch"])
def test_peak_memory_of_every_variant(bundle, runtime):
    (found,) = bench(bundle, runtimes=(runtime,), seconds=0, threads=1)
    assert set(found.memory) == set(found.latency)
    assert all(100_000 < peak < 100e6 for peak in found.memory.values())  # of the model, not of its runtime


def test_castled_is_castled_and_softmax_is_softmax(bundle, monkeypatch):
    seen: dict[str, torch.nn.Module] = {}
    exporter = bench_module.FORMATS["onnx"].exporter
    whole = exporter.export
    order = iter((CASTLED, PLAIN, FUSED))
    monkeypatch.setattr(
        exporter, "export", lambda model, *rest: seen.update({next(order): model}) or whole(model, *rest)
    )
    list(bench(bundle, seconds=0, memory=False))
    kinds = {name: {type(module).__name__ for module in model.modules()} for name, model in seen.items()}
    assert "FoldedAngular" in kinds[CASTLED]
    assert "Attention" in kinds[PLAIN]
    assert not kinds[FUSED] & {"FoldedAngular", "Attention"}


@pytest.mark.parametrize("kind", [*KINDS, "qk_norm"])
def test_fused_attention_computes_what_softmax_does(tmp_path, kind):
    model = tiny(qk_norm=True, depth=1) if kind == "qk_norm" else tiny(KINDS[kind], depth=1)
    fused = fuse_attention(model)
    with torch.no_grad():
        torch.testing.assert_close(fused(images()), model(images()), atol=1e-4, rtol=1e-4)
    path = cc.export(fused, tmp_path / "model.onnx")  # checked in onnxruntime
    session = cc.Session(path)
    with torch.no_grad():
        torch.testing.assert_close(session(images()), model(images()), atol=1e-3, rtol=1e-3)
    assert path.read_bytes().count(b"MultiHeadAttention") >= len(model.blocks)


def test_an_artifact_is_measured_as_it_is(bundle, tmp_path):
    own = tmp_path / "bundle"
    shutil.copytree(bundle, own)
    path = cc.export(own, precision="int8", batch=2, image_size=(16, 32))
    (found,) = bench(path, seconds=0, runtimes=("torch",), batches=(7,), memory=False)
    assert found.case == Case("onnx", "int8", (16, 32), 2)
    assert found.tokens == 9


@pytest.mark.parametrize(
    "given",
    [
        {"batch": 2, "preprocess": True},
        {"precision": "fp16", "io": "same", "image_size": (32, 48), "image_range": ((16, 32), (48, 64))},
    ],
    ids=["preprocessed", "any size, fp16"],
)
def test_the_softmax_model_is_exported_as_the_artifact_was(bundle, tmp_path, monkeypatch, given):
    seen = []

    def noted(*arguments):
        seen.append(runner(*arguments))
        return seen[-1]

    monkeypatch.setattr(bench_module, "runner", noted)
    own = tmp_path / "bundle"
    shutil.copytree(bundle, own)
    list(bench(cc.export(own, **given), seconds=0, memory=False))
    assert len(seen) == 3
    for run in seen:
        assert (run.signature, run.batch) == (seen[0].signature, seen[0].batch)


def test_the_softmax_model_is_that_of_the_bundle(bundle):
    folded, softmax, artifact = models_of(bundle)
    assert artifact is None
    assert not any(isinstance(module, FoldedAttention) for module in softmax.modules())
    assert len(softmax.blocks) == len(folded.blocks)
    assert softmax.embed_dim == folded.embed_dim
    assert all(parameter.count_nonzero() == parameter.numel() for parameter in softmax.parameters())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"runtimes": ("trt",)}, ExportError, "runs in onnx, openvino, torch, not in 'trt'"),
        ({"precisions": ("fp8",)}, ExportError, "can't be made in 'fp8'"),
        ({"image_sizes": ((4, 4),)}, ExportError, "4x4"),
    ],
)
def test_what_can_not_be_measured(bundle, options, error, words):
    with pytest.raises(error, match=words):
        list(bench(bundle, seconds=0, **options))


def test_a_target_that_is_not_there(tmp_path):
    with pytest.raises(BundleError, match=r"nothing\.onnx not found"):
        list(bench(tmp_path / "nothing.onnx"))


# --- plots


@pytest.mark.parametrize(
    ("tokens", "ratios", "expected"),
    [([100, 400], [0.5, 2.0], 200), ([100, 400], [1.5, 2.0], None), ([100, 400, 900], [0.5, 0.9, 0.95], None),
     ([100, 200, 400], [0.8, 1.0, 3.0], 200), ([100, 200, 400, 1600], [1.1, 1.2, 0.5, 2.0], 800),
     ([100, 200, 400], [0.9, 1.5, 0.9], None)],
)  # fmt: skip
def test_the_crossover_lies_between_what_was_measured(tokens, ratios, expected):
    assert crossover(tokens, ratios) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("name", ["latency.png", "latency.svg"])
def test_a_plot(tmp_path, name):
    results = [
        Result(Case("onnx", "fp32", (size, size), 1), size**2 + 1, 2,
               {CASTLED: Latency(2, 2, 9), PLAIN: Latency(size / 8, 9, 9)}, PLAIN, Ratio(size / 16, 1, 2))
        for size in (8, 32)
    ]  # fmt: skip
    plot_latency(results, tmp_path / name)
    head = (tmp_path / name).read_bytes()[:400]
    assert head.startswith(b"\x89PNG") or b"<svg" in head or b"<?xml" in head


def test_a_plot_of_no_known_kind(tmp_path):
    with pytest.raises(OutputError, match=r"\.svg or \.png"):
        check_format(tmp_path / "latency.pdf")
