"""Precisions: what a model computes in, and whether a method of quantisation works on its graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .parity import Tolerance


@dataclass(frozen=True)
class Precision:
    """One precision of artifacts.

    Attributes:
        dtype: what the model is traced in, its float32 islands excepted.
        tolerance: how far an artifact's outputs may be from the float32 model's.
        quantized: whether the graph is then quantised, by the format's own method.
    """

    name: str
    dtype: torch.dtype
    tolerance: Tolerance
    quantized: bool = False


PRECISIONS = {
    found.name: found
    for found in (
        Precision("fp32", torch.float32, Tolerance(atol=1e-4)),
        Precision("fp16", torch.float16, Tolerance(atol=1e-2, rtol=1e-2)),
        Precision("bf16", torch.bfloat16, Tolerance(atol=1e-1, rtol=1e-1)),
        Precision("int8", torch.float32, Tolerance(noise=0.1), quantized=True),
    )
}
"""From the finest to the coarsest."""
DEFAULT = "fp32"
