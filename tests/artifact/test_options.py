"""Options of an export are held to their types, as recipes are."""

from __future__ import annotations

from typing import Any

import pytest

from castling_convert.artifact.options import ExportOptions
from castling_convert.errors import ExportError


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"opset": "20"}, "opset should be a valid integer, not '20'"),
        ({"image_size": "224"}, "image_size should be a valid tuple, not '224'"),
        ({"image_size": (224,)}, r"image_size should be of more values, not \(224,\)"),
        ({"simplify": 3}, "simplify should be a valid boolean, not 3"),
        ({"atol": "x"}, "atol should be a valid number, not 'x'"),
        ({"precision": None}, "precision should be a valid string, not None"),
        ({"batch": [1]}, "neither a number nor MIN:OPT:MAX"),
        ({"opsett": 20}, "no option 'opsett'; did you mean opset"),
    ],
)
def test_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=words) as refused:
        ExportOptions.make(**values)
    assert "\n" not in str(refused.value)


def test_what_is_meant() -> None:
    options = ExportOptions.make(batch=4, atol=1, image_size=(32, 64))
    assert (options.fixed_batch, options.tolerance.atol, options.image_size) == (4, 1, (32, 64))
