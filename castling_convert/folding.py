"""Fold: drop the closed softmax branch and absorb what can be absorbed, exactly."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import folded_form
from .castling import Castling, castled_layers
from .errors import CheckFailed, FoldError, ModelError, Wanted, takes
from .families import family_of

FLOAT64_TOLERANCE = 1e-10
FLOAT32_TOLERANCE = 1e-5
ROUNDINGS = 4
"""How many times what the trained model itself rounds by in float32 the folded one may be away from it: two that round
alike differ by somewhat more than the one of them does."""


@dataclass(frozen=True)
class FoldCertificate:
    """Relative errors, |folded - trained| / max|trained|, on the logits and on each block's output, and that of the
    trained model's own float32 logits against its float64 ones, which folding has no part in."""

    float64_logits: float
    float32_logits: float
    float32_rounding: float
    float64_blocks: dict[str, float]

    @property
    def float32_allowed(self) -> float:
        """1e-5, or so many times what the trained model itself rounds by: deep ones with large activations do by as
        much, folded or not."""
        return max(FLOAT32_TOLERANCE, ROUNDINGS * self.float32_rounding)

    @property
    def holds(self) -> bool:
        return self.float64_logits <= FLOAT64_TOLERANCE and self.float32_logits <= self.float32_allowed

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}


A_STUDENT = Wanted(nn.Module, ModelError, "a student, made by castle() and trained by distill()")


@takes(student=A_STUDENT)
def fold(student: nn.Module) -> nn.Module:
    """A copy of a trained student for inference: a plain module, no auxiliary branch left.

    What a form has learned beside the projections is multiplied into them or into one another where that is exact,
    LayerScale into the projection before it.

    Raises:
        FoldError: a mask is still open (the layers are named), or the model is not castled.
    """
    return fold_(copy.deepcopy(student))


@takes(student=A_STUDENT)
def fold_(student: nn.Module) -> nn.Module:
    """`fold` in place; returns `student`."""
    if not isinstance(getattr(student, "castling", None), Castling):
        raise FoldError("this model is not castled; call castle() and distill() first")
    layers = list(castled_layers(student))
    if not layers:
        raise FoldError("this model is folded already")
    still_open = [name for name, layer in layers if not layer.closed]
    if still_open:
        raise FoldError(f"masks are still open in {', '.join(still_open)}; distill() until they close")
    for name, layer in layers:
        student.set_submodule(name, folded_form(layer))
    family_of(student).absorb_layer_scale_(student)
    return student.eval()


@torch.no_grad()
def certify(student: nn.Module, images: Tensor) -> tuple[nn.Module, FoldCertificate]:
    """Fold `student` and compare the two on `images`, [B, C, H, W], in float64 and float32, on the CPU.

    Returns:
        The folded model in the student's own dtype, and the certificate.

    Raises:
        CheckFailed: the errors exceed 1e-10 (float64) or 1e-5 (float32); four times the model's own rounding in float32
            where that is more.
    """
    logits: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
    by_block: dict[str, float] = {}
    for dtype in (torch.float64, torch.float32):
        trained = copy.deepcopy(student).to("cpu", dtype).eval()
        expected, expected_blocks = _block_outputs(trained, images.to(dtype))
        actual, actual_blocks = _block_outputs(fold_(trained), images.to(dtype))
        logits[dtype] = actual, expected
        if dtype == torch.float64:
            by_block = {name: _relative_error(actual_blocks[name], out) for name, out in expected_blocks.items()}
    double, single = logits[torch.float64], logits[torch.float32]
    rounding = _relative_error(single[1], double[1])
    certificate = FoldCertificate(_relative_error(*double), _relative_error(*single), rounding, by_block)
    if not certificate.holds:
        raise CheckFailed(
            f"folding changed the model: relative error {certificate.float64_logits:.1e} in float64 (allowed "
            f"{FLOAT64_TOLERANCE:.0e}), {certificate.float32_logits:.1e} in float32 (allowed "
            f"{certificate.float32_allowed:.1e})"
        )
    return fold(student), certificate


def _block_outputs(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    outputs: dict[str, Tensor] = {}
    family = family_of(model)
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: outputs.__setitem__(name, _tensor(out))
        )
        for name in family.block_names(model)
    ]
    try:
        features = family.features(model, images)
        output = family.head(model, features)
        if not isinstance(output, Tensor):  # detections, whose number rounding can change; so what they are made of
            output = torch.cat([tokens.flatten() for tokens, _ in family.maps(model, features)])
        return output, outputs
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
