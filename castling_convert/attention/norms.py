"""Lengths of vectors, safe on zero vectors and in half precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(x: Tensor, eps: float, length: float = 1.0) -> Tensor:
    """x / |x| · length over the last axis, zero for zero vectors.

    Written as `rms_norm` with weight length/√d: one RMSNormalization node in ONNX, computed in float32
    for half-precision inputs, where a sum of squares would overflow.
    """
    d = x.shape[-1]
    return F.rms_norm(x, (d,), weight=x.new_full((d,), length * d**-0.5), eps=eps)


def wide(x: Tensor) -> Tensor:
    """x in float32 at least, for what is summed over tokens: at 4,096 of them float16 sums overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l2_normalize(z: Tensor) -> Tensor:
    """z / |z| over the last axis; zero where the public snippet divides zero by zero."""
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True, dtype=torch.promote_types(z.dtype, torch.float32))
    return (z / torch.where(norm > 0, norm, torch.ones_like(norm))).to(z.dtype)
