"""What a user can get wrong, one exception each.

Every message is one line that names the thing, what was expected, and what to type next. The command
line prints that line and exits with `exit_code`; a pipeline catches `CastlingError`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

LONGEST = 2000
"""Letters of a message; what is quoted in one can be of any length."""
END = 500
"""How many of them are its last ones, where it says what to do."""


class CastlingError(Exception):
    """Base of all errors this package raises on purpose. `exit_code` is what the command line returns.

    Whatever a file has put into the message, it is one line, and nothing in it steers a terminal.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """`text` in one line, whatever can't be printed written as its escape sequence; of more than LONGEST letters
    not the middle.

    Of an error in a data worker torch makes the worker's whole traceback; its last line is the message.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Caught ") and "Traceback" in text:
        lines = [lines[-1].partition("Error: ")[2] or lines[-1]]
    line = " ".join(lines)
    if not line.isprintable():
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - END - 3]}...{line[-END:]}"


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


class Wanted(NamedTuple):
    """What an argument of a public verb has to be: of these classes, or what a function says yes to; in `words`, and
    the error for anything else."""

    is_it: type | tuple[type, ...] | Callable[[Any], bool]
    error: type[CastlingError]
    words: str

    def refuse_another(self, value: Any, where: str) -> None:
        """Raise the error for a value that is something else; `where` is what takes it, as `castle() takes`."""
        classes = isinstance(self.is_it, type | tuple)
        if not (isinstance(value, self.is_it) if classes else self.is_it(value)):  # type: ignore[arg-type, operator]
            raise self.error(f"{where} {self.words}, not {described(value)}")


PATH = (str, os.PathLike)
"""What a path may be."""


def takes(**arguments: Wanted) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A public verb that refuses arguments that are not `Wanted`; their own defaults they may always be."""

    def decorate(verb: Callable[P, R]) -> Callable[P, R]:
        signature, name = inspect.signature(verb), verb.__qualname__.removesuffix(".__init__")

        @functools.wraps(verb)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"{name}() {error}") from None
            for key, wanted in arguments.items():
                if key in given and given[key] is not signature.parameters[key].default:
                    wanted.refuse_another(given[key], f"{name}() takes as {key}")
            return verb(*args, **kwargs)

        return checked

    return decorate


def is_number(value: Any) -> bool:
    """Whether it is one, and not yes or no."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_size(value: Any) -> bool:
    """Whether it is (height, width), or one number for both."""
    sides = (value, value) if isinstance(value, int) else value
    if not isinstance(sides, tuple | list) or len(sides) != 2:
        return False
    return all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)


def described(value: Any) -> str:
    """A value that has no place where it is, in a few words."""
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        return f"the text '{' '.join(value.split())[:40]}'"
    kind = f"{'an' if type(value).__name__[0] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"
    shape = getattr(value, "shape", None)
    return kind if shape is None else f"{kind} of {value.dtype} {list(shape)}"


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its name where it says nothing."""
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0])
