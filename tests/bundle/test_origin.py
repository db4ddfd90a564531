"""What says how a bundle came to be, and the one hash that says what it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import castling_convert as cc
from castling_convert import bundle
from castling_convert.bundle.versions import command, commit
from tests.models import SIZE

SMALL = {key: value for key, value in SIZE.items() if key not in ("img_size", "num_classes")}


def convert(output: Path, seed: int = 0, steps: int = 3) -> dict:
    recipe = cc.Recipe.load("castling", [f"distill.steps={steps}", "distill.batch_size=4", f"distill.seed={seed}"])
    return cc.convert(
        "vit_t", output, data="digits", recipe=recipe, pretrained=False, image_size=(32, 32), num_classes=10,
        model_args=SMALL, device="cpu",
    )  # fmt: skip


def test_the_same_command_and_seed_give_the_same_hash(tmp_path: Path) -> None:
    first, second, other, longer = (
        convert(tmp_path / name, **changed)["bundle_sha256"]
        for name, changed in (("first", {}), ("second", {}), ("other", {"seed": 1}), ("longer", {"steps": 4}))
    )
    assert first == second
    assert len({first, other, longer}) == 3


def test_the_hash_is_what_everybody_can_compute(tmp_path: Path) -> None:
    summary = convert(tmp_path / "out", steps=1)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    line = "sha256sum config.json model.safetensors recipe.yaml | sha256sum"
    done = subprocess.run(line, shell=True, cwd=tmp_path / "out", capture_output=True, text=True, check=True)
    assert summary["bundle_sha256"] == done.stdout.split()[0]


def test_what_it_was_made_on_and_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/castling", "convert", "--model", "vit_t", "--layers", "blocks.*"])
    summary = convert(tmp_path / "out", steps=1)
    assert summary["command"] == "castling convert --model vit_t --layers 'blocks.*'"
    assert summary["environment"]["threads"] == 1
    assert summary["environment"]["cpus"] >= 1
    assert summary["device"] == "cpu"
    assert {"castling-convert", "torch", "timm"} <= summary["versions"].keys()
    assert summary["commit"] == commit()


def test_the_command_of_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for argv, said in (
        (["/x/castling_convert/__main__.py", "demo"], "castling demo"),
        (["/x/train.py", "a b"], "train.py 'a b'"),
        ([""], None),
        ([], None),
    ):
        monkeypatch.setattr(sys, "argv", argv)
        assert command() == said


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) is None  # no checkout

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    assert commit(tmp_path) is None  # nothing was committed
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    head = git("rev-parse", "HEAD")
    git("tag", "v1")
    assert commit(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == f"{head}-dirty"


def test_no_git_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) is None


def test_a_bundle_saved_without_a_recipe_has_a_hash_too() -> None:
    hashes = {"config.json": "a" * 64, "model.safetensors": "b" * 64}
    assert bundle.bundle_sha256(hashes) != bundle.bundle_sha256({**hashes, "recipe.yaml": "c" * 64})
    assert bundle.bundle_sha256(hashes) == bundle.bundle_sha256({**hashes, "metrics.jsonl": "d" * 64})
