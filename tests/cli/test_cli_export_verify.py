"""`export`, `verify` and `evaluate` on a finished bundle, whole and damaged."""

from __future__ import annotations

import json
import shutil

import onnx
import pytest
import torch
from onnx import numpy_helper

import castling_convert as cc


@pytest.fixture
def bundle(here, made):
    """A bundle of the test's own, `out`, with its model.onnx."""
    shutil.copytree(made, here / "out")
    return here / "out"


def change_one_weight(path, by: float = 10) -> None:
    proto = onnx.load(path)
    largest = max(proto.graph.initializer, key=lambda initializer: len(initializer.raw_data))
    values = numpy_helper.to_array(largest).copy()
    values.flat[0] += by if values.flat[0] < 0 else -by
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    onnx.save(proto, path)


def test_export_writes_into_the_bundle_and_verify_finds_it(castling, bundle):
    (bundle / "model.onnx").unlink()
    out = castling("export", "out", "--format", "onnx").done().out
    assert "wrote out/model.onnx" in out
    assert "next: castling verify out/model.onnx" in out
    shown = castling("verify", "out/model.onnx", "--data", "digits").done().out
    assert "folded model" in shown
    assert "trained model" in shown


def test_the_next_command_of_an_artifact_elsewhere_works_as_it_is(castling, bundle):
    out = castling("export", "out", "-o", "elsewhere.onnx").done().out
    (line,) = [line for line in out.splitlines() if line.startswith("next: castling ")]
    assert line == "next: castling verify elsewhere.onnx --bundle out"
    castling(*line.removeprefix("next: castling ").split()).done()


@pytest.mark.parametrize("command", [("evaluate", "--data", "digits"), ("bench",)], ids=lambda command: command[0])
def test_commands_without_bundle_do_not_advise_it(castling, bundle, here, command):
    (bundle / "model.onnx").rename(here / "elsewhere.onnx")
    line = castling(*command, "elsewhere.onnx").failed(2, "elsewhere.onnx", "move it into its bundle's folder")
    assert "--bundle" not in line


def test_export_takes_the_newest_bundle(castling, here, made):
    import os

    for age, name in enumerate(("new", "older", "oldest")):
        shutil.copytree(made, here / "castled" / name)
        (here / "castled" / name / "model.onnx").unlink()
        summary = here / "castled" / name / "summary.json"
        os.utime(summary, (summary.stat().st_mtime - 100 * age,) * 2)
    castling("export").done()
    assert [path.parent.name for path in here.glob("castled/*/model.onnx")] == ["new"]


def test_export_json(castling, bundle):
    values = json.loads(castling("export", "out", "--json", "-o", "there/m.onnx").done().out)
    assert values["artifact"] == "there/m.onnx"
    assert values["parity"]["holds"] is True
    # The weights of the keys, over the landmarks, and the rows of the class token.
    assert values["nodes"].get("Softmax", 0) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "onxn"], ["no format 'onxn'; did you mean onnx"]),
        (["--format", "zzzz"], ["no format 'zzzz'; available"]),
        (["--precision", "fp17"], ["can't be made in 'fp17'", "fp16"]),
        (["--format", "openvino", "--precision", "bf16"], ["openvino can't be made in 'bf16'"]),
    ],
)
def test_what_is_not_available_is_no_silent_fallback(castling, bundle, arguments, words):
    castling("export", "out", *arguments).refused(*words)


def test_trt_here_says_why_not_and_how_to_go_on(castling, bundle, here):
    result = castling("export", "out", "--format", "trt", "--precision", "fp16")
    result.failed(2, "tensorrt package", "pip install", "--onnx-only", "--format trt-rtx")
    assert result.after == result.before
    out = (
        castling("export", "out", "--format", "trt", "--precision", "fp16", "--batch", "1:4:8", "--onnx-only")
        .done()
        .out
    )
    assert "wrote out/model.fp16.trt.onnx" in out
    assert "trtexec --onnx=out/model.fp16.trt.onnx --stronglyTyped --saveEngine=out/model.fp16.plan" in out


@pytest.fixture
def rtx():
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which [dev] has on Linux x86-64")
    if torch.cuda.is_available():
        pytest.skip("here is a GPU: engines are run")


NOT_RUN = "built, not run: no GPU here"


