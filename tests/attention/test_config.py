from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from castling_convert.attention import config_of


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel_size": 4}, "odd"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"window": -1}, "window"),
        ({"form": "features", "power": 5}, "power"),
        ({"landmarks": 0}, "landmarks"),
        ({"form": "angular", "constant": "token", "normalization": "row_sum"}, "row sums"),
        ({"form": "angular", "center": True, "normalization": "row_sum"}, "center"),
        ({"form": "angular", "center": True, "normalization": "gain", "constant": "token"}, "center"),
        ({"form": "angular", "normalization": "softmax"}, "normalization"),
        ({"form": "snippet", "constant": "none"}, "constant"),
        ({"eps": 0}, "eps"),
    ],
)
def test_invalid_forms_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_of(values)


def test_form_can_not_be_changed_under_a_layer() -> None:
    with pytest.raises(ValidationError):
        config_of({}).eps = 1.0  # type: ignore[misc]


def test_an_unknown_key_names_those_of_the_form() -> None:
    with pytest.raises(ValueError, match="form landmarks has no key 'center'; it has form, prefix_rows"):
        config_of({"center": True})


def test_an_unknown_form_names_those_there_are() -> None:
    known = "landmarks, features, angular, snippet"
    with pytest.raises(ValueError, match=f"form 'cosine' is not known; the linear forms are {known}"):
        config_of({"form": "cosine"})
