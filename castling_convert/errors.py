"""What a user can get wrong, one exception each.

Every message is one line that names the thing, what was expected, and what to type next. The command
line prints that line and exits with `exit_code`; a pipeline catches `CastlingError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000
"""Letters of a message; what is quoted in one can be of any length."""


class CastlingError(Exception):
    """Base of all errors this package raises on purpose. `exit_code` is what the command line returns.

    Whatever a file has put into the message, it is one line, and nothing in it steers a terminal.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """`text` in one line of LONGEST letters at most, whatever can't be printed written as its escape sequence.

    Of an error in a data worker torch makes the worker's whole traceback; its last line is the message.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Caught ") and "Traceback" in text:
        lines = [lines[-1].partition("Error: ")[2] or lines[-1]]
    line = " ".join(lines)
    if not line.isprintable():
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


class ModelError(CastlingError):
    """The model's name is unknown, or its attention can't be castled."""


class WeightsError(CastlingError):
    """Weights can't be downloaded, read, or do not fit the model."""


class DataError(CastlingError):
    """The images can't be found or read."""


class RecipeError(CastlingError):
    """A recipe, or a `--set` on top of it, is not valid."""


class FoldError(CastlingError):
    """The model can't be folded yet: a mask is still open."""


class BundleError(CastlingError):
    """A bundle is missing, unfinished, damaged, or in the way."""


class ExportError(CastlingError):
    """An export was asked for that can't be made here."""


class OutputError(CastlingError):
    """The output can't be written: no space, no permission."""


class CheckFailed(CastlingError):
    """The work ran, but a check of its result failed; nothing was published."""

    exit_code = 1


class Interrupted(CastlingError):
    """The user stopped the run; the message says how to resume it."""

    exit_code = 130


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """`"; did you mean a, b?"` with the nearest known words, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its name where it says nothing."""
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0])
