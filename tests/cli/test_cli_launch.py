"""`castling convert` in two processes of this machine (gloo), as a user starts them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from castling_convert.data.loaders import Resumable
from tests.cli.test_cli_processes import only_error, start, until

pytestmark = pytest.mark.xdist_group("processes")
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2"],
    "several_gpus.yaml": ["-m", "accelerate.commands.launch", "--num_processes", "2"],
    "fsdp.yaml": ["-m", "accelerate.commands.launch", "--num_processes", "2"],
}
EXAMPLES = Path(__file__).parents[2] / "examples" / "launch"


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_launch_is_one_conversion(environment, here, tiny, castling):
    """One bundle, one summary, and the losses of one process."""
    arguments = ["convert", *tiny, "--data", "digits", "--steps", 10, "--json"]
    process = start(environment, *arguments, "-o", "two", "--launch", 2)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert json.loads(out).items() <= json.loads((here / "two" / "summary.json").read_text()).items()
    assert err.count("step 10/10") == 1
    castling(*arguments, "-o", "one").done()
    alone, together = records(here / "one"), records(here / "two")
    assert [record["step"] for record in together] == list(range(1, 11))
    for expected, found in zip(alone, together, strict=True):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3, abs=1e-6)
    assert sorted(path.name for path in here.iterdir()) == ["one", "two"]
    assert sorted(path.name for path in (here / "two").iterdir()) == sorted(
        path.name for path in (here / "one").iterdir()
    )


def test_stopped_together_and_resumed_by_one(environment, here, tiny, castling):
    arguments = ["convert", *tiny, "--data", "digits", "--steps", 40, "-o", "out"]
    process = start(environment, *arguments, "--launch", 2)
    metrics = here / "out" / "train" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "of 40; go on with the same command and --resume" in only_error(err)
    assert [path.name for path in here.iterdir()] == ["out"]
    castling(*arguments, "--resume").done()
    assert [record["step"] for record in records(here / "out")] == list(range(1, 41))


def test_what_only_one_of_them_meets_is_said_once(environment, here, tiny):
    """An image in the second half of the first batch, which the first process never reads, is cut off."""
    (here / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(16):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(here / "images" / f"{index:02}.png")
    _, index = list(Resumable(16, 8, 0, seed=0))[6]
    broken = here / "images" / f"{index:02}.png"
    broken.write_bytes(broken.read_bytes()[:-1000])
    process = start(environment, "convert", *tiny, "--data", "images", "--steps", 4, "-o", "out", "--launch", 2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert err.splitlines() == [only_error(err)]
    assert f"images/{index:02}.png can't be read" in err
    assert out == ""
    assert [path.name for path in here.iterdir()] == ["images"]


def test_launch_within_a_launch(here, tiny, castling, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    castling("convert", *tiny, "--launch", 3).refused("--launch 3 in one of 2 launched processes", "leave it out")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_other_launchers(environment, here, tiny, launcher):
    arguments = ["-m", "castling_convert", "convert", *tiny, "--data", "digits", "--steps", 4, "-o", "out"]
    settings = ["--config_file", EXAMPLES / launcher] if launcher.endswith(".yaml") else []
    command = [sys.executable, *map(str, [*LAUNCHERS[launcher], *settings, *arguments])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("note: the settings of FSDP are not used") == (launcher == "fsdp.yaml")
    assert done.stdout.count("next: castling export") == 1
    assert len(records(here / "out")) == 4
    assert [path.name for path in here.iterdir()] == ["out"]
