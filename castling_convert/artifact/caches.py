"""What TensorRT learns about an artifact on one machine, kept beside it: names that every road to TensorRT shares."""

from __future__ import annotations

from pathlib import Path


def timing_cache(artifact: Path) -> Path:
    """The file in which TensorRT's builder, ours or that of trtexec, keeps how fast kernels are on this GPU."""
    return artifact.with_suffix(".timing")


def engine_cache(artifact: Path) -> Path:
    """The folder in which onnxruntime's TensorRT provider keeps engines, and timings under names of its own."""
    return artifact.with_suffix(".trt")
