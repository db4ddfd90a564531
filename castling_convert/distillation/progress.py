"""What a run shows while it goes, and writes to `metrics.jsonl`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from . import processes

PLAIN_INTERVAL = 5.0
"""Seconds between lines when the output is no terminal."""
WIDE = 120
"""Letters on a line of a terminal that has room for a long bar."""


class Progress:
    """Shows phase, losses, mask density, images/s and ETA; appends one JSON line a step to `metrics.jsonl`.

    A terminal gets a live bar, anything else a plain line every few seconds. `console=None` is silent. Images/s and ETA
    are those of the phase under way, since this run was started: what a resumed one had done before does not count. Of
    several processes the first one shows and writes this for all.
    """

    def __init__(self, workdir: Path | None = None, console: Console | None = None) -> None:
        self.path = workdir / "metrics.jsonl" if workdir and processes.is_first() else None
        self.console = console if processes.is_first() else None
        self._file: TextIO | None = None
        self._bar: Bar | None = None

    @contextmanager
    def running(self, steps: int, first: int) -> Iterator[None]:
        """For the time of a run of `steps` steps that starts after `first`."""
        self._steps, self._phase = steps, ""
        self._aside, self._last = 0.0, time.monotonic()
        self._shown = self._last
        if self.path is not None:
            _keep_lines(self.path, first)
            self._file = self.path.open("a", encoding="utf-8")
        if self.console is not None and self.console.is_terminal:
            self._bar = Bar(
                TextColumn("[bold]{task.fields[phase]:<7}"),
                BarColumn(40 if self.console.width >= WIDE else 8),
                MofNCompleteColumn(),
                TextColumn("[cyan]{task.fields[left]}"),
                TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True)),  # cut where it has to be
                console=self.console,
                expand=True,
            )
            self._task = self._bar.add_task("", total=steps, completed=first, phase="start", text="", left="-:--:--")
            self._bar.start()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
            if self._file is not None:
                self._file.close()
                self._file = None

    def say(self, line: str) -> None:
        """Something that happened between two steps."""
        if self.console is not None:
            (self._bar.console if self._bar is not None else self.console).print(f"  {line}")

    def set_aside(self, seconds: float) -> None:
        """So much of the time since the last step was for other steps than the next, or is needed but once; below zero
        what the next one has needed before."""
        self._aside += seconds

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around what is done but once, and says nothing of how long the other steps take."""
        started = time.monotonic()
        yield
        self.set_aside(time.monotonic() - started)

    def step(self, *, step: int, phase: str, images: int, **metrics: Any) -> None:
        """Record one finished step, counted from 1."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._count, self._images, self._seconds = phase, 0, 0, 0.0
        self._count += 1
        self._images += images
        self._seconds += now - self._last - self._aside
        self._aside, self._last = 0.0, now
        rate = self._images / max(self._seconds, 1e-9)
        if self._file is not None:
            record = {"step": step, "phase": phase, "images_per_second": round(rate, 2), **metrics}
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self.console is None:
            return
        densities = list(metrics["density"].values())
        parts = " ".join(f"{name} {value:.3g}" for name, value in metrics["losses"].items() if name != "total")
        mask = f"mask {sum(densities) / len(densities):6.1%} (max {max(densities):.1%})"
        text = f"{parts}  {mask}  {rate:.0f} img/s"
        left = max(0.0, (self._steps - step) * self._seconds / self._count)
        if self._bar is not None:
            clock = str(timedelta(seconds=round(left)))
            self._bar.update(self._task, completed=step, phase=phase, text=text, left=clock)
        elif now - self._shown >= PLAIN_INTERVAL or step == self._steps:
            self._shown = now
            self.console.print(f"  step {step}/{self._steps} {phase:<7} {text}  ETA {left:.0f}s")


def _keep_lines(path: Path, steps: int) -> None:
    """Drop the lines of steps that a resumed run does again."""
    if not path.exists():
        return
    earlier = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= steps]
    path.write_text("".join(line + "\n" for line in earlier), encoding="utf-8")


def _step(line: str) -> float:
    """The step of a line; infinite for one that a crash cut short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
