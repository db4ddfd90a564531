"""The programs under examples/, as a user runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import castling_convert as cc
from tests.models import KINDS, closed_student, tiny

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = cc.fold(closed_student(tiny(KINDS["deit"])))
    return cc.export(model, tmp_path_factory.mktemp("examples") / "model.onnx", preprocess=True)


@pytest.fixture(scope="module")
def image(artifact) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    folder = artifact.parent / "images"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "a.png")
    return folder / "a.png"


@pytest.fixture
def expected(artifact, image) -> np.ndarray:
    return cc.Session(artifact)(np.array(Image.open(image))[None])[0]


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def test_classify_folder(artifact, image, expected):
    out = run("classify_folder.py", artifact, image.parent)
    assert out == f"{image}: class {expected.argmax()} ({expected.max():.1%})\n"


@pytest.fixture
def server(artifact) -> Iterator[str]:
    command = [sys.executable, EXAMPLES / "serve.py", artifact, "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def test_serve(server, image, expected):
    with urllib.request.urlopen(server, image.read_bytes()) as answer:
        found = json.loads(answer.read())
    assert found == {"class": int(expected.argmax()), "probability": pytest.approx(float(expected.max()), rel=1e-5)}
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(server, b"hello")


def test_convert_in_python():
    out = run("convert_in_python.py")
    assert "model.onnx" in out
    assert "differs from torch by" in out


@pytest.mark.parametrize("name", ["custom_model.py", "custom_transformer.py"])
def test_your_own_model(name):
    out = run(name)
    assert out.count(": castled, ") == 2
    error = float(re.search(r"onnx differs from torch by (\S+),", out)[1])
    assert error < 1e-4


@pytest.mark.parametrize(("name", "score"), [("segmentation", "miou"), ("detection", "map")])
def test_scenes_made_here(name, score, tmp_path):
    out = run(f"{name}.py", "--teacher-steps", 3, "--steps", 3, "--batch-size", 4, "--output", tmp_path / "out")
    assert f"'{score}'" in out
    assert_drawn(tmp_path / "out", out, 64)


def assert_drawn(bundle: Path, said: str, images: int) -> None:
    assert "model.onnx" in said
    with Image.open(bundle / "scenes.png") as sheet:
        assert sheet.width > 600
    assert f"Of {images} validation images" in (bundle / "report.html").read_text()


def test_segmentation_of_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, index in ((part, index) for part in ("train", "val") for index in range(6)):
        for kind in ("images", "masks"):
            (tmp_path / "scenes" / part / kind).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "scenes" / part / "images" / f"{index}.png")
        mask = (pixels[..., 0] > 128).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / "scenes" / part / "masks" / f"{index}.png")
    out = run(
        "segmentation.py", "--data", tmp_path / "scenes", "--backbone", "vit_t", "--weights",
        weights_of(tmp_path), "--image-size", 32, "--steps", 2, "--batch-size", 2, "--output", tmp_path / "out",
    )  # fmt: skip
    assert "'miou'" in out
    assert_drawn(tmp_path / "out", out, 6)


def weights_of(folder: Path) -> Path:
    """Of a ViT-Ti with random weights."""
    import timm

    torch.manual_seed(0)
    file = folder / "vit.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict(), file)
    return file
