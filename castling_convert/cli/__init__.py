"""The command line: one file per subcommand. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import traceback
from contextlib import redirect_stderr
from typing import Any

import click

from ..distillation.interrupt import Interrupt, stopping_signals
from ..errors import CastlingError, ProcessLost, first_line, one_line
from ..version import __version__
from . import analyze, bench, convert, demo, doctor, evaluate, export, inspect, models, recipes, report, verify
from .launch import end, launcher_reports, speaks

CLOSED_PIPE = 141
"""As of every program whose reader has gone, such as `head`: 128 and the number of SIGPIPE."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="castling")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
def cli(debug: bool) -> None:
    """Turn a pretrained softmax Vision Transformer into a linear-attention one that ships.

    \b
    castling convert --model deit_s --data IMAGES    castle, distil, fold: a bundle
    castling export --format onnx                    the newest bundle as ONNX, checked
    castling demo                                    the whole road on embedded data
    """


for _module in (convert, export, verify, evaluate, analyze, bench, inspect, models, recipes, report, doctor, demo):
    cli.add_command(_module.command)


def main() -> None:
    """Run the command line: errors become one line and an exit code, never a traceback by accident."""
    with redirect_stderr(_lasting_stderr()):
        sys.exit(end(_run()))


def _run() -> int:
    """The exit code."""
    # SIGTERM from a scheduler is treated like Ctrl-C, also where a shell started us with Ctrl-C ignored.
    interrupt = Interrupt(leave=lambda: os._exit(_complain("interrupted", 130)))
    for number in stopping_signals():
        signal.signal(number, interrupt)
    debug, stdout = "--debug" in sys.argv[1:], sys.stdout
    try:
        return cli.main(standalone_mode=False) or 0
    except click.ClickException as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            error.show()  # the help; before 8.2 click showed it by itself
            return 2
        return _complain(_one_line_usage(error), 2)
    except CastlingError as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, ProcessLost) and launcher_reports():
            return error.exit_code
        return _complain(_one_line(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", 130)
    except SystemExit as stopped:
        # When the reader of a pipe has gone, click puts another in the place of the standard output, and rich has no
        # more than the error; both ask to exit by 1.
        if sys.stdout is not stdout or isinstance(stopped.__context__, BrokenPipeError):
            return CLOSED_PIPE
        raise
    except Exception as error:  # noqa: BLE001 - the last resort: a defect, still one line
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _complain(f"{str(error.filename)[:40]}... is too long for the name of a file; give a shorter one", 2)
        return _complain(
            f"unexpected {type(error).__name__}: {_one_line(error)}; run again as castling --debug ... and report it", 1
        )


class _Lasting(io.FileIO):
    """Standard error when the terminal or the pipe behind it is gone: a run is not ended by what can't be shown."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _lasting_stderr() -> Any:
    if sys.stderr is None:
        return None
    raw = _Lasting(sys.stderr.fileno(), "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), sys.stderr.encoding, "backslashreplace", line_buffering=True)


def _complain(line: str, code: int) -> int:
    """Say what is wrong, to a person or, under --json, to a program; returns the exit code. Of several processes one
    says it."""
    arguments = sys.argv[1:]
    if not speaks():
        return code
    if "--json" in arguments[: arguments.index("--") if "--" in arguments else None]:
        click.echo(json.dumps({"error": line, "exit_code": code}), err=True)
    else:
        color = False if os.environ.get("NO_COLOR") else None
        click.echo(click.style("error: ", fg="red") + line, err=True, color=color)
    return code


def _one_line(error: Exception) -> str:
    from_worker = str(error).startswith("Caught ")
    return one_line(str(error)) if from_worker or isinstance(error, CastlingError) else first_line(error)


def _one_line_usage(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{message} (see: {context.command_path} --help)" if context is not None else message
