"""The configs of the linear forms: what a recipe says of attention. pydantic alone, so that recipes need no torch."""

from __future__ import annotations

from typing import Any, Literal, Self

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

    def where(self, *, on_grid: bool, takes_windows: bool) -> Self:
        """Without what has no meaning in a layer whose queries are not its keys `on_grid`, or whose tokens are a window
        already."""
        without: dict[str, Any] = {} if on_grid and takes_windows else {"window": 0}
        without |= {} if on_grid else {"depthwise": "none"}
        return self.model_copy(update=without)

    @model_validator(mode="after")
    def _has_a_middle(self) -> AttentionConfig:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {self.kernel_size}")
        return self


class LandmarksConfig(AttentionConfig):
    """`attention.form: landmarks`.

    Attributes:
        landmarks: M, for every head.
        prefix_rows: as for every form, but on unless it is turned off.
    """

    form: Literal["landmarks"] = "landmarks"
    prefix_rows: bool = True
    landmarks: int = Field(default=64, ge=1, le=1024)


class FeaturesConfig(AttentionConfig):
    """`attention.form: features`.

    Attributes:
        power: p; the higher, the sharper.
        prefix_rows: as for every form, but on unless it is turned off.
    """

    form: Literal["features"] = "features"
    prefix_rows: bool = True
    power: Literal[2, 3] = 3


class AngularConfig(AttentionConfig):
    """`attention.form: angular`.

    Attributes:
        constant: the constant term of the kernel. `mean`: the mean of v over the tokens, as the kernel
            has it. `token`: each token's own v, as the paper's public snippet has it.
        normalization: `row_sum` divides by the sum of the weights, so the weights stay a convex average;
            `gain` divides by nothing and learns one gain per head for the linear term.
        center: with `gain`, take the mean unit key off the keys, which makes the weights of a row sum
            to one without a division.
    """

    form: Literal["angular"] = "angular"
    constant: Literal["mean", "token"] = "mean"
    normalization: Literal["row_sum", "gain"] = "gain"
    center: bool = True

    @model_validator(mode="before")
    @classmethod
    def _center_where_it_can_be(cls, values: Any) -> Any:
        """Keys are centred unless that is left out or has no meaning."""
        if isinstance(values, dict) and values.get("center") is None:
            plain = values.get("normalization", "gain") == "gain" and values.get("constant", "mean") == "mean"
            return {**values, "center": plain}
        return values

    @model_validator(mode="after")
    def _is_a_kernel(self) -> AngularConfig:
        if self.constant == "token" and self.normalization == "row_sum":
            raise ValueError("constant 'token' has row sums that can be zero: use it with normalization 'gain'")
        if self.center and (self.normalization != "gain" or self.constant != "mean"):
            raise ValueError("center needs normalization 'gain' and constant 'mean'")
        return self


class SnippetConfig(AttentionConfig):
    """`attention.form: snippet`.

    Attributes:
        constant: each `token`'s own v, as in the public snippet, or the `mean` of v as the kernel has it.
    """

    form: Literal["snippet"] = "snippet"
    constant: Literal["token", "mean"] = "token"
