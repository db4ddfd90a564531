"""What the configs of all linear forms have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AttentionConfig(BaseModel):
    """A castled attention layer: a linear form, and what stands beside it. Each form has a subclass.

    Attributes:
        form: the linear form, a name in `attention.forms.FORMS`.
        prefix_rows: class and register tokens attend by softmax, exactly: a few rows of N weights.
        window: side of the windows of the patch grid in which patches also attend by softmax, 0 for none.
            Windows do not overlap; N·window² weights a head.
        depthwise: the depthwise convolution on v. `grid`: k x k per channel on the patch grid, prefix
            tokens left out; `tokens`: (k, 1) per head along the flattened sequence; or `none`.
        kernel_size: k, odd.
        eps: added to the mean square of q and k before the root, so that zero vectors stay zero.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: str
    prefix_rows: bool = False
    window: int = Field(default=0, ge=0, le=64)
    depthwise: Literal["grid", "tokens", "none"] = "grid"
    kernel_size: int = Field(default=5, ge=1, le=31)
    eps: float = Field(default=1e-6, gt=0, le=1e-2)

    @property
    def needs_grid(self) -> bool:
        """Whether patches have to lie on a grid."""
        return self.window > 0 or self.depthwise == "grid"

    @model_validator(mode="after")
    def _has_a_middle(self) -> AttentionConfig:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {self.kernel_size}")
        return self
