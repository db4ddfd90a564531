"""The small teachers of demo and benchmark."""

from __future__ import annotations

import pytest
import torch

from castling_convert.cli.demo import command as demo
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.spec import EMBEDDED
from castling_convert.demo.testbeds import TESTBEDS, train_teacher


def test_one_for_each_embedded_data_set_of_classes():
    assert set(TESTBEDS) == {name for name, made in EMBEDDED.items() if "classes" in made.holds}
    (choice,) = (option.type for option in demo.params if option.name == "data")
    assert list(choice.choices) == list(TESTBEDS)


@pytest.mark.parametrize(("name", "tokens", "shape"), [("digits", 37, (1, 24, 24)), ("relations", 65, (3, 32, 32))])
def test_a_teacher(name, tokens, shape):
    torch.rand(3)
    (teacher, _), (again, _) = (train_teacher(TESTBEDS[name], seed=1, steps=2) for _ in range(2))
    assert not teacher.training
    assert Preprocessing.of(teacher).input_size == shape
    assert teacher.patch_embed.num_patches + 1 == tokens
    assert teacher.num_classes == len(EMBEDDED[name].classes)
    weights, others = teacher.state_dict(), again.state_dict()
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    other, _ = train_teacher(TESTBEDS[name], seed=2, steps=2)
    assert not torch.equal(other.head.weight, teacher.head.weight)


@pytest.mark.slow
def test_a_teacher_learns():
    _, top1 = train_teacher(TESTBEDS["digits"], seed=0, steps=200)
    assert top1 > 70
