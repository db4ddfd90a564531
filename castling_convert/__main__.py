"""The command `castling`, and `python -m castling_convert`."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line; Ctrl-C while it is still imported is one line too."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        as_json = '{"error": "interrupted", "exit_code": 130}' if "--json" in sys.argv else None
        sys.stderr.write(f"\n{as_json or 'error: interrupted'}\n")
        _leave_interrupted()
    except SystemExit as done:
        if done.code == INTERRUPTED:
            _leave_interrupted()
        raise


def _leave_interrupted() -> None:
    """Exit by that code. Where the signal came while a library ran a text as code, as dataclasses do, Python would end
    itself by a SIGINT of its own."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a terminal that has gone
            stream.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