@pytest.mark.parametrize("precision", ["fp16", "int8", "bf16"])
def test_an_engine_for_rtx_is_built_and_never_said_to_have_run(castling, bundle, rtx, precision):
    out = castling("export", "out", "--format", "trt-rtx", "--precision", precision).done().out
    engine = f"out/model.{precision}.rtxplan"
    assert f"wrote {engine}" in out
    assert f"parity of out/model.{precision}.rtx.onnx in onnxruntime with the folded model" in out
    assert f" in {precision}" in out
    assert out.splitlines()[-1] == NOT_RUN
    assert (bundle / f"model.{precision}.rtxplan.json").is_file()
    castling("verify", engine).failed(2, "can't be run here", f"out/model.{precision}.rtx.onnx")
    castling("evaluate", engine, "--data", "digits").failed(2, "can't be run here")


def test_an_engine_for_rtx_as_json(castling, bundle, rtx):
    arguments = ("--compute-capability", "8.9", "--compute-capability", "12.0", "--json")
    values = json.loads(castling("export", "out", "--format", "trt-rtx", *arguments).done().out)
    assert values["engine"] == NOT_RUN
    assert values["parity_of"] == "out/model.rtx.onnx in onnxruntime"
    assert values["target"] == "8.9, 12.0"
    ladder = json.loads(castling("verify", "out", "--json").done().out)
    (rung,) = [rung for rung in ladder["rungs"] if rung["name"] == "model.rtxplan"]
    assert rung["parity"] is None
    assert "not run: needs an NVIDIA GPU" in rung["note"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--format", "trt-rtx", "--compute-capability", "9.9"],
            ["8.9", "not for 9.9", "without --compute-capability"],
        ),
        (["--format", "trt-rtx", "--compute-capability", "ada"], ["written X.Y", "'ada'"]),
        (["--format", "onnx", "--compute-capability", "8.9"], ["--format trt-rtx", "leave out"]),
        (["--format", "trt-rtx", "--triton", "models"], ["Triton has no backend for .rtxplan"]),
    ],
)
def test_what_is_not_for_rtx(castling, bundle, rtx, arguments, words):
    result = castling("export", "out", *arguments)
    result.failed(2, *words)
    assert result.after == result.before


def test_the_ladder_of_a_bundle(castling, bundle):
    castling("export", "out", "--precision", "fp16").done()
    castling("export", "out", "--precision", "int8", "--calibration", "digits").done()
    castling("export", "out", "--format", "openvino").done()
    castling("export", "out", "--format", "torch").done()
    values = json.loads(castling("verify", "out", "--data", "digits", "--limit", 100, "--json").done().out)
    assert [rung["name"] for rung in values["rungs"]] == [
        "trained", "folded", "model.onnx", "model.pt2", "model.xml", "model.fp16.onnx", "model.int8.onnx",
    ]  # fmt: skip
    assert all(rung["top1"] is not None for rung in values["rungs"])
    assert json.loads((bundle / "verify.json").read_text()) == values
    shown = castling("verify", "out").done().out
    assert "model.int8.onnx" in shown
    assert "8 generated images" in shown
    change_one_weight(bundle / "model.onnx")
    result = castling("verify", "out")
    result.failed(1, "model.onnx of out differs")
    assert "NO" in result.out


def test_a_triton_repository(castling, bundle, here):
    out = castling("export", "out", "--batch", "1:4:8", "--triton", "models").done().out
    assert "Triton: models/out" in out
    assert sorted(p.relative_to(here / "models").as_posix() for p in (here / "models").rglob("*") if p.is_file()) == [
        "out/1/model.onnx", "out/config.pbtxt",
    ]  # fmt: skip
    castling("export", "out", "--format", "torch", "--triton", "models").failed(2, "Triton", ".pt2")
    refused = castling("export", "out", "--triton", ".")  # where the bundle is
    refused.failed(2, "out is there and is no model of Triton's")
    assert refused.after == refused.before


