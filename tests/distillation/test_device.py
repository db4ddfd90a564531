"""The caller's own accelerate, before and after a distillation in the same process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

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
