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
