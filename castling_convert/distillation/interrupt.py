"""Ctrl-C that lets the step under way finish, so that what is saved is a state between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

HANGUP = getattr(signal, "SIGHUP", None)
"""Of a terminal that was closed; Windows has none."""


def stopping_signals() -> list[int]:
    """Ctrl-C, SIGTERM, and SIGHUP where nohup has not told the process to ignore it."""
    hangup = [] if HANGUP is None or signal.getsignal(HANGUP) == signal.SIG_IGN else [HANGUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


class Interrupt:
    """A handler that raises KeyboardInterrupt, and remembers that it did: raised while something is imported, it may be
    swallowed by a library that catches everything there.

    Args:
        leave: what ends the process, called in place of that while torch is imported: its C++, where it calls Python,
            aborts on an exception. Nothing is begun then.
    """

    def __init__(self, leave: Callable[[], object]) -> None:
        self.leave = leave
        self.requested = False

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        self.requested = True
        if _imports_torch(frame):
            self.leave()
        raise KeyboardInterrupt


def _imports_torch(frame: FrameType | None) -> bool:
    """Whether `frame` was called, through others, by the code of torch's own `__init__.py`."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "torch":
            return True
        frame = frame.f_back
    return False


class StopRequest:
    """While open, the first signal to stop sets `requested`; a second one interrupts at once. A SIGHUP does not count:
    a closed terminal sends one, its shell another, and systemd one beside its SIGTERM.

    Python delivers signals to the main thread only; opened in another thread this does nothing.
    """

    def __init__(self) -> None:
        self.requested = self._asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in stopping_signals():
                former = self._former[number] = signal.signal(number, self._handle)
                self.requested |= isinstance(former, Interrupt) and former.requested
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number != HANGUP:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True
        self.requested = True


@dataclass(frozen=True)
class Limit:
    """When to stop: `minutes` after `started`, or never."""

    started: float
    minutes: float | None

    def left(self) -> float | None:
        """Minutes from now; never below zero."""
        return None if self.minutes is None else max(0.0, self.minutes - (time.monotonic() - self.started) / 60)
