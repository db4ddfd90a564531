"""An ONNX file in onnxruntime, and what it says of itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..errors import ExportError, first_line
from ..version import __version__
from .options import ExportOptions
from .runner import DIGEST, IDENTITY, PRECISION, SIGNATURE, Runner
from .signature import Signature


class OnnxModel(Runner):
    """An ONNX file in onnxruntime, or `content` in its place; with `threads`, one of several in a process.

    Raises:
        ExportError: the file is no ONNX file, or onnxruntime can't run it.
    """

    def __init__(
        self,
        path: Path,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
        content: bytes | None = None,
        threads: int | None = None,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Where the CPU has no VNNI, int8 products of onnxruntime overflow unless it is told to be precise.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
            # Threads that spin on after a call take the cores from the next session of this process.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = onnxruntime.InferenceSession(content or path, options, providers=list(providers))
        except Exception as error:
            first = first_line(error)
            why = "it has no kernel for that" if "NOT_IMPLEMENTED" in first else "damaged or no ONNX file?"
            raise ExportError(f"{path} can't be run by onnxruntime ({why}): {first}") from error
        taken = self.session.get_inputs()[0]
        metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        if SIGNATURE in metadata:
            signature = Signature.from_json(metadata[SIGNATURE])
        else:
            signature = Signature(tuple(taken.shape[1:]))
        super().__init__(signature, metadata, taken.shape[0] if isinstance(taken.shape[0], int) else None)
        self.providers: list[str] = self.session.get_providers()
        self.name = taken.name

    def run(self, values: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.name: values})[0]


def describe(proto: onnx.ModelProto, signature: Signature, options: ExportOptions) -> None:
    """Say in the file where it comes from and what it takes."""
    proto.producer_name, proto.producer_version = "castling-convert", __version__
    values = {PRECISION: options.precision, SIGNATURE: signature.to_json(), DIGEST: digest(proto)}
    if options.identity is not None:
        values[IDENTITY] = options.identity
    del proto.metadata_props[:]
    for key, value in values.items():
        proto.metadata_props.add(key=key, value=value)


def digest(proto: onnx.ModelProto) -> str:
    """SHA-256 of what is computed: the graph, and the operator sets it is written in."""
    said = hashlib.sha256(proto.graph.SerializeToString(deterministic=True))
    for opset in proto.opset_import:
        said.update(opset.SerializeToString(deterministic=True))
    return said.hexdigest()
