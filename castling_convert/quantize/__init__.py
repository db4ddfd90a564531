"""Quantisation: one file per method behind a registry. A new method is one new file and one line in `QUANTIZERS`."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

from ..artifact.options import ExportOptions
from ..artifact.prepare import Deployable

QUANTIZERS = {"qdq": "onnx_qdq", "nncf": "nncf_ptq"}
"""Methods, and the modules here that have them; each is imported when it is used."""


class Quantizer(Protocol):
    """What a method's module offers."""

    def quantize(self, graph: Any, prepared: Deployable, options: ExportOptions) -> tuple[Any, dict[str, Any]]:
        """The float32 `graph` of `prepared`, in the method's own representation, in int8; and notes for the user."""
        ...


def quantizer(name: str) -> Quantizer:
    """The method of that name in `QUANTIZERS`."""
    return import_module(f".{QUANTIZERS[name]}", __name__)
