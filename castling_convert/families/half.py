"""Float32 islands in a model of half precision."""

from __future__ import annotations

from timm.layers import RmsNorm
from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm)


class Float32Norm(nn.Module):
    """A norm whose squares and sums are float32, whatever comes in; what goes out is as what came in."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)
