"""What is said when a run meets numbers that are not finite: which tensor was the first, and what helps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CastlingError, ModelError, RecipeError, WeightsError
from ..recipe import SettledDistill
from .losses import Call


def bad_weight(model: nn.Module) -> str | None:
    """The first of a model's parameters and buffers that holds a number that is not finite. Buffers may be infinite:
    bounds of clamps that clamp nothing are."""
    parameters = dict(model.named_parameters())
    for name, tensor in model.state_dict().items():
        bad = ~tensor.isfinite() if name in parameters else tensor.isnan()
        if bad.any():
            return name
    return None


@torch.no_grad()
def bad_output(model: nn.Module, *inputs: Any, **more: Any) -> str | None:
    """The first of a model's modules, in the order they return, that makes something of its inputs that is not finite;
    an empty name is the model itself."""
    found: list[str] = []

    def hook(name: str):  # type: ignore[no-untyped-def]
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        model(*inputs, **more)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def refuse_bad_weights(teacher: nn.Module) -> None:
    """Raise WeightsError for a teacher that there is nothing to learn from."""
    name = bad_weight(teacher)
    if name is not None:
        raise WeightsError(f"the teacher's {name} holds numbers that are not finite; give other weights with --weights")


def refuse_diverged(student: nn.Module, step: int, config: SettledDistill) -> None:
    """Raise ModelError for weights that are not finite after `step` steps."""
    name = bad_weight(student)
    if name is not None:
        raise ModelError(f"{name} is not finite after step {step}; {_lower_rate(step, config)}")


def explained(
    loss: Tensor,
    parts: dict[str, Tensor],
    step: int,
    config: SettledDistill,
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor,
    layer: tuple[str, Call] | None = None,
) -> CastlingError:
    """Why the loss is not finite after `step` steps, and what helps.

    Args:
        images: [B, C, H, W], finite ones, of this step or another.
        layer: which one it is in the first phase, and what its teacher's was called with.
    """
    where = f"the loss is {loss.item()} at step {step + 1}"
    precise = "" if config.precision == "fp32" else "use --set distill.precision=fp32, or "
    source = bad_output(teacher, images)
    if source is not None:
        return ModelError(
            f"{where}: the teacher's {source or 'output'} is not finite, though its weights and the images are; "
            f"{precise}give other weights with --weights"
        )
    for key, value in parts.items():
        factor = getattr(config.loss, key)
        if layer is None and value.isfinite() and not (factor * value).isfinite():
            return RecipeError(
                f"{where}: distill.loss.{key} is {factor:g}, too large for a loss of {value:.3g}; lower it"
            )
    name, (inputs, more) = layer or ("", ((images,), {}))
    part = student.get_submodule(name)
    weight_name, output_name = bad_weight(part), bad_output(part, *inputs, **more)
    if weight_name is not None:
        what = f"{f'{name}.{weight_name}'.strip('.')} is not finite"
    elif output_name is not None:
        what = f"the output of {f'{name}.{output_name}'.strip('.') or 'the student'} is not finite"
    else:
        what = f"{name or 'the student'} is too far from its teacher"
    if step == 0:
        return ModelError(f"{where}: {what}, before anything was learned; {precise}choose another attention.form")
    return ModelError(f"{where}: {what}; {_lower_rate(step, config)}")


def _lower_rate(step: int, config: SettledDistill) -> str:
    """Of the phase in which the last of `step` steps was made."""
    aligning = step <= config.aligned
    key, rate = ("align.lr", config.align.lr) if aligning else ("optimizer.lr", config.optimizer.lr)
    return f"lower the learning rate: --set distill.{key}={rate / 3:.1g}"
