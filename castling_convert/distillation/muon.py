"""Muon, with its arithmetic in a precision that every machine has kernels for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM, BETAS, EPS = 0.95, (0.9, 0.999), 1e-8
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


def orthogonalize(matrix: Tensor) -> Tensor:
    """Nearly the nearest matrix with orthonormal rows or columns, by five quintic Newton-Schulz iterations in float32.

    Other implementations iterate in bfloat16, for which many processors have no kernels: there a step of a ViT-S then
    takes fifty times as long.

    Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024.
    """
    a, b, c = COEFFICIENTS
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum on the matrices of groups without `use_fallback`, AdamW at `lr * fallback` on others.

    An update of an m x n matrix is orthogonal times max(1, m/n)^½, so that a rate means the same at any width.
    """

    def __init__(self, params: Iterable[Any], lr: float, fallback: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "use_fallback": False})
        self.fallback = fallback

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the gradients that are there."""
        for group in self.param_groups:
            lr = group["lr"] * (self.fallback if group["use_fallback"] else 1.0)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - lr * group["weight_decay"])
                update = self._adam if group["use_fallback"] else self._orthogonal
                parameter.add_(update(parameter.grad, self.state[parameter]), alpha=-lr)

    @staticmethod
    def _orthogonal(gradient: Tensor, state: dict[str, Any]) -> Tensor:
        momentum = state.setdefault("momentum", torch.zeros_like(gradient)).lerp_(gradient, 1 - MOMENTUM)
        rows, columns = gradient.shape
        return orthogonalize(gradient.lerp(momentum, MOMENTUM)) * max(1.0, rows / columns) ** 0.5

    @staticmethod
    def _adam(gradient: Tensor, state: dict[str, Any]) -> Tensor:
        steps = state.setdefault("step", torch.zeros((), dtype=torch.float32)).add_(1).item()
        mean = state.setdefault("mean", torch.zeros_like(gradient)).lerp_(gradient, 1 - BETAS[0])
        square = state.setdefault("square", torch.zeros_like(gradient)).lerp_(gradient.square(), 1 - BETAS[1])
        return mean / (1 - BETAS[0] ** steps) / ((square / (1 - BETAS[1] ** steps)).sqrt() + EPS)
