"""What a run shows: plain lines when the output is no terminal, a bar when it is."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from castling_convert.distillation.progress import Progress

STEP = {
    "phase": "anneal",
    "losses": {"total": 3.0, "attention": 1.0, "logits": 2.0},
    "density": {"a": 0.5, "b": 0.25},
    "images": 8,
}


@pytest.mark.parametrize("terminal", [False, True])
def test_shows_losses_density_rate_and_eta(terminal):
    screen = io.StringIO()
    progress = Progress(console=Console(file=screen, force_terminal=terminal, width=200))
    with progress.running(steps=2, first=0):
        progress.step(step=1, **STEP)
        progress.step(step=2, **STEP)
    shown = screen.getvalue()
    for text in ("2/2", "anneal", "attention 1", "logits 2", "mask", "37.5%", "max 50.0%", "img/s"):
        assert text in shown
    assert ("\x1b[" in shown) == terminal
    assert ("ETA" in shown) != terminal


def test_on_a_narrow_terminal_phase_steps_and_time_stay_whole():
    screen = io.StringIO()
    progress = Progress(console=Console(file=screen, force_terminal=True, width=40))
    with progress.running(steps=6000, first=0):
        progress.step(step=3000, **STEP)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).split("\r")[-1].splitlines()[0]
    assert re.match(r"anneal  \S+ 3000/6000 [-:\d]{7} \S", last)
    assert len(last) <= 40


class Clock:
    """A `time` that stands still until it is told to go on."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("castling_convert.distillation.progress.time.monotonic", lambda: self.now)

    def lines(self, progress, steps, first, seconds, **changed):
        """Steps that take so many seconds each."""
        for step, took in enumerate(seconds, start=first + 1):
            self.now += took
            progress.step(step=step, **{**STEP, **changed})


def shown_by(monkeypatch, steps, first, seconds, **changed):
    monkeypatch.setattr("castling_convert.distillation.progress.PLAIN_INTERVAL", 0.0)
    screen, clock = io.StringIO(), Clock(monkeypatch)
    progress = Progress(console=Console(file=screen, width=200))
    with progress.running(steps, first):
        clock.lines(progress, steps, first, seconds, **changed)
    return [re.search(r"(\d+) img/s +ETA (\d+)s", line).groups() for line in screen.getvalue().splitlines()]


def test_right_after_a_resume_rate_and_eta_are_of_this_process(monkeypatch):
    """Of 1,000 steps 900 had been done: their images took no time here, and only 99 steps are left."""
    assert shown_by(monkeypatch, 1000, 900, [2.0, 2.0, 2.0]) == [("4", "198"), ("4", "196"), ("4", "194")]


def test_a_new_phase_has_a_rate_of_its_own(monkeypatch):
    screen, clock = io.StringIO(), Clock(monkeypatch)
    monkeypatch.setattr("castling_convert.distillation.progress.PLAIN_INTERVAL", 0.0)
    progress = Progress(console=Console(file=screen, width=200))
    with progress.running(100, 0):
        clock.lines(progress, 100, 0, [1.0] * 3, phase="align")
        with progress.aside():
            clock.now += 500.0  # a rate is looked for
        clock.lines(progress, 100, 3, [4.0], phase="closed")
    last = screen.getvalue().splitlines()[-1]
    assert "2 img/s  ETA 384s" in last


def test_what_is_read_ahead_for_other_steps_is_shared_among_them(monkeypatch):
    """The first step of eight reads for all; ETA is as if each had read for itself, from the first one on."""
    screen, clock = io.StringIO(), Clock(monkeypatch)
    monkeypatch.setattr("castling_convert.distillation.progress.PLAIN_INTERVAL", 0.0)
    progress = Progress(console=Console(file=screen, width=200))
    with progress.running(16, 0):
        for step in range(1, 9):
            clock.now += 8.0 if step == 1 else 0.0
            progress.set_aside(8.0 - 1.0 if step == 1 else -1.0)
            clock.lines(progress, 16, step - 1, [1.0])
    left = [float(re.search(r"ETA (\d+)s", line)[1]) for line in screen.getvalue().splitlines()]
    assert left == [2.0 * (16 - step) for step in range(1, 9)]


def test_a_resumed_run_drops_the_lines_it_does_again(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)))
    progress = Progress(tmp_path)
    with progress.running(steps=5, first=3):
        progress.step(step=4, **STEP)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_a_line_cut_by_a_crash_does_not_stop_the_resumed_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "los')
    with Progress(tmp_path).running(steps=5, first=1):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
