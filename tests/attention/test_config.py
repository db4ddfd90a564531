from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from castling_convert.attention import AttentionConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel_size": 4}, "odd"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"constant": "token", "normalization": "row_sum"}, "row sums"),
        ({"center": True, "normalization": "row_sum"}, "center"),
        ({"center": True, "normalization": "l2"}, "center"),
        ({"center": True, "normalization": "gain", "constant": "token"}, "center"),
        ({"eps": 0}, "eps"),
        ({"normalization": "softmax"}, "normalization"),
        ({"kernel": 3}, "kernel"),
    ],
)
def test_invalid_forms_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AttentionConfig(**values)


def test_form_can_not_be_changed_under_a_layer() -> None:
    with pytest.raises(ValidationError):
        AttentionConfig().eps = 1.0  # type: ignore[misc]
