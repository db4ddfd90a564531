"""What holds for every family whose layers have readers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import castling_convert as cc
from castling_convert.attention import Reading
from castling_convert.castling import castled_layers, close_masks
from castling_convert.distillation.losses import tap
from castling_convert.families import family_of, input_size_of
from castling_convert.folding import certify
from castling_convert.tasks import task_of
from tests.models import LANDMARKS, recipe, shake_


def images_for(model: Any, count: int = 2) -> Tensor:
    return torch.randn(count, *input_size_of(model))


def output(model: Any, images: Tensor) -> Tensor:
    """The one tensor of what a model returns that counts."""
    task = task_of(model)
    return task.head(model, task.features(model, images))


def exact(model: Any) -> Any:
    """A copy in float64, its parameters shaken."""
    return settled(shake_(copy.deepcopy(model)).double(), images_for(model).double())


@torch.no_grad()
def open_student_is_the_teacher(model: Any) -> Any:
    """Every attention layer is accounted for; returns the student."""
    teacher = exact(model)
    student = cc.castle(teacher, recipe(**LANDMARKS)).eval()
    x = images_for(model).double()
    expected = output(teacher, x)
    torch.testing.assert_close(output(student, x), expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    assert any(layer.status == "castled" for layer in student.castling.layers)
    return student


@torch.no_grad()
def closed_student_folds(model: Any, **attention: Any) -> None:
    """It differs from the teacher, and folding changes nothing."""
    teacher = exact(model)
    student = cc.castle(teacher, recipe(**(attention or LANDMARKS))).eval()
    close_masks(student)
    x = images_for(model).double()
    student = settled(shake_(student, 1), x)
    expected = output(student, x)
    assert (expected - output(teacher, x)).abs().max() > 1e-6
    torch.testing.assert_close(output(cc.fold(student), x), expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        # Random networks of batch norms are too rough for float32.
        _, certificate = certify(student, x)
        assert certificate.float64_blocks


def pooling_of(layer: Any, reading: Reading, region: int) -> Tensor:
    """The shares of the keys in the landmarks of one region, [B, heads, M, N_k], written out."""
    _, k = reading.extended()
    logits = layer.directions @ k.transpose(-2, -1)
    if reading.regions is not None:
        logits = logits.masked_fill((reading.regions.keys != region)[:, None, None], -torch.inf)
    return logits.softmax(-1)


def matrix_of(layer: Any, reading: Reading) -> Tensor:
    """The explicit weights of landmarks, [B, heads, N_q, N_k], for a layer without prefix rows and windows."""
    q, k = reading.extended()
    count = 1 if reading.regions is None else reading.regions.count
    whole = 0.0
    for region in range(count):
        pooling = pooling_of(layer, reading, region).nan_to_num()
        entropy = -torch.special.xlogy(pooling, pooling).sum(-1)
        mass = layer.gain[..., 0] * entropy + layer.bias[..., 0]
        scores = layer.softmax_scale * q @ (pooling @ k).transpose(-2, -1) + mass[:, :, None]
        matrix = scores.softmax(-1) @ pooling
        if reading.regions is not None:
            matrix = matrix * (reading.regions.queries == region)[:, None, :, None]
        whole = whole + matrix
    assert isinstance(whole, Tensor)
    return whole


@torch.no_grad()
def linear_form_is_its_matrix(model: Any) -> None:
    """Of every castled layer as the model calls it: rows sum to one, no weight crosses regions, and what the layer
    returns is what the matrix makes of v."""
    student = cc.castle(exact(model), recipe(form="landmarks", landmarks=5, prefix_rows=False, depthwise="none")).eval()
    close_masks(shake_(student, 1))
    settled(student, images_for(model).double())
    layers = dict(castled_layers(student))
    with tap(student, layers) as seen:
        student(images_for(model).double())
    for name, layer in layers.items():
        inputs, more = seen.inputs[name]
        assert layer.reader is not None
        reading = layer.reader.read(*inputs, **more)
        matrix = matrix_of(layer, reading)
        torch.testing.assert_close(matrix.sum(-1), torch.ones_like(matrix[..., 0]))
        y = (matrix @ reading.v).transpose(1, 2).flatten(2)
        expected = layer.tokens(layer.reader.write(y, reading))
        torch.testing.assert_close(layer.tokens(seen.outputs[name]), expected, rtol=0, atol=1e-9)
        if reading.regions is not None:
            _nothing_crosses_regions(layer, reading, matrix)


def _nothing_crosses_regions(layer: Any, reading: Reading, matrix: Tensor) -> None:
    assert reading.regions is not None
    apart = reading.regions.queries[:, :, None] != reading.regions.keys[:, None]
    assert apart.any()
    assert (matrix.masked_select(apart[:, None]) == 0).all()
    other = (reading.regions.keys != 0)[:, None, :, None]  # whatever is there, region 0 does not see it
    changed = copy.copy(reading)
    changed.k, changed.v = (torch.where(other, torch.randn_like(x), x) for x in (reading.k, reading.v))
    before, after = layer.attend_reading(reading), layer.attend_reading(changed)
    here = (reading.regions.queries == 0)[..., None].expand_as(before)
    assert torch.equal(before[here], after[here])


def only_unreduced_keys_have_a_residual(model: Any, shapes: list[tuple[int, int, tuple[int, int]]]) -> None:
    """On the grid, of the layers with these numbers of tokens and of keys, and these grids; the last alone is not
    reduced."""
    layers = family_of(model).layers(model)
    assert [(layer.tokens, layer.keys, layer.grid) for layer in layers] == shapes
    student: Any = cc.castle(model, cc.Recipe.parse({"attention": LANDMARKS}, "test"))
    found = [student.get_submodule(layer.name).depthwise is not None for layer in layers]
    assert found == [layer.queries_are_keys for layer in layers] == [*(len(shapes) - 1) * [False], True]


@torch.no_grad()
def settled(model: Any, x: Tensor) -> Any:
    """In eval mode. Random networks with batch norms explode: these get the statistics of what they see, as after a
    training, and logits become about one."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        model(x)
        classifier, size = classifier_of(model), output(model.eval(), x).std()
        for parameter in classifier.parameters() if isinstance(classifier, nn.Linear) else ():
            parameter /= size
    return model.eval()


