"""The caller's own accelerate, before and after a distillation in the same process."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

import castling_convert as cc
from castling_convert.distillation import loop
from castling_convert.distillation.device import accelerate_apart
from castling_convert.distillation.loop import distill
from castling_convert.recipe import Recipe


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    with accelerate_apart():
        yield


def run(student, teacher, batches, precision="bf16"):
    overrides = ("distill.steps=2", "distill.batch_size=4", f"distill.precision={precision}")
    distill(student, teacher, batches, Recipe.load("castling", overrides), device="cpu")


def test_a_caller_goes_on_with_its_own(student, teacher, batches):
    model = torch.nn.Linear(2, 2)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    run(student, teacher, batches)
    assert accelerator.mixed_precision == "no"
    assert accelerator.device == torch.device("cpu")
    assert accelerator.gradient_accumulation_steps == 4
    assert accelerator.is_main_process
    for step in range(4):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(1, 2)).sum())
            optimizer.step()
            assert accelerator.sync_gradients == (step == 3)
    assert AcceleratorState().mixed_precision == "no"


def test_a_caller_that_has_none_is_left_with_none(student, teacher, batches):
    run(student, teacher, batches)
    assert PartialState._shared_state == AcceleratorState._shared_state == {}
    assert Accelerator(cpu=True).mixed_precision == "no"


def test_it_is_back_after_an_error_too(student, teacher):
    accelerator = Accelerator(cpu=True)
    with pytest.raises(Exception, match="no batch"):
        run(student, teacher, [])
    assert accelerator.mixed_precision == "no"


def test_half_precision_learns_what_single_learns(teacher, batches, monkeypatch):
    """fp16 scales the loss, and every weight is in the optimisers of both phases, and each could take the scale off.
    The scaler is torch's for the CPU, where the command refuses fp16 because it is slow."""

    def in_half(*_: object) -> Accelerator:
        accelerator = Accelerator(cpu=True)
        AcceleratorState._shared_state["_mixed_precision"] = "fp16"
        accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=8.0), True
        return accelerator

    def trained(precision: str) -> tuple[dict[str, torch.Tensor], list[float]]:
        student, norms = cc.castle(teacher), []
        clip = torch.nn.utils.clip_grad_norm_
        with monkeypatch.context() as patch:
            if precision == "fp16":
                patch.setattr(loop, "make_accelerator", in_half)
            patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a, **k: norms.append(clip(*a, **k)) or norms[-1])
            overrides = ("distill.steps=8", "distill.batch_size=4", f"distill.precision={precision}")
            distill(student, teacher, batches, Recipe.load("castling", overrides), device="cpu")
        return student.state_dict(), torch.stack(norms).tolist()

    (single, norms), (half, half_norms) = trained("fp32"), trained("fp16")
    assert half_norms == pytest.approx(norms, rel=0.15)
    before = cc.castle(teacher).state_dict()
    moved = math.hypot(*[(single[name] - tensor).norm() for name, tensor in before.items()])
    apart = math.hypot(*[(single[name] - tensor).norm() for name, tensor in half.items()])
    assert moved > 0.1
    assert apart < 0.3 * moved
