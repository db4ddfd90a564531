"""What is already there, and what stays there: the output folder of `convert`."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

import castling_convert as cc
from castling_convert.distillation.state import _hashes
from castling_convert.errors import BundleError
from castling_convert.loading import load_model

DIGITS = ("--data", "digits", "--steps", "2", "--output", "out")


@pytest.fixture
def convert(castling, tiny):
    return lambda *arguments: castling("convert", *tiny, *DIGITS, *arguments)


@pytest.fixture
def old(here, made):
    """A finished bundle in the way."""
    shutil.copytree(made, here / "out")
    return here / "out"


def unfinished(convert, monkeypatch, step: int = 1):
    """A run that was interrupted after `step` steps, by a signal as Ctrl-C sends it."""
    import signal

    from castling_convert.distillation.progress import Progress

    whole = Progress.step

    def interrupted(self, **metrics):
        whole(self, **metrics)
        if metrics["step"] == step:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", interrupted)
        return convert()


def test_a_bundle_is_not_replaced_unasked(convert, old):
    convert().refused("out exists", "--force", "--output")


def test_force_replaces_a_bundle(convert, old, here):
    (old / "model.safetensors").write_bytes(b"old")
    convert("--force").done()
    assert cc.load(old)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert [path.name for path in here.iterdir()] == ["out"]


def test_a_failed_force_leaves_the_old_bundle_as_it_was(castling, tiny, old, here, photographs):
    shutil.copytree(photographs, here / "images")
    for bad in (here / "images").rglob("*.jpg"):
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    arguments = ("--data", "images", "--steps", 2, "--output", "out", "--force")
    castling("convert", *tiny, *arguments).refused(".jpg can't be read")


@pytest.mark.parametrize("flags", [(), ("--force",)], ids=["plain", "force"])
@pytest.mark.parametrize("content", ["notes.txt", "summary.json", "config.json", "train/cat/0.jpg"])
def test_a_folder_of_the_user_is_never_replaced(convert, here, content, flags):
    """Such as a folder of images with its train/ part, or another program's results."""
    path = here / "out" / content
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    convert(*flags).refused("out exists", "no bundle", "--output")


@pytest.mark.parametrize("flags", [(), ("--force",)], ids=["plain", "force"])
def test_a_file_in_the_way(convert, here, flags):
    (here / "out").write_text("mine")
    convert(*flags).refused("out is a file", "--output")


def test_a_file_above_the_output(castling, tiny, here):
    (here / "file").write_text("mine")
    castling("convert", *tiny, "--data", "digits", "--steps", 1, "-o", "file/out").refused("file/out")


def test_an_empty_folder_is_used(convert, here):
    (here / "out").mkdir()
    convert().done()
    assert (here / "out" / "config.json").is_file()


def test_resume_with_nothing_to_resume(convert):
    convert("--resume").refused("nothing to resume", "out", "leave out --resume")


def test_resume_of_a_finished_bundle(convert, old):
    convert("--resume").refused("nothing to resume", "out is finished", "--force")


def test_resume_and_force_together(convert, old):
    convert("--resume", "--force").refused("--resume and --force")


