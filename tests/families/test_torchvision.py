"""torchvision's VisionTransformer and SwinTransformer: attention that takes windows apart itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

import castling_convert as cc
from castling_convert.castling import close_masks
from castling_convert.distillation.losses import tap
from castling_convert.families import family_of, input_size_of
from castling_convert.tasks import task_of
from tests.families import road
from tests.models import LANDMARKS, recipe

SECOND: dict[str, Any] = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}


def swin(size: tuple[int, int], **arguments: Any) -> Any:
    values: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2]}
    model: Any = SwinTransformer(**values, window_size=[4, 4], num_classes=10, **arguments)
    model.pretrained_cfg = {"input_size": (3, *size)}
    return model


VARIANTS = {
    "vit": lambda: VisionTransformer(32, 8, 2, 3, 48, 96, num_classes=10),
    "vit with a hidden head": lambda: VisionTransformer(32, 8, 1, 2, 32, 64, num_classes=10, representation_size=8),
    "swin": lambda: swin((32, 32)),
    "swin, padded": lambda: swin((40, 32)),
    "swin v2": lambda: swin((32, 32), **SECOND),
    "swin v2, padded": lambda: swin((24, 40), **SECOND),
}


def small(name: str) -> Any:
    torch.manual_seed(0)
    return VARIANTS[name]().eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


class TestEveryVariant(road.EveryVariant):
    pass


@torch.no_grad()
def test_two_parts_are_the_whole(model: Any) -> None:
    images, task, teacher = road.images_for(model).double(), task_of(model), road.exact(model)
    assert task.classes(model) == 10
    torch.testing.assert_close(task.head(teacher, task.features(teacher, images)), teacher(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "swin v2, padded"])
def test_from_castle_to_onnx(name: str, tmp_path: Path) -> None:
    road.from_castle_to_onnx(small(name), tmp_path, named=False)


@pytest.mark.slow
def test_half_precision(tmp_path: Path) -> None:
    student: Any = cc.castle(small("vit"), recipe(**LANDMARKS))
    close_masks(student)
    assert cc.export(cc.fold(student), tmp_path / "half.onnx", precision="fp16").is_file()


@torch.no_grad()
def test_a_castled_swin_takes_other_sizes() -> None:
    teacher = road.exact(small("swin"))
    student = cc.castle(teacher, recipe(**LANDMARKS)).eval()
    images = torch.randn(2, 3, 64, 40).double()
    torch.testing.assert_close(student(images), teacher(images), rtol=0, atol=1e-10)


def test_a_swin_is_resized_and_trained_at_several_sizes() -> None:
    teacher: Any = small("swin")
    family_of(teacher).resize_(teacher, (64, 40))
    assert input_size_of(teacher) == (3, 64, 40)
    assert [layer.windows for layer in family_of(teacher).layers(teacher)] == [12, 12, 4, 4]
    wanted = recipe(**LANDMARKS).override("data.sizes=[32, 48]", "distill.steps=6", "distill.batch_size=2")
    student = cc.castle(teacher, wanted)
    cc.distill(student, teacher, "generated", wanted, device="cpu")
    folded = cc.fold(student)
    for size in ((64, 40), (48, 48)):
        assert folded(torch.randn(1, 3, *size)).isfinite().all()


@torch.no_grad()
def test_regions_are_where_torchvision_masks() -> None:
    """A change of one token changes the softmax layer's outputs exactly within its region."""
    model = road.exact(small("swin"))
    name = "features.1.1.attn"
    reader = family_of(model).reader(model, name)  # type: ignore[attr-defined]
    with tap(model, [name]) as seen:
        model(road.images_for(model).double())
    (x,), _ = seen.inputs[name]
    numbers = reader.read(x).regions.keys
    changed = x.clone()
    changed[:, 0, 0] += 1  # which lies in the last window after the shift
    reach = (model.get_submodule(name)(changed) - seen.outputs[name]).abs().amax(-1) > 1e-12
    last = numbers.unflatten(0, (2, -1))[:, -1]
    assert 0 < reach.sum() < last.numel()
    assert reach.sum() == (last == last[:, -1:]).sum()


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [("vit_b_32", 224, 12), ("vit_h_14", 224, 32), ("swin_t", 224, 12), ("swin_v2_b", 256, 24)],
)
def test_real_names(name: str, size: int, layers: int) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    assert input_size_of(model) == (3, size, size)
    found = family_of(model).layers(model)
    assert len(found) == layers
    assert all(layer.castable for layer in found)
