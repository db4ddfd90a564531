"""The runtimes that are measured, each with a number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..artifact.runner import Runner
from ..exporting import FORMATS

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
"""What can be measured here, and the library that runs it."""


def runner(runtime: str, file: Path, threads: int) -> Runner:
    """An artifact in its runtime with that many threads."""
    if runtime == "onnx":
        from ..artifact.onnx_model import OnnxModel

        return OnnxModel(file, threads=threads)
    if runtime == "openvino":
        from ..exporting.openvino_ir import IrModel

        return IrModel(file, threads=threads)
    return FORMATS[runtime].exporter.open_artifact(file)


@contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """torch with `count` threads, or as many as it has; yields how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
