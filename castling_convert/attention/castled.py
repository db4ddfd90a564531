"""What every castled attention layer is, whatever its linear form: a training form and a folded form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import AttentionConfig
from .depthwise import depthwise_conv, depthwise_residual, patches_residual
from .grid import TokenGrid
from .local import attention, window_softmax
from .masked_softmax import CLOSED, masked_softmax
from .reader import Reader, Reading, Regions, refuse_mask

Rotation = Callable[[Tensor, Tensor, TokenGrid], tuple[Tensor, Tensor]]
"""q and k, [B, heads, N, d], turned by the angles of their places on the grid."""
WINDOW_SHARE = 0.3
"""What a window counts for beside the linear form before anything is trained."""


@dataclass
class Projections:
    """What a castled layer keeps of the softmax layer it replaces: the trained modules themselves.

    `qkv` maps [B, N, C] to [B, N, 3·heads·d], ordered q, k, v; `proj` maps [B, N, heads·d] back.
    `norm` acts on the merged heads and `gate` multiplies them by a sigmoid, where the model has them; `rotation` turns
    q and k after their norms.
    """

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    head_dim: int
    softmax_scale: float
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    gate: nn.Linear | None = None
    rotation: Rotation | None = None
    proj_drop: float = 0.0

    @property
    def weight(self) -> Tensor:
        """Any of its parameters: their type and their device."""
        return self.qkv.weight


def merge_heads(y: Tensor) -> Tensor:
    """[B, heads, N, d] to [B, N, heads·d]."""
    return y.transpose(1, 2).flatten(2)


class CastledBase(nn.Module):
    """What both forms share: projections, softmax of prefix tokens and windows, depthwise residual, and
    the way from tokens to tokens."""

    window_share: Tensor | None
    windows_apart = True
    """Whether windows have a softmax of their own beside the linear form, and are not a part of it."""

    reader: Reader | None

    def __init__(self, source: Projections | Reader, config: AttentionConfig, grid: TokenGrid) -> None:
        super().__init__()
        self.grid = grid
        self.num_heads = source.num_heads
        self.head_dim = source.head_dim
        self.softmax_scale = source.softmax_scale
        if isinstance(source, Reader):
            self.config = config.where(on_grid=source.on_grid, takes_windows=source.takes_windows)
            self.reader = source
            self.dim, self.key_dim, self.value_dim = source.dim, source.head_dim + source.extra, source.value_dim
            vars(self).update(source.asked)
        else:
            self.config = config
            self.reader = None
            self.dim, self.key_dim, self.value_dim = source.qkv.in_features, source.head_dim, source.head_dim
            self._keep(source)
        self.depthwise = depthwise_conv(self.config, self.num_heads, self.value_dim)
        if self.depthwise is not None:
            self.depthwise.to(source.weight)

    def _keep(self, source: Projections) -> None:
        self.qkv = source.qkv
        self.q_norm = source.q_norm
        self.k_norm = source.k_norm
        self.norm = source.norm
        self.gate = source.gate
        self.rotation = source.rotation
        self.proj = source.proj

    def forward(self, *inputs: Any, **more: Any) -> Any:
        """What the softmax layer takes to what it returns: with projections alone tokens [B, N, C] to tokens."""
        if self.reader is None:
            return self.of_tokens(*inputs, **more)
        reading = self.reader.read(*inputs, **more)
        return self.reader.write(self.attend_reading(reading), reading)

    @property
    def numbers(self) -> int:
        """How many numbers come in for one image."""
        return self.dim * (self.grid.tokens if self.reader is None else self.reader.tokens_in)

    def tokens(self, output: Any) -> Tensor:
        """What this layer or the softmax layer returns, as tokens [B, N, C]."""
        return output if self.reader is None else self.reader.tokens(output)

    def of_tokens(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, rope: Tensor | None = None
    ) -> Tensor:
        """Tokens [B, N, C] to tokens [B, N, C]. Attention masks have no linear form and are refused. The angles `rope`
        that a model hands its layers are not read: a layer makes them itself, so that it can be run alone."""
        refuse_mask(attn_mask, is_causal)
        y = self.norm(self.attend(x))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.project(y)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of the tokens x, each [B, heads, N, d]."""
        q, k, v = self.projected(x)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if self.rotation is None else (*self.rotation(q, k, self.grid), v)

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """`heads` before their norms."""
        return self.apart(self.qkv(x))

    def apart(self, joint: Tensor) -> tuple[Tensor, ...]:
        """q, k and v, each [B, heads, N, d], of [B, N, 3·heads·d]: taken apart by one node of a graph."""
        B, N, _ = joint.shape
        return joint.reshape(B, N, 3 * self.num_heads, self.head_dim).transpose(1, 2).split(self.num_heads, 1)

    @property
    def has_rows(self) -> bool:
        """Whether exact softmax rows take the place of what the linear form says of prefix tokens."""
        return self.config.prefix_rows and self.grid.prefix > 0

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The linear form itself: q, k, v, [B, heads, N, d], to [B, heads, N, d]."""
        raise NotImplementedError

    def linear_within(self, q: Tensor, k: Tensor, v: Tensor, regions: Regions) -> Tensor:
        """The linear form within regions, [B, heads, N_q, d_v]; for forms whose `FormLayers` say that they have it."""
        raise NotImplementedError(f"the linear form {self.config.form} has no masks")

    def patches(self, y: Tensor) -> Tensor:
        """Of the output of `linear`, what is of patches."""
        return y[:, :, self.grid.prefix :]

    def attend(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] to merged heads, [B, N, heads·d]."""
        return self.attend_linearly(x, *self.heads(x))

    def attend_reading(self, reading: Reading) -> Tensor:
        """What a reader has read to merged heads, [B, N_q, heads·d_v]."""
        q, k = reading.extended()
        if reading.regions is None:
            return self.attend_linearly(None, q, k, reading.v)
        y = self.linear_within(q, k, reading.v, reading.regions)
        if self.has_rows:
            first, regions = q[:, :, : self.grid.prefix], reading.regions
            apart = replace(regions, queries=regions.queries[:, : self.grid.prefix]).bias(q.dtype)
            y = torch.cat([attention(first, k, reading.v, self.softmax_scale, apart), y[:, :, self.grid.prefix :]], 2)
        y = merge_heads(y)
        return y if self.depthwise is None else y + self.residual_within(reading.v, reading.regions)

    def residual_within(self, v: Tensor, regions: Regions) -> Tensor:
        """The depthwise residual on v, [B, heads, N, d], where regions do not see each other, [B, N, heads·d]."""
        assert self.depthwise is not None
        parts = []
        for number in range(regions.count):
            inside = (regions.keys == number).to(v.dtype)[:, None, :, None]
            found = depthwise_residual(self.depthwise, v * inside, self.config, self.grid)
            parts.append(found * inside[:, 0])
        return torch.stack(parts).sum(0)

    def attend_linearly(self, x: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend` without the masked branch, on tokens x, where they were not read, and their q, k and v."""
        return self.finish(self.linear(q, k, v), x, q, k, v)

    def finish(self, y: Tensor, x: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output y of the linear form on tokens x with all that stands beside it, heads merged."""
        if self.window_share is None and not self.has_rows:
            y = merge_heads(y)
            return y if self.depthwise is None else y + depthwise_residual(self.depthwise, v, self.config, self.grid)
        patches = merge_heads(self.patches(y))
        if self.window_share is not None:
            windows = window_softmax(q, k, v, self.softmax_scale, self.grid, self.config.window)
            patches = patches + self.window_share.flatten().repeat_interleave(self.value_dim) * (windows - patches)
        rows = self.rows(x, q, k, v) if self.has_rows else y[:, :, : self.grid.prefix]
        return self.joined(rows, patches, v)

    def joined(self, rows: Tensor, patches: Tensor, v: Tensor) -> Tensor:
        """The outputs of prefix tokens, [B, heads, prefix, d], those of the patches, [B, N - prefix, heads·d], and the
        depthwise residual of v, [B, heads, N, d], as [B, N, heads·d]."""
        conv, on_grid = self.depthwise, self.config.depthwise == "grid"
        if conv is not None and on_grid:
            patches = patches + patches_residual(conv, v, self.grid)
        y = torch.cat([merge_heads(rows), patches], 1) if self.grid.prefix else patches
        return y if conv is None or on_grid else y + depthwise_residual(conv, v, self.config, self.grid)

    def rows(self, x: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax of the prefix tokens over all tokens, [B, heads, prefix, d]."""
        return attention(q[:, :, : self.grid.prefix], k, v, self.softmax_scale)

    def project(self, y: Tensor) -> Tensor:
        return self.proj(y)


class CastledAttention(CastledBase):
    """Training form: a linear form, what stands beside it, and the masked softmax branch.

    Against the public snippet: a pretrained softmax layer's projections are kept, and the linear part takes exactly
    the softmax mass that the mask releases,

        y = (S∘M) v + (1 - rowsum(S∘M)) · linear,

    so a fully open mask (threshold 0) is the softmax of the layer's own q and k, and a closed one the linear form
    with its windows and its residual. (`snippet` adds the branch as the snippet does.) Once q and k have been trained,
    that is the teacher no more; `open_to` puts the teacher's own layer in the branch's place, on a gate alone.

    The mask M is gate · [S > threshold], two scalar buffers set by `set_mask`; at a threshold of 1 or a
    gate of 0 the layer is closed and skips the branch. `density` holds the share of softmax entries kept
    in the last forward, times the gate.
    """

    threshold: Tensor
    mask_gate: Tensor
    density: Tensor
    other: nn.Module | None

    def __init__(self, source: Projections | Reader, config: AttentionConfig, grid: TokenGrid) -> None:
        super().__init__(source, config, grid)
        weight = source.weight
        share = weight.new_full((source.num_heads, 1, 1), WINDOW_SHARE)
        self.window_share = nn.Parameter(share) if self.config.window and self.windows_apart else None
        self.proj_drop = nn.Dropout(0.0 if isinstance(source, Reader) else source.proj_drop)
        self.register_buffer("threshold", torch.zeros((), device=weight.device), persistent=False)
        self.register_buffer("mask_gate", torch.ones((), device=weight.device), persistent=False)
        self.register_buffer("density", torch.ones((), device=weight.device), persistent=False)
        self.closed = False
        self.fully_open = True  # no entry is dropped: the threshold is zero
        self.open_to(None)

    def set_mask(self, threshold: float, gate: float = 1.0) -> None:
        """Drop softmax weights at or below `threshold` and multiply the others by `gate`.

        A threshold of 1 or more, or a gate of 0, closes the mask exactly.
        """
        self.closed = threshold >= CLOSED or gate <= 0
        self.fully_open = threshold <= 0
        self.threshold.fill_(threshold)
        self.mask_gate.fill_(gate)
        if self.closed:
            self.density.zero_()

    def open_to(self, layer: nn.Module | None) -> None:
        """Mix in the outputs of `layer` where the mask is open, in place of the softmax of this layer's q and k."""
        self.__dict__["other"] = layer  # no submodule: it is neither trained nor saved with this one

    def forward(self, *inputs: Any, **more: Any) -> Any:
        """As in folded form, with what the mask leaves open."""
        y = super().forward(*inputs, **more)
        if self.closed or self.other is None:
            return y
        self.density = self.mask_gate.clone()
        other = self.other(*inputs, **more)
        if isinstance(y, tuple):
            return (y[0] + self.mask_gate * (other[0] - y[0]), *y[1:])
        return y + self.mask_gate * (other - y)

    @property
    def is_linear(self) -> bool:
        """Whether `attend` is the linear form with what stands beside it, and no branch."""
        return self.closed or self.other is not None

    def added(self) -> list[nn.Parameter]:
        """The parameters that the softmax layer did not have, which start from scratch."""
        inherited = {id(p) for module in self._inherited() for p in module.parameters()}
        inherited -= set() if self.reader is None else {id(p) for p in self.reader.started()}
        return [parameter for parameter in self.parameters() if id(parameter) not in inherited]

    def _inherited(self) -> list[nn.Module]:
        if self.reader is not None:
            return [self.reader]
        gate = [self.gate] if self.gate is not None else []
        return [self.qkv, self.proj, self.q_norm, self.k_norm, self.norm, *gate]

    @torch.no_grad()
    def calibrate(self, *inputs: Any, **more: Any) -> None:
        """Fit what has a closed form to the layer's own softmax on what it is called with."""

    def with_softmax(self, *inputs: Any, **more: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k and v, as the linear form takes them, and the output of the layer's own softmax, [B, heads, N_q, d]."""
        if self.reader is None:
            q, k, v = self.heads(*inputs)
            return q, k, v, F.scaled_dot_product_attention(q, k, v, scale=self.softmax_scale)
        reading = self.reader.read(*inputs, **more)
        q, k, bias = reading.for_softmax()
        softmax = F.scaled_dot_product_attention(q, k, reading.v, attn_mask=bias, scale=self.softmax_scale)
        return *reading.extended(), reading.v, softmax

    def attend(self, x: Tensor) -> Tensor:
        if self.is_linear:
            return super().attend(x)
        q, k, v = self.heads(x)
        return _mixed(*self.branch(q, k, v), self.attend_linearly(x, q, k, v))

    def attend_reading(self, reading: Reading) -> Tensor:
        if self.is_linear:
            return super().attend_reading(reading)
        q, k, bias = reading.for_softmax()
        return _mixed(*self.branch(q, k, reading.v, bias), super().attend_reading(reading))

    def branch(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Masked softmax as far as it is open, and its mass, [B, heads, N, 1]; with nothing to drop by the fused
        kernel, which never holds N x N entries."""
        if self.fully_open:
            masked = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.softmax_scale)
            mass = density = torch.ones_like(self.density)
        else:
            masked, mass, density = masked_softmax(q, k, v, self.softmax_scale, self.threshold, bias)
        self.density = density * self.mask_gate
        return masked * self.mask_gate, mass * self.mask_gate

    def project(self, y: Tensor) -> Tensor:
        return self.proj_drop(self.proj(y))


def _mixed(masked: Tensor, mass: Tensor, linear: Tensor) -> Tensor:
    """Masked softmax and its mass, as `branch` gives them, and what the linear form makes of the mass that is released,
    [B, N, heads·d]."""
    released = merge_heads((1 - mass).expand_as(masked))
    return merge_heads(masked) + released * linear
