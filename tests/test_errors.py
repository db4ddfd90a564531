"""Messages are one line that a terminal can show, whatever is quoted in them."""

from __future__ import annotations

import pickle

import pytest

from castling_convert.errors import LONGEST, CastlingError, DataError, first_line, one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain, with ∑ and é", "plain, with ∑ and é"),
        ("a\nb\r\n\n c", "a b  c"),
        ("a\x1b[2Jb\x07\tc", "a\\x1b[2Jb\\x07\\tc"),
        ("a\u202eb\ud800", "a\\u202eb\\ud800"),
        ("x" * 10_000 + "y" * 500, "x" * (LONGEST - 503) + "..." + "y" * 500),
        ("", ""),
    ],
)
def test_one_line(text, line):
    assert one_line(text) == line
    assert str(DataError(text)) == line
    assert str(pickle.loads(pickle.dumps(DataError(text)))) == line  # noqa: S301 - as it comes from a data worker


def test_what_a_data_worker_raised_is_its_message():
    text = 'Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x"\n'
    error = DataError(f"{text}castling_convert.errors.DataError: 9.png is no image; remove it")
    assert str(error) == "9.png is no image; remove it"


def test_errors_of_other_libraries_are_their_first_line():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("\x1b[2J")) == "\\x1b[2J"
    assert first_line(KeyError()) == "KeyError"
    assert str(CastlingError()) == ""
