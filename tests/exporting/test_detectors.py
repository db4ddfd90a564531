"""Detectors as artifacts, with their raw boxes and with their detections."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import castling_convert as cc
from castling_convert.artifact.onnx_model import OnnxModel
from castling_convert.castling import close_masks
from castling_convert.cli.export import command
from castling_convert.dense.boxes import by_image, found, shared, suppressed
from castling_convert.errors import CheckFailed, DataError, ExportError
from castling_convert.exporting import FORMATS, format_of, suppression
from castling_convert.tasks import task_of
from tests.dense.detectors import KINDS, SIDE, Listing, detector, scenes, trained
from tests.models import closed_student, images, recipe, tiny

pytestmark = pytest.mark.xdist_group("onnx")  # exports are shared, so one worker runs them all

SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


@cache
def folded() -> Any:
    """One that finds things in `scenes`, about where its teacher did."""
    return folded_of(trained())


def folded_of(teacher: Any) -> Any:
    student = cc.castle(teacher, recipe(), layers="0")
    close_masks(student)
    return cc.fold(student)


def needs(name: str) -> None:
    if (reason := FORMATS[name].exporter.cannot_run()) is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def with_detections(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(name: str) -> Path:
        needs(name)
        return cc.export(folded(), tmp_path_factory.mktemp(name) / f"model{SUFFIX[name]}", format=name, nms=True)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", SUFFIX)
def test_raw_boxes_of_any_number_of_images(tmp_path: Path, name: str) -> None:
    needs(name)
    path = cc.export(folded(), tmp_path / f"model{SUFFIX[name]}", format=name)
    run = format_of(path).exporter.open_artifact(path)
    assert (run.signature.output, run.batch) == ("boxes", None)
    x, _ = scenes(5)
    with torch.no_grad():
        expected = folded()(x)
    assert sum(len(image.scores) for image in found(expected)) > 5
    torch.testing.assert_close(run(x), expected, rtol=1e-4, atol=1e-3)
    session = cc.Session(path)
    assert session(x.numpy()).shape == (5, 64, 4 + KINDS)
    with pytest.raises(DataError, match=r"classes\(\) is for images of one class each, and this artifact gives boxes"):
        session.classes(x)


@pytest.mark.slow
def test_raw_boxes_of_any_size(tmp_path: Path) -> None:
    path = cc.export(folded(), tmp_path / "model.onnx", image_range=((32, 32), (64, 96)), image_size=64)
    run = format_of(path).exporter.open_artifact(path)
    wide = detector(img_size=(48, 96))
    assert run(images(2, 48, 96)).shape == wide(images(2, 48, 96)).shape == (2, 6 * 12, 4 + KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_detections_are_those_of_the_raw_boxes(with_detections: Any, name: str) -> None:
    path = with_detections(name)
    x, boxes = scenes(5)
    session = cc.Session(path, batch_size=2)  # three calls
    assert session.signature.output == "detections"
    rows = session(x)
    assert rows.shape[1] == 7
    assert rows.dtype == torch.float32
    assert rows[:, 0].unique().tolist() == [0, 1, 2, 3, 4]
    order = [(image, kind, -score) for image, *_, kind, score in rows.tolist()]
    assert order == sorted(order)
    with torch.no_grad():
        wanted = found(folded()(x))
    partners, counted = shared(found(by_image(rows, 5)), wanted)
    assert partners > 0.98 * counted > 10
    run = format_of(path).exporter.open_artifact(path)
    assert run.intact
    scored = task_of(folded()).correct(run(x), boxes)
    assert scored == pytest.approx(task_of(folded()).correct(folded()(x), boxes), abs=3)
    with pytest.raises(DataError, match="this artifact gives detections"):
        session.classes(x)


@pytest.mark.slow
def test_a_fixed_batch_and_images_in_which_nothing_is(tmp_path: Path, with_detections: Any) -> None:
    path = cc.export(folded(), tmp_path / "model.onnx", batch=2, nms=True)
    x, _ = scenes(5)
    assert np.array_equal(cc.Session(path)(x.numpy()), cc.Session(path, batch_size=1)(x.numpy()))
    torch.testing.assert_close(cc.Session(path)(x), cc.Session(with_detections("onnx"))(x), rtol=1e-4, atol=1e-3)
    empty = cc.export(folded_of(detector()), tmp_path / "empty.onnx", nms=True)
    assert cc.Session(empty)(torch.zeros(3, 3, SIDE, SIDE)).shape == (0, 7)


def tail(opset: int = 20) -> OnnxModel:
    end = suppression.tail("boxes", KINDS, opset, ir=10)
    return OnnxModel(Path("tail.onnx"), content=end.SerializeToString())


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_the_tail_alone_is_torchvisions(opset: int) -> None:
    run = tail(opset)
    suppression.check_tail(run.run, KINDS)
    raw = torch.cat([folded()(scenes(2)[0])]).detach()
    rows = torch.from_numpy(run.run(raw.numpy()))
    assert shared(found(by_image(rows, 2)), [suppressed(one) for one in raw])[0] == 2 * len(rows)


@pytest.mark.parametrize("spoil", [lambda rows: rows[:-1], lambda rows: rows + 0.01, lambda rows: rows[::-1].copy()])
def test_a_runtime_that_suppresses_others_is_found_out(spoil: Any) -> None:
    run = tail()
    with pytest.raises(CheckFailed, match=r"the operator NonMaxSuppression finds .* leave out --nms"):
        suppression.check_tail(lambda raw: spoil(run.run(raw)), KINDS)


@pytest.mark.parametrize("name", ["torch", "trt", "trt-rtx"])
def test_formats_without_suppression_say_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError) as error:
        cc.export(folded(), tmp_path / "model", format=name, nms=True)
    assert str(error.value) == f"--nms is for --format onnx and openvino, not for {name}; leave out --nms"
    assert error.value.exit_code == 2


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_models_that_are_no_detectors_say_so(tmp_path: Path, name: str) -> None:
    needs(name)
    with pytest.raises(ExportError) as error:
        cc.export(cc.fold(closed_student(tiny())), tmp_path / f"model{FORMATS[name].suffix}", format=name, nms=True)
    assert str(error.value) == "--nms is for detectors, and VisionTransformer is for the task classify; leave out --nms"
    assert not list(tmp_path.iterdir())


def test_half_precision_outputs_say_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--nms needs boxes in float32, not in float16; leave out --io same"):
        cc.export(folded(), tmp_path / "model.onnx", precision="fp16", io="same", nms=True)


def test_triton_takes_no_detections(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path), "--nms", "--triton", str(tmp_path / "triton")])
    assert isinstance(result.exception, ExportError)
    assert "leave out --nms" in str(result.exception)


@pytest.mark.parametrize("name", SUFFIX)
def test_lists_of_detections_are_no_output_of_an_artifact(tmp_path: Path, name: str) -> None:
    needs(name)
    model = cc.fold(closed_student(Listing(detector())))
    with pytest.raises(ExportError) as error:
        cc.export(model, tmp_path / f"model{SUFFIX[name]}", format=name)
    assert str(error.value).startswith("Listing returns a list, and an artifact gives one tensor")
