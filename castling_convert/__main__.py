"""The command `castling`, and `python -m castling_convert`.

Nothing is imported here that takes time: what is, can't be interrupted by one line. Before this file's first line runs
Python's own start, 20 to 50 ms, where Ctrl-C is answered by Python.
"""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line; Ctrl-C while it is still imported is one line too."""
    try:
        import signal

        signal.signal(signal.SIGINT, _interrupted)
        from .cli import main as run

        try:
            run()
        finally:
            # What follows is Python's own end, which has tracebacks of its own for an interrupt.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as done:
        if done.code == INTERRUPTED:
            _leave_interrupted()
        raise


def _interrupted(*_signal: object) -> None:
    """Say so and leave. As a handler while the command is imported, where there is nothing to save: an exception may be
    swallowed there, by a library that catches everything or in a callback of Python's own."""
    as_json = '{"error": "interrupted", "exit_code": 130}' if "--json" in sys.argv else None
    sys.stderr.write(f"\n{as_json or 'error: interrupted'}\n")
    _leave_interrupted()


def _leave_interrupted() -> None:
    """Exit by that code. Where the signal came while a library ran a text as code, as dataclasses do, Python would end
    itself by a SIGINT of its own."""
    import atexit
    import contextlib

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a terminal that has gone
            stream.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