def classifier_of(model: Any) -> Any:
    """What timm calls so; of others None."""
    return model.get_classifier() if hasattr(model, "get_classifier") else None


def from_castle_to_onnx(model: Any, folder: Path, steps: int = 16, *, named: bool = True, atol: float = 1e-4) -> Any:
    """A few steps lower the loss of attention; fold, save, load, export with a dynamic batch and parity. Returns what
    was loaded. A model that is not `named` by timm is not saved and loaded."""
    torch.manual_seed(0)
    x = images_for(model)
    teacher = settled(shake_(copy.deepcopy(model)), x)
    config = cc.Recipe.parse({"distill": {"steps": steps, "batch_size": 2}, "attention": LANDMARKS}, "test")
    student = cc.castle(teacher, config)
    before = attention_error(student, teacher, x)
    cc.distill(student, teacher, [x], config, device="cpu")
    assert attention_error(student, teacher, x) < before
    loaded = folded = cc.fold(student)
    if named:
        cc.save(folded, folder / "bundle")
        loaded = cc.load(folder / "bundle")
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), folded(x), rtol=0, atol=0)
    cc.export(loaded, folder / "model.onnx", batch="dynamic", atol=atol)
    return loaded


@torch.no_grad()
def attention_error(student: Any, teacher: Any, x: Tensor) -> float:
    """The mean error of castled layers on what the teacher's layers receive, masks closed."""
    from castling_convert.distillation.losses import layer_error

    student = copy.deepcopy(student).eval()
    close_masks(student)
    layers = dict(castled_layers(student))
    with tap(teacher, layers) as seen:
        teacher(x)
    errors = []
    for name, layer in layers.items():
        inputs, more = seen.inputs[name]
        errors.append(layer_error(layer, layer(*inputs, **more), seen.outputs[name]))
    return torch.stack(errors).mean().item()


class EveryVariant:
    """Tests of every variant of a family, which the file of a subclass gives as its fixture `model`."""

    def accounted(self, model: Any, student: Any) -> None:
        """What has become of the layers: all of them are castled, unless a subclass says otherwise."""
        assert all(layer.status == "castled" for layer in student.castling.layers)

    def test_open_student_is_the_teacher(self, model: Any) -> None:
        self.accounted(model, open_student_is_the_teacher(model))

    def test_closed_student_folds(self, model: Any) -> None:
        closed_student_folds(model)

    def test_linear_form_is_its_matrix(self, model: Any) -> None:
        linear_form_is_its_matrix(model)
