"""What a user can get wrong, one exception each.

Every message is one line that names the thing, what was expected, and what to type next. The command
line prints that line and exits with `exit_code`; a pipeline catches `CastlingError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CastlingError(Exception):
    """Base of all errors this package raises on purpose. `exit_code` is what the command line returns."""

    exit_code = 2


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


class ProcessLost(CastlingError):
    """One of several processes ended, and the others can't go on without it."""


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
    return (str(error).strip() or type(error).__name__).splitlines()[0]
