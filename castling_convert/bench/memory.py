"""Peak memory of a model that runs, each in a process of its own: what another left behind is not counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ..errors import ExportError

STATUS = Path("/proc/self/status")
CALLS = 3


def peak_memory(runtime: str, file: Path, threads: int, shape: tuple[int, ...], dtype: str) -> int | None:
    """Bytes that opening the artifact `file` and running it on an input of `shape` take at their peak, its
    weights included, beyond what the runtime itself takes. None where the system does not say (no Linux).

    Raises:
        ExportError: the process that measures it failed.
    """
    if not STATUS.exists():
        return None
    program = "from castling_convert.bench.memory import child; child()"
    words = [sys.executable, "-P", "-c", program, runtime, str(file.resolve()), str(threads), json.dumps(shape), dtype]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"peak memory of {file} can't be measured: {(done.stderr.strip() or '?').splitlines()[-1]}")
    return int(done.stdout.split()[-1])


def child() -> None:
    """What the process does; its arguments are those of `peak_memory`, the answer goes to its standard output."""
    import numpy as np

    from ..exporting import FORMATS
    from .runtimes import RUNTIMES, runner, torch_threads

    runtime, file, threads, shape, dtype = sys.argv[1:]
    values = np.zeros(json.loads(shape), dtype)
    import_module(RUNTIMES[runtime])
    FORMATS[runtime].exporter.missing()  # imports what it needs, too

    def run() -> None:
        with torch_threads(int(threads)):
            model = runner(runtime, Path(file), int(threads))
            for _ in range(CALLS):
                model.run(values)

    print(growth(run))


def growth(work: Callable[[], object]) -> int:
    """Bytes by which this process' peak during `work` exceeds what it held before. Linux alone."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
