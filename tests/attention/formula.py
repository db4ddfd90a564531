"""The formulas of castled attention, evaluated straight from their definition. Independent of the package:
explicit N x N weights, shifted sums instead of convolutions, and the kernels' own constants."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def heads_of(qkv: Any, x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, [B, heads, N, d]."""
    B, N, _ = x.shape
    y = (x @ qkv.weight.T + qkv.bias).view(B, N, 3, heads, -1)
    return y[:, :, 0].transpose(1, 2), y[:, :, 1].transpose(1, 2), y[:, :, 2].transpose(1, 2)


def unit_rows(x: Tensor, eps: float) -> Tensor:
    d = x.shape[-1]
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() / math.sqrt(d)


def angular(q: Tensor, k: Tensor, v: Tensor, gain: Tensor, config: Any) -> Tensor:
    """The angular form, [B, heads, N, d]."""
    N = v.shape[-2]
    cosine = unit_rows(q, config.eps) @ unit_rows(k, config.eps).transpose(-2, -1)
    if config.normalization == "row_sum":
        weights = 0.5 + gain * cosine / math.pi
        return weights @ v / weights.sum(-1, keepdim=True)
    own = v if config.constant == "token" else v.mean(-2, keepdim=True).expand_as(v)
    if config.center:
        cosine = cosine - cosine.mean(-1, keepdim=True)
    return own + gain * (2 / math.pi) * (cosine / N) @ v


def normalised_sum(q: Tensor, k: Tensor, v: Tensor, config: Any, sparse: Tensor) -> Tensor:
    """The snippet's form, with the masked softmax matrix `sparse`, which only it adds before its norm."""
    cosine = unit_rows(q, config.eps) @ unit_rows(k, config.eps).transpose(-2, -1)
    own = v if config.constant == "token" else v.mean(-2, keepdim=True).expand_as(v)
    summed = cosine @ v if config.constant == "token" else cosine @ v / v.shape[-2]
    z = sparse @ v + 0.5 * own + summed / math.pi
    norm = z.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, z / norm, torch.zeros_like(z))


def features(q: Tensor, k: Tensor, v: Tensor, layer: Any, config: Any) -> Tensor:
    """Learned angular features, from relu and powers, coordinate by coordinate."""

    def halves(z: Tensor) -> tuple[Tensor, Tensor]:
        u = unit_rows(z, config.eps)
        return u.relu() ** config.power, (-u).relu() ** config.power

    queries, keys = halves(q @ layer.rotate_q), halves(k @ layer.rotate_k)
    weights = sum(a @ b.transpose(-2, -1) for a, b in zip(queries, keys, strict=True))
    weights = weights * (k @ layer.key_direction).exp().transpose(-2, -1)
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights @ v / total, torch.zeros_like(v))


def landmarks(q: Tensor, k: Tensor, v: Tensor, layer: Any, place: tuple[int, int, int]) -> Tensor:
    """Softmax over what the layer's directions pool, and for patches over their windows' patches."""
    keys, values, numbers = [], [], []
    for m in range(layer.config.landmarks):
        weights = (k @ layer.directions[:, m, :, None]).exp()
        keys.append((weights * k).sum(2) / weights.sum(2))
        values.append((weights * v).sum(2) / weights.sum(2))
        share = weights / weights.sum(2, keepdim=True)
        numbers.append((-(share * share.log()).sum(2) * layer.gain[:, 0] + layer.bias[:, m]).exp())
    keys, values, numbers = torch.stack(keys, 2), torch.stack(values, 2), torch.stack(numbers, -1)
    far = (q @ keys.transpose(-2, -1) / math.sqrt(q.shape[-1])).exp() * numbers
    y, total = far @ values, far.sum(-1, keepdim=True)
    if layer.config.window:
        near = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).exp() * in_window(layer.config.window, *place)
        y, total = y + near @ v, total + near.sum(-1, keepdim=True)
    return y / total


def in_window(side: int, height: int, width: int, prefix: int) -> Tensor:
    """1 where two tokens are patches of one window, [N, N]."""
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    window = (rows[:, None] * width + columns[None, :]).flatten()
    same = torch.zeros(prefix + height * width, prefix + height * width, dtype=torch.float64)
    same[prefix:, prefix:] = (window[:, None] == window[None, :]).double()
    return same


