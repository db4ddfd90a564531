"""`--launch N`, and how several processes that end together say so once, with one exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from datetime import timedelta
from typing import Any

from ..distillation import launched
from ..distillation.interrupt import stopping_signals

GRACE = "120"
"""Seconds in which a process that is told to stop may finish its step and save, before it is killed."""
HEARD = timedelta(seconds=10)
"""How long the last words of the others are waited for."""


def launch(count: int, arguments: list[str]) -> int:
    """Run `castling` with these arguments in `count` processes of this machine, by torch's own launcher.

    Returns:
        Their exit code.

    Raises:
        ProcessLost: one was killed.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from ..errors import ProcessLost

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", GRACE)
    config = LaunchConfig(
        1, 1, count, run_id=f"castling-{os.getpid()}", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    logging.disable(logging.ERROR)  # of what happens to its processes the launcher tells a great deal
    try:
        elastic_launch(config, sys.executable)("-m", "castling_convert", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise ProcessLost(
                f"one of {count} processes was ended by {name}; go on with the same command and --resume where a step "
                "was saved"
            ) from None
        return failure.exitcode
    except SignalException:  # each of them has heard it too
        return 130
    finally:
        logging.disable(logging.NOTSET)
    return 0


def launcher_reports() -> bool:
    """Whether this process was started by torch's launcher, which tells itself of one that was killed."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def speaks() -> bool:
    """Whether this process is the first of all that were launched to say why they end."""
    if launched.count() == 1:
        return True
    store = _store()
    return store.add(_key("said"), 1) == 1 if store is not None else launched.is_first()


def end(code: int) -> int:
    """The exit code of all that were launched, of which this one ends with `code`: that of the first to fail.

    The first process, which tidies up, is waited for: a launcher ends all when one has ended badly.
    """
    if launched.count() == 1:
        return code
    from ..distillation import processes

    for number in stopping_signals():
        signal.signal(number, signal.SIG_IGN)  # it stops
    processes.leave()
    store = _store() if code else None
    if store is None:
        return code
    until = time.monotonic() + HEARD.seconds
    try:
        code = int(store.compare_set(_key("code"), "", str(code)))
        if launched.is_first():
            store.set(_key("over"), "")
        while not store.check([_key("over")]) and time.monotonic() < until:
            time.sleep(0.05)
    except RuntimeError:  # the first process, or its launcher, was where the notes are, and is gone
        return code
    return code


def _store() -> Any:
    """Where launched processes leave each other notes, whether they have met or not; None where it is gone."""
    from torch.distributed import TCPStore

    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    try:
        return TCPStore(host, int(port), is_master=False, timeout=HEARD, wait_for_workers=False)
    except (RuntimeError, ValueError):
        return None


def _key(name: str) -> str:
    """A restart by the launcher begins anew."""
    return f"castling/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"
