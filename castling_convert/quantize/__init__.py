"""Quantisation: one file per method behind a registry. A new method is one new file and one line in `QUANTIZERS`."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

from ..artifact.options import ExportOptions
from ..artifact.prepare import Deployable
from ..errors import ExportError, did_you_mean

QUANTIZERS = {"qdq": ".onnx_qdq", "nncf": ".nncf_ptq"}
"""Methods, and the modules that have them, with a dot before those of this package; imported when they are used."""


class Quantizer(Protocol):
    """What a method's module offers."""

    def quantize(self, graph: Any, prepared: Deployable, options: ExportOptions) -> tuple[Any, dict[str, Any]]:
        """The float32 `graph` of `prepared`, in the method's own representation, in int8; and notes for the user."""
        ...


def quantizer(name: str) -> Quantizer:
    """The method of that name in `QUANTIZERS`.

    Raises:
        ExportError: there is none.
    """
    if name not in QUANTIZERS:
        raise ExportError(
            f"no quantizer '{name}'{did_you_mean(name, QUANTIZERS) or ';'} there are {', '.join(QUANTIZERS)}"
        )
    return import_module(QUANTIZERS[name], __name__)
