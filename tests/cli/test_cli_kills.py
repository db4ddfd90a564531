"""SIGKILL at any moment: whatever it was in the middle of, the same command goes on to the very same weights.

A process of `castling convert` takes seconds to import what it needs, so one that has imported it all makes the others
as copies of itself; each is a process of its own, and killed as such.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import castling_convert as cc
from castling_convert.distillation.state import saved_step

pytestmark = pytest.mark.xdist_group("processes")

KILLS = 20
SERVER = """
import json, os, sys
import onnxruntime, sklearn.datasets, timm, torch
from castling_convert import pipeline
from castling_convert.cli import main

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.argv = ["castling", *json.loads(line)]
        with open("log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            main()
        except SystemExit as done:
            sys.stderr.flush()
            os._exit(done.code)
    print(child, flush=True)
    sys.stdin.readline()  # until it is known which process that is, its number is not given to another
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Conversions:
    """Makes processes, one after the other, each of which runs one command."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def run(self, arguments: list[str], moment: Callable[[], bool] | None = None) -> int:
        """The exit code; killed as soon as `moment()`, which is asked all the time, says so."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(arguments) + "\n")
        self.server.stdin.flush()
        child = os.pidfd_open(int(self._line()))
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        while moment is not None and not select.select([child], [], [], 0.0005)[0]:
            if moment():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(child, signal.SIGKILL)
                break
        os.close(child)
        return int(self._line())

    def close(self) -> None:
        self.server.communicate()
        assert self.server.returncode == 0


@pytest.fixture
def conversions(environment: dict[str, str], here: Path) -> Iterator[Conversions]:
    made = Conversions(environment)
    yield made
    made.close()


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def writing(pattern: str, delay: float) -> Callable[[], bool]:
    """`delay` seconds after something of that name, which was not there at first, has appeared."""
    before, seen = set(Path().glob(pattern)), []

    def moment() -> bool:
        if not seen and set(Path().glob(pattern)) - before:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] >= delay

    return moment


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open, which Linux has")
def test_killed_at_any_moment(conversions: Conversions, tiny: list[str], here: Path) -> None:
    """Moments of chance over the whole run, and others in the middle of a checkpoint, of the exchange of its folder,
    and of publishing. What was killed goes on by --resume, or by the plain command where nothing was saved yet, and is
    killed again."""
    command = ["convert", *tiny, "--data", "digits", "--steps", "12", "--set", "distill.batch_size=4"]
    command += ["--set", "distill.checkpoint_every=2", "--output"]
    started = time.monotonic()
    assert conversions.run([*command, "whole"]) == 0, Path("log").read_text()
    duration = time.monotonic() - started
    whole = json.loads(Path("whole/summary.json").read_text())["bundle_sha256"]
    rng = random.Random(0)
    aimed = [
        "out/train/.state.*",  # the checkpoint is written
        "out/train/.state.*/run.json",  # it is whole, and about to be exchanged
        "out/train/.state.old.*",  # where folders can't be exchanged
        ".out.*/*.safetensors",  # the bundle is written
        ".out.*/summary.json",  # it is whole, and about to be published
        "out/config.json",  # it has been, and what was there is removed
    ]
    kills, resumed, code = 0, 0, None
    while kills < KILLS or code != 0:  # the last one is left to end
        resume = saved_step(Path("out/train/state")) is not None
        chance = rng.random()
        if kills >= KILLS:
            moment = None
        elif chance < 0.5:
            moment = after(rng.uniform(0, duration if not resume else 0.7 * duration))
        else:
            moment = writing(rng.choice(aimed), rng.uniform(0, 0.004))
        code = conversions.run([*command, "out", *(["--resume"] if resume else [])], moment)
        assert code in (0, -signal.SIGKILL), (code, resume, Path("log").read_text())
        kills += code != 0
        resumed += resume
        if Path("out/config.json").exists():  # published, whether or not the process lived to say so
            cc.load("out")
            assert json.loads(Path("out/summary.json").read_text())["bundle_sha256"] == whole
            assert [json.loads(line)["step"] for line in Path("out/metrics.jsonl").read_text().splitlines()] == [
                *range(1, 13)
            ]
            shutil.rmtree("out")
    assert kills == KILLS
    assert resumed >= 5
    assert {path.name for path in here.iterdir()} <= {"whole", "log"}
