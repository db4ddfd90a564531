"""The command `castling`, and `python -m castling_convert`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still imported is one line too."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        as_json = '{"error": "interrupted", "exit_code": 130}' if "--json" in sys.argv else None
        sys.stderr.write(f"\n{as_json or 'error: interrupted'}\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
