"""One call for every artifact."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import castling_convert as cc
from castling_convert.errors import DataError, ExportError
from tests.models import KINDS, closed_student, images, tiny

FILES = {"onnx": "model.onnx", "torch": "model.pt2", "openvino": "model.xml"}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return cc.fold(closed_student(tiny(KINDS["deit"])))


@pytest.fixture(scope="module", params=FILES)
def artifact(request, model, tmp_path_factory):
    return cc.export(model, tmp_path_factory.mktemp("session") / FILES[request.param], format=request.param)


@pytest.fixture(scope="module")
def onnx(model, tmp_path_factory):
    return cc.export(model, tmp_path_factory.mktemp("session") / "model.onnx")


def test_logits_of_any_number_of_images_in_the_kind_that_was_given(model, artifact):
    session = cc.Session(artifact)
    with torch.no_grad():
        expected = model(images(7))
    for given in (images(7), images(7).numpy(), images(7).double().numpy()):
        found = session(given)
        assert type(found) is type(given)
        np.testing.assert_allclose(np.asarray(found), expected, atol=1e-4)
        assert np.asarray(found).dtype == np.float32
    np.testing.assert_allclose(cc.Session(artifact, batch_size=3, warm_up=False)(images(7)), expected, atol=1e-4)
    assert session.running_on in ("cpu", "CPUExecutionProvider")


def test_read_only_images_are_taken_without_a_warning(model, onnx, recwarn):
    given = images(2).numpy()
    given.flags.writeable = False
    cc.Session(onnx)(given)
    assert not [str(warning.message) for warning in recwarn if "writable" in str(warning.message)]


def test_classes(model, onnx):
    with torch.no_grad():
        expected = model(images(4)).topk(3).indices.numpy()
    assert np.array_equal(cc.Session(onnx).classes(images(4), top=3), expected)
    assert cc.Session(onnx).classes(images(4)).shape == (4, 1)


def test_a_fixed_batch_and_half_precision(model, tmp_path):
    path = cc.export(model, tmp_path / "model.onnx", batch=4, precision="fp16", io="same")
    found = cc.Session(path)(images(6))
    with torch.no_grad():
        assert (found - model(images(6))).abs().max() < 0.02
    assert found.dtype == torch.float32


def test_pixels(model, tmp_path):
    session = cc.Session(cc.export(model, tmp_path / "model.onnx", preprocess=True))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = session(pixels)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    with pytest.raises(DataError, match=r"pixels, uint8 \[B, 32, 32, 3\], not float32"):
        session(pixels.astype(np.float32))
    with pytest.raises(DataError, match=r"not \[3, 3, 32, 32\]"):
        session(pixels.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.zeros(3, 32, 32), r"images, float32 \[B, 3, 32, 32\], not \[3, 32, 32\]"),
        (torch.zeros(1, 3, 32, 48), r"not \[1, 3, 32, 48\]"),
        (torch.zeros(0, 3, 32, 32), "no image"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "not uint8"),
    ],
)
def test_what_does_not_fit_is_refused(onnx, given, words):
    with pytest.raises(DataError, match=words):
        cc.Session(onnx)(given)


def test_many_threads(model, onnx):
    session = cc.Session(onnx)
    with torch.no_grad():
        expected = model(images(8)).numpy()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: session(images(8)[index : index + 1].numpy()), range(8)))
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "no CUDAExecutionProvider"),
        ({"device": "tensorrt"}, "no TensorrtExecutionProvider"),
        ({"device": "tpu"}, "'tpu' is none of"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_a_device_is_never_silently_another(onnx, options, words):
    with pytest.raises(ExportError, match=words):
        cc.Session(onnx, **options)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ExportError, match=r"nothing\.onnx not found"):
        cc.Session(tmp_path / "nothing.onnx")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ExportError, match=r"none of \.onnx"):
        cc.Session(tmp_path / "model.bin")
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ExportError, match="can't be run by onnxruntime"):
        cc.Session(tmp_path / "model.onnx")
    (tmp_path / "model.plan").write_bytes(b"x")
    with pytest.raises(ExportError, match="tensorrt package"):
        cc.Session(tmp_path / "model.plan")
