"""Runs `castling` as a user does, in this process where that is enough, and looks at what it leaves behind."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TINY = shlex.split(
    "--model vit_t --no-pretrained --image-size 32 --num-classes 10 --model-arg patch_size=8 --model-arg depth=2 "
    "--model-arg embed_dim=32 --model-arg num_heads=2"
)
FAST = shlex.split("--device cpu --set distill.batch_size=8")


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder below, dot-files too, with the hash of its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str
    before: dict[str, str]
    after: dict[str, str]

    def failed(self, code: int, *words: str) -> str:
        """Exactly one error line, last on stderr, with these words in it; no traceback. Returns the line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code == code, self.err
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0], self.err
        assert "Traceback" not in self.err + self.out
        assert [word for word in words if word not in lines[0]] == [], lines[0]
        return lines[0]

    def refused(self, *words: str) -> str:
        """Exit 2, the error line is all there is, and no file was made, changed or removed."""
        line = self.failed(2, *words)
        assert self.err.splitlines() == [line]
        assert self.out == ""
        assert self.after == self.before
        return line

    def done(self) -> Result:
        assert self.code == 0, self.err
        assert "error:" not in self.err
        return self


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The current folder: an empty one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The user's cache: one for all tests, and not the real one."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches for the network fails at once instead of waiting for it."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("this test tried to use the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def castling(here, capfd, monkeypatch):
    """castling("convert", "--model", ...) in this process: exit code, stdout, stderr, files before and after."""
    from castling_convert.cli import main

    def run(*arguments) -> Result:
        before = tree(here)
        former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        monkeypatch.setattr(sys, "argv", ["castling", *map(str, arguments)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as stopped:
                main()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        return Result(stopped.value.code, out, err, before, tree(here))

    return run


@pytest.fixture
def tiny():
    """Arguments of `convert` for a two-layer ViT with random weights."""
    return [*TINY, *FAST]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Sixteen JPEG crops of scikit-learn's two photographs, in class folders `china` and `flower`."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    root = tmp_path_factory.mktemp("photographs")
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        (root / name).mkdir()
        for index in range(8):
            row, column = 200 * (index // 4), 140 * (index % 4)
            crop = Image.fromarray(pixels[row : row + 220, column : column + 200])
            crop.save(root / name / f"{index}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A .safetensors file of the plain vit_tiny_patch16_224, and the model it was made from."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224").eval()
    path = tmp_path_factory.mktemp("weights") / "vit_t.safetensors"
    save_file(model.state_dict(), path)
    return path, model


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A finished bundle of a ViT of one tiny block, with its model.onnx; tests that change it copy it."""
    from castling_convert.exporting import export
    from castling_convert.loading import parse_model_args
    from castling_convert.pipeline.conversion import convert
    from castling_convert.recipe import Recipe

    path = tmp_path_factory.mktemp("made") / "bundle"
    arguments = parse_model_args(("patch_size=8", "depth=1", "embed_dim=32", "num_heads=2"))
    recipe = Recipe.load("castling", ["distill.steps=2", "distill.batch_size=8"])
    convert(
        "vit_t", path, data="digits", recipe=recipe, pretrained=False, image_size=(32, 32), num_classes=10,
        model_args=arguments, device="cpu",
    )  # fmt: skip
    export(path)
    return path


@pytest.fixture
def environment():
    """The environment of a real `castling` process."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
