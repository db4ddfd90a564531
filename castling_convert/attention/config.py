"""The one small config that says which castled attention is meant."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AttentionConfig(BaseModel):
    """Form of the castled attention. Symbols as in `attention.angular`.

    Attributes:
        constant: the constant term of the kernel. `mean`: the mean of v over the tokens, as the kernel
            has it. `token`: each token's own v, as the paper's public snippet has it.
        normalization: `row_sum` divides by the sum of the weights, so the weights stay a convex average;
            `l2` divides each output by its own L2 norm, as the public snippet does; `gain` divides by
            nothing and learns one gain per head for the linear term.
        center: with `gain`, take the mean unit key off the keys, which makes the weights of a row sum
            to one without a division.
        depthwise: the depthwise convolution on v. `grid`: k x k per channel on the patch grid, prefix
            tokens left out; `tokens`: (k, 1) per head along the flattened sequence; or `none`.
        kernel_size: k, odd.
        eps: added to the mean square of q and k before the root, so that zero vectors stay zero.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    constant: Literal["mean", "token"] = "mean"
    normalization: Literal["row_sum", "l2", "gain"] = "row_sum"
    center: bool = False
    depthwise: Literal["grid", "tokens", "none"] = "grid"
    kernel_size: int = Field(default=5, ge=1, le=31)
    eps: float = Field(default=1e-6, gt=0, le=1e-2)

    @property
    def sums_over_tokens(self) -> bool:
        """The public snippet's form: a sum over the tokens beside each token's own v, made one by `l2`."""
        return self.constant == "token" and self.normalization == "l2"

    @model_validator(mode="after")
    def _is_a_kernel(self) -> AttentionConfig:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {self.kernel_size}")
        if self.constant == "token" and self.normalization == "row_sum":
            raise ValueError("constant 'token' has row sums that can be zero: use it with normalization 'l2' or 'gain'")
        if self.center and (self.normalization != "gain" or self.constant != "mean"):
            raise ValueError("center needs normalization 'gain' and constant 'mean'")
        return self