def test_an_interrupted_run_is_resumed_or_started_over_but_not_overwritten(convert, monkeypatch, here):
    line = unfinished(convert, monkeypatch).failed(130, "interrupted after step 1 of 2", "--resume")
    assert line.startswith("error: interrupted")
    assert sorted(path.name for path in (here / "out").iterdir()) == ["train"]
    with pytest.raises(BundleError, match=r"unfinished conversion.*--resume"):
        cc.load(here / "out")
    convert().refused("unfinished conversion", "--resume", "--force")
    convert("--resume", "--steps", "3").refused("distill.steps changed", "--force")
    convert("--resume", "--set", "distill.optimizer.lr=1e-4").refused("distill.optimizer.lr changed")
    convert("--resume", "--layers", "0").refused("layers changed")
    convert("--resume").done()
    steps = [json.loads(line)["step"] for line in (here / "out" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    assert not (here / "out" / "train" / "state").exists()


def test_force_starts_an_interrupted_run_over(convert, monkeypatch, here):
    unfinished(convert, monkeypatch).failed(130)
    convert("--force", "--steps", "3").done()
    steps = [json.loads(line)["step"] for line in (here / "out" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_an_interrupted_force_keeps_the_old_bundle_readable(convert, monkeypatch, old, here):
    before = (old / "model.safetensors").read_bytes()
    unfinished(lambda: convert("--force", "--seed", 1), monkeypatch).failed(130, "--resume")
    assert (old / "model.safetensors").read_bytes() == before
    cc.load(old)
    convert("--resume", "--seed", 1).done()
    assert (old / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("file", ["run.json", "model.safetensors", "optimizer.bin"])
def test_a_damaged_state_is_said(convert, monkeypatch, here, file):
    unfinished(convert, monkeypatch).failed(130)
    (here / "out" / "train" / "state" / file).write_bytes(b"{")
    convert("--resume").refused("damaged", "--force")


@pytest.mark.parametrize("key", ["steps", "distill"])
def test_a_record_that_lacks_what_the_run_began_with_is_damaged(convert, monkeypatch, here, key):
    unfinished(convert, monkeypatch).failed(130)
    with edited(here / "out" / "train" / "state" / "run.json") as record:
        where = record["fingerprint"] if key == "distill" else record["fingerprint"]["distill"]
        del where[key]
    convert("--resume").refused("damaged", "--force")


def test_a_state_of_before_images_were_counted_goes_on(convert, monkeypatch, here):
    unfinished(convert, monkeypatch).failed(130)
    with edited(here / "out" / "train" / "state" / "run.json") as record:
        del record["fingerprint"]["distill"]["images"]
    convert("--resume").done()


@contextmanager
def edited(file):
    """What a file of JSON holds, and what is made of it is written back."""
    record = json.loads(file.read_text())
    yield record
    file.write_text(json.dumps(record))


@pytest.mark.parametrize("damage", ["missing", "one bit"])
@pytest.mark.parametrize("file", ["random_states_0.pkl", "model.safetensors"])
def test_every_file_of_a_state_has_to_be_the_one_that_was_written(convert, monkeypatch, here, file, damage):
    """Without its random states a run would go on with others, and a flipped bit is a number like any other."""
    unfinished(convert, monkeypatch).failed(130)
    path = here / "out" / "train" / "state" / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    convert("--resume").refused(f"out/train/state/{file} is missing or damaged", "--force")


@pytest.mark.parametrize(
    ("setting", "value", "harmless"),
    [
        ("data.scale", 0.9, False),
        ("data.hflip", 0, False),
        ("distill.images", 7, False),
        ("data.workers", 1, True),
        ("distill.checkpoint_every", 7, True),
    ],
)
def test_a_recipe_that_changed_before_resuming(convert, monkeypatch, here, setting, value, harmless):
    unfinished(convert, monkeypatch).failed(130)
    result = convert("--resume", "--set", f"{setting}={value}")
    if not harmless:
        result.refused(f"{setting} changed", "--force")
        return
    result.done()
    convert("-o", "whole").done()
    weights = [(here / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1]


def test_another_teacher_behind_the_same_name(castling, tiny, monkeypatch, here):
    def save(seed: int) -> None:
        torch.manual_seed(seed)
        model = load_model("vit_t", pretrained=False, image_size=(32, 32), num_classes=10, model_args=arguments)
        save_file(model.state_dict(), here / "teacher.safetensors")

    arguments = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
    save(0)
    command = ("convert", *tiny, *DIGITS, "--weights", "teacher.safetensors")
    unfinished(lambda: castling(*command), monkeypatch).failed(130)
    save(1)
    castling(*command, "--resume").refused("teacher_weights changed", "--force")
    save(0)
    castling(*command, "--resume").done()


@pytest.mark.parametrize("layers", [(), ("--layers", "auto", "--max-drop", 100)], ids=["all", "auto"])
def test_another_number_of_images(castling, tiny, monkeypatch, here, photographs, layers):
    shutil.copytree(photographs, here / "images")
    command = ("convert", *tiny, "--data", "images", "--steps", 2, "-o", "out", *layers)
    unfinished(lambda: castling(*command), monkeypatch).failed(130)
    (here / "images" / "china" / "0.jpg").unlink()
    castling(*command, "--resume").failed(2, "images changed", "--force")


def test_a_run_that_version_01_began(convert, monkeypatch, here):
    """Its record has the spec alone of the data, and neither hashes nor the teacher's weights."""
    unfinished(convert, monkeypatch).failed(130)
    record = here / "out" / "train" / "state" / "run.json"
    values = json.loads(record.read_text())
    del values["sha256"], values["fingerprint"]["teacher_weights"], values["fingerprint"]["images"]
    values["fingerprint"]["data"] = "digits"
    record.write_text(json.dumps(values))
    convert("--resume", "--data", "relations").refused("data.spec changed")
    convert("--resume").done()


def test_a_state_with_code_in_it_is_refused_and_not_run(convert, monkeypatch, here, tmp_path):
    """A state can come from somebody else: another machine, a shared disk."""
    import os

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    unfinished(convert, monkeypatch).failed(130)
    state = here / "out" / "train" / "state"
    for pickled in [path for path in state.iterdir() if path.suffix in (".bin", ".pkl")]:
        torch.save({"state": Payload()}, pickled)
    record = json.loads((state / "run.json").read_text())
    content = {name: digest for name, digest in _hashes(state).items() if name != "run.json"}
    for hashes, words in (({}, "is damaged"), (content, "as it was written and can't be loaded here")):
        (state / "run.json").write_text(json.dumps(record | {"sha256": hashes}))  # theirs would be right, or not there
        result = convert("--resume")
        assert not (tmp_path / "executed").exists()
        result.refused(words, "--force")


def test_json_is_all_there_is_on_stdout(convert, here):
    result = convert("--json").done()
    summary = json.loads(result.out)
    assert summary["accuracy"]["measured"] is True
    assert json.loads((here / "out" / "summary.json").read_text())["macs"] == summary["macs"]


def test_the_default_output_is_named_after_the_model(castling, tiny, here):
    out = castling("convert", *tiny, "--data", "digits", "--steps", 1).done().out
    assert (here / "castled" / "vit_t" / "config.json").is_file()
    assert "next: castling export castled/vit_t" in out


def test_without_data_accuracy_is_called_unmeasured(castling, tiny, here):
    out = castling("convert", *tiny, "--steps", 1, "-o", "out").done().out
    assert "unmeasured" in out
    assert json.loads((here / "out" / "summary.json").read_text())["accuracy"]["measured"] is False


def test_no_space_is_seen_before_training(convert, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    convert().refused("no space for out", "MB are needed", "--output")


@pytest.fixture
def small_disk(here):
    """A disk of one megabyte at `small`."""
    (here / "small").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "small"], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.strip()}")
    yield here / "small"
    subprocess.run(["umount", "small"], check=True)


def test_a_full_disk(castling, tiny, small_disk):
    castling("convert", *tiny, "--data", "digits", "--set", "attention.kernel_size=31", "-o", "small/out").refused(
        "no space", "small/out", "--output"
    )


@pytest.mark.parametrize("free", [100_000, 200_000, 280_000, 300_000], ids=["weights", "moments", "more", "last"])
def test_a_disk_that_fills_up_while_training(castling, tiny, small_disk, monkeypatch, free):
    """The check up front passes; the first checkpoint does not fit, whoever writes what of it comes last."""
    monkeypatch.setattr("castling_convert.pipeline.conversion.require_space", lambda *_: None)
    (small_disk / "other").write_bytes(b"x" * (2**20 - free))
    result = castling("convert", *tiny, "--data", "digits", "--steps", 3, "-o", "small/out")
    result.failed(2, "no space left", "small/out", "--output")
    assert result.after == result.before


@pytest.mark.parametrize(
    ("limit", "steps"), [(64_000, 3), (1000, 3)], ids=["at the first checkpoint", "at the first metrics"]
)
def test_a_write_that_fails_late(here, tiny, environment, limit, steps):
    """Files may not grow beyond `limit` bytes: enough for some and not for the weights."""
    arguments = [*tiny, "--data", "digits", "--steps", str(steps), "-o", "out", "--set", "distill.checkpoint_every=1"]
    done = subprocess.run(
        [sys.executable, "-c", "from castling_convert.cli import main; main()", "convert", *arguments],
        env=environment, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "no space left for out" in errors[0]
    assert "Traceback" not in done.stderr
    assert list(here.iterdir()) == []


def test_a_write_that_fails_at_the_bundle_keeps_the_training(convert, monkeypatch, here):

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("castling_convert.bundle.writing.save_file", full)
        convert().failed(2, "no space left for out", "--resume")
    assert [path.name for path in here.iterdir()] == ["out"]
    assert [path.name for path in (here / "out").iterdir()] == ["train"]
    convert("--resume").done()
    cc.load(here / "out")


def test_the_demo_replaces_no_folder_of_the_user(castling, here):
    """Its teacher goes beside the bundle, where something of the user's own may lie."""
    (here / "mine-teacher").mkdir()
    (here / "mine-teacher" / "thesis.txt").write_text("years of work")
    castling("demo", "--output", "mine").refused("mine-teacher", "--output")


def test_the_demo_trains_nothing_that_it_can_not_write(castling, here):
    (here / "file").write_text("x")
    castling("demo", "--output", "file/out").refused("can't write file/out-teacher", "--output")