def test_int8_without_images_warns(castling, bundle):
    result = castling("export", "out", "--precision", "int8").done()
    assert "generated images" in result.err
    assert "--calibration" in result.err
    assert "5 linear layers in int8" in result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--opset", "7"], ["opset 7", "18..24"]),
        (["--batch", "3:2:1"], ["3:2:1", "MIN <= OPT <= MAX"]),
        (["--batch", "many"], ["'many'", "MIN:OPT:MAX"]),
        (["--image-size", "4"], ["4x4"]),
        (["--atol", "-1"], ["atol"]),
        (["-o", "out"], ["out is a folder", "--output"]),
        (["-o", "model.engine"], ["files of --format onnx end in .onnx, not as model.engine does"]),
        (["--format", "openvino", "-o", "model.bin"], ["end in .xml"]),
        (["--calibration", "digits"], ["for int8, not for fp32", "leave out --calibration"]),
        (["--onnx-only"], ["for --format trt and trt-rtx, not for onnx"]),
        (["--format", "torch", "--no-simplify"], ["leave out --opset and --no-simplify"]),
        (["--format", "openvino", "--precision", "fp16", "--io", "same"], ["leave out --io same"]),
    ],
)
def test_export_options_that_make_no_sense(castling, bundle, arguments, words):
    result = castling("export", "out", *arguments)
    result.failed(2, *words)
    assert result.after == result.before


def test_export_with_nothing_there(castling):
    castling("export").refused("no bundle under castled/", "castling convert")
    castling("export", "nowhere").failed(2, "no bundle at nowhere", "castling convert")


@pytest.mark.parametrize("command", ["export", "evaluate"])
@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model.safetensors", lambda content: content[:-100]),
        ("model.safetensors", lambda content: content[:-1] + b"x"),
        ("config.json", lambda content: content[:50]),
        ("config.json", lambda content: content.replace(b"castled", b"casTled")),
        ("summary.json", lambda content: b"[]"),
    ],
    ids=["truncated weights", "one byte of the weights", "truncated config", "edited config", "summary"],
)
def test_a_damaged_bundle(castling, bundle, command, file, change):
    (bundle / file).write_bytes(change((bundle / file).read_bytes()))
    arguments = ["--data", "digits"] if command == "evaluate" else []
    result = castling(command, "out", *arguments)
    result.failed(2, "out", "damaged")
    assert result.after == result.before


@pytest.mark.parametrize("file", ["model.safetensors", "summary.json"])
def test_a_bundle_with_a_file_missing(castling, bundle, file):
    (bundle / file).unlink()
    castling("export", "out").failed(2, file, "missing")


def test_a_plain_timm_folder_is_no_bundle(castling, here):
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("vit_tiny_patch16_224", depth=1), here / "plain", safe_serialization=True)
    castling("export", "plain").failed(2, "plain timm model", "castling convert --model local-dir:plain")


def test_verify_fails_on_one_changed_weight(castling, bundle):
    change_one_weight(bundle / "model.onnx")
    result = castling("verify", "out/model.onnx")
    result.failed(1, "out/model.onnx", "differs from its bundle")
    assert "NO" in result.out
    values = castling("verify", "out/model.onnx", "--json")
    assert values.code == 1
    assert json.loads(values.out)["folded"]["holds"] is False


def test_verify_fails_on_a_change_that_no_tolerance_would_see(castling, bundle):
    castling("export", "out", "--precision", "int8").done()
    for name, change in (("model.onnx", 1e-7), ("model.int8.onnx", 0.1)):
        change_one_weight(bundle / name, change)
        result = castling("verify", f"out/{name}")
        result.failed(1, f"out/{name} was changed since it was exported")
        values = json.loads(castling("verify", f"out/{name}", "--json").out)
        assert values["folded"]["holds"] is True
        assert (values["intact"], values["holds"]) == (False, False)
    result = castling("verify", "out")
    result.failed(1, "model.onnx, model.int8.onnx of out differ")
    assert result.out.count("changed since it was exported") == 2


def test_verify_tolerances_are_the_users(castling, bundle):
    castling("verify", "out/model.onnx", "--atol", "0", "--rtol", "0").failed(1, "differs")
    castling("export", "out", "--precision", "fp16").done()
    castling("verify", "out/model.fp16.onnx", "--atol", "1e-9", "--rtol", "0").failed(1, "differs")
    castling("verify", "out/model.fp16.onnx", "--atol", "1000").done()
    castling("verify", "out", "--atol", "1e-9", "--rtol", "0").failed(1, "model.fp16.onnx of out differ")
    castling("verify", "out", "--bundle", "out").failed(2, "leave out --bundle")


@pytest.mark.parametrize("content", [b"", b"not an onnx file", None], ids=["empty", "text", "truncated"])
def test_verify_of_a_damaged_artifact(castling, bundle, content):
    path = bundle / "model.onnx"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    castling("verify", "out/model.onnx").refused("out/model.onnx", "damaged")