def windows(q: Tensor, k: Tensor, v: Tensor, scale: float, side: int, height: int, width: int, prefix: int) -> Tensor:
    """Softmax of every patch over the patches whose row and column fall into the same window; prefix rows are zero."""
    same = in_window(side, height, width, prefix)[prefix:, prefix:] > 0
    logits = (q[:, :, prefix:] @ k[:, :, prefix:].transpose(-2, -1)) * scale
    out = torch.zeros_like(v)
    out[:, :, prefix:] = logits.masked_fill(~same, -math.inf).softmax(-1) @ v[:, :, prefix:]
    return out


def residual(weight: Tensor | None, v: Tensor, config: Any, height: int, width: int, prefix: int) -> Tensor:
    """The depthwise residual, [B, heads, N, d]: one shifted copy of v for each place of the kernel."""
    out = torch.zeros_like(v)
    if weight is None:
        return out
    heads, N, d = v.shape[1:]
    k, half = config.kernel_size, config.kernel_size // 2
    if config.depthwise == "tokens":
        for shift in range(-half, half + 1):
            to = slice(max(0, -shift), min(N, N - shift))
            at = slice(max(0, shift), min(N, N + shift))
            if abs(shift) < N:
                out[:, :, to] += weight[:, 0, shift + half, 0].view(heads, 1, 1) * v[:, :, at]
        return out
    taps = weight[:, 0].view(heads, 1, 1, d, k, k)
    picture = v[:, :, prefix:].unflatten(2, (height, width))
    padded = torch.zeros(*picture.shape[:2], height + 2 * half, width + 2 * half, d, dtype=v.dtype)
    padded[:, :, half : half + height, half : half + width] = picture
    patches = torch.zeros_like(picture)
    for r in range(k):
        for c in range(k):
            patches += taps[..., r, c] * padded[:, :, r : r + height, c : c + width]
    out[:, :, prefix:] = patches.flatten(2, 3)
    return out


def castled(layer: Any, x: Tensor, threshold: float) -> Tensor:
    """What a training-form layer computes on x, [B, N, C], at a mask threshold; 1 is a closed mask."""
    config, grid = layer.config, layer.grid
    place = (grid.height, grid.width, grid.prefix)
    q, k, v = heads_of(layer.qkv, x, layer.num_heads)
    scale = q.shape[-1] ** -0.5
    softmax = (q @ k.transpose(-2, -1) * scale).softmax(-1)
    sparse = torch.where(softmax > threshold, softmax, torch.zeros_like(softmax))
    if threshold >= 1:
        sparse = torch.zeros_like(softmax)
    if config.form == "angular":
        y = angular(q, k, v, layer.gain, config)
    elif config.form == "snippet":
        y = normalised_sum(q, k, v, config, sparse)
    elif config.form == "landmarks":
        y = landmarks(q, k, v, layer, place)
    else:
        y = features(q, k, v, layer, config)
    prefix = grid.prefix
    if config.window and config.form != "landmarks":
        share = layer.window_share * (torch.arange(v.shape[2])[:, None] >= prefix)
        y = (1 - share) * y + share * windows(q, k, v, scale, config.window, *place)
    if config.prefix_rows:
        y = torch.cat([(softmax @ v)[:, :, :prefix], y[:, :, prefix:]], 2)
    weight = None if layer.depthwise is None else layer.depthwise.weight
    y = y + residual(weight, v, config, *place)
    if config.form != "snippet":
        y = sparse @ v + (1 - sparse.sum(-1, keepdim=True)) * y
    B, _, N, _ = y.shape
    return y.transpose(1, 2).reshape(B, N, -1) @ layer.proj.weight.T + layer.proj.bias


def snippet(x: Tensor, qkv: Any, dconv: Tensor, proj: Any, heads: int, threshold: float | None) -> Tensor:
    """The paper's public formula: q and k by their norms, 0.5·v, 1/π, output by its norm, then the (9, 1)
    depthwise convolution on v, [heads, 9]. None leaves the softmax term out."""
    q, k, v = heads_of(qkv, x, heads)
    z = 0.5 * v
    if threshold is not None:
        softmax = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        z = z + (softmax * (softmax > threshold)) @ v
    q_hat, k_hat = (t / t.norm(dim=-1, keepdim=True) for t in (q, k))
    z = z + q_hat @ (k_hat.transpose(-2, -1) @ v) / math.pi
    z = z / z.norm(dim=-1, keepdim=True)
    padded = torch.nn.functional.pad(v, (0, 0, 4, 4))
    z = z + sum(dconv[None, :, j, None, None] * padded[:, :, j : j + v.shape[2]] for j in range(9))
    return z.transpose(1, 2).flatten(2) @ proj.weight.T + proj.bias