def test_verify_with_another_bundle(castling, bundle, here, tiny):
    castling("convert", *tiny, "--data", "digits", "--steps", 1, "--seed", 5, "-o", "other").done()
    castling("verify", "out/model.onnx", "--bundle", "other").refused("out/model.onnx", "not exported from other")
    castling("verify", "out/model.onnx", "--bundle", "nowhere").refused("nowhere")


def test_verify_finds_the_bundle_by_its_hash(castling, bundle, here):
    (bundle / "model.onnx").rename(here / "moved.onnx")
    castling("verify", "moved.onnx").refused("bundle of moved.onnx", "--bundle")
    castling("verify", "moved.onnx", "--bundle", "out").done()
    (here / "castled").mkdir()
    bundle.rename(here / "castled" / "x")
    castling("verify", "moved.onnx").done()


def test_verify_of_a_file_that_names_no_bundle(castling, bundle):
    proto = onnx.load(bundle / "model.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, bundle / "model.onnx")
    castling("verify", "out/model.onnx").refused("does not say which bundle", "--bundle")
    castling("verify", "out/model.onnx", "--bundle", "out").done()


def test_verify_without_the_trained_model_says_so(castling, bundle):
    shutil.rmtree(bundle / "train")
    out = castling("verify", "out/model.onnx").done().out
    assert "keeps no trained model" in out
    assert json.loads(castling("verify", "out/model.onnx", "--json").done().out)["trained"] is None


def test_verify_refuses_a_trained_model_that_was_changed(castling, bundle):
    path = bundle / "train" / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    castling("verify", "out/model.onnx").refused("out", "damaged", "trained.safetensors")


@pytest.mark.parametrize("artifact", ["nowhere.onnx", "nowhere"])
def test_verify_of_nothing(castling, bundle, artifact):
    castling("verify", artifact).refused(artifact, "not found")


def test_verify_of_another_kind_of_file(castling, bundle):
    castling("verify", "out/model.safetensors").refused("model.safetensors", ".onnx")


def test_verify_with_wrong_data(castling, bundle):
    castling("verify", "out/model.onnx", "--data", "nowhere").refused("nowhere not found")


def made_accuracy(bundle):
    return json.loads((bundle / "summary.json").read_text())["accuracy"]


def test_evaluate_of_a_bundle_and_of_its_artifact_are_the_same(castling, bundle):
    first = json.loads(castling("evaluate", "out", "--data", "digits", "--json").done().out)
    second = json.loads(castling("evaluate", "out/model.onnx", "--data", "digits", "--json").done().out)
    assert first["castled"]["images"] == 597
    assert first["castled"] == second["castled"]
    assert first["teacher"] == second["teacher"] == made_accuracy(bundle)["teacher"]  # its seed makes it again
    assert first["castled"] == made_accuracy(bundle)["castled"]
    assert first["notes"] == second["notes"] == []


def test_evaluate_takes_its_numbers_from_the_images(castling, bundle):
    from castling_convert.data.preprocessing import Preprocessing
    from castling_convert.data.spec import open_data

    model = cc.load(bundle)
    data = open_data("digits", Preprocessing.of(model), "validation").dataset
    with torch.no_grad():
        logits = model(torch.stack([data[index][0] for index in range(len(data))]))
    top1 = 100 * (logits.argmax(-1) == torch.tensor(data.labels)).double().mean().item()
    values = json.loads(castling("evaluate", "out", "--data", "digits", "--json").done().out)
    assert values["castled"]["top1"] == pytest.approx(top1)


def test_evaluate_on_data_that_does_not_fit(castling, bundle, here, photographs):
    castling("evaluate", "out", "--data", "nowhere").failed(2, "nowhere not found")
    castling("evaluate", "nowhere", "--data", "digits").failed(2, "no bundle at nowhere")
    castling("evaluate", "nowhere.onnx", "--data", "digits").failed(2, "nowhere.onnx not found")


def test_evaluate_with_a_teacher_that_is_not_there(castling, bundle):
    arguments = ("evaluate", "out", "--data", "digits", "--teacher", "vit_t", "--teacher-weights", "nowhere.pth")
    castling(*arguments).failed(2, "nowhere.pth not found")
