"""A module of somebody's own around a model that is known: everything is found, wherever it sits."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import castling_convert as cc
from castling_convert.castling import close_masks
from castling_convert.errors import ModelError
from castling_convert.families import family_of, input_size_of, known_family
from castling_convert.folding import certify
from castling_convert.tasks import task_of
from tests.families import road
from tests.models import LANDMARKS, WINDOW, images, recipe, shake_, tiny

GRID = (4, 4)
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 0}


class ByTokens(nn.Module):
    """Reads the tokens by `forward_features`, and returns what torchvision's segmenters do."""

    task = "segment"
    num_classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"vit": tiny(num_classes=0)})
        self.head = nn.Conv2d(48, 5, 1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        tokens = self.inner["vit"].forward_features(x)[:, 1:]
        return OrderedDict(out=self.head(tokens.transpose(1, 2).unflatten(2, GRID)), aux=tokens)


class ByMaps(nn.Module):
    """Reads maps of two depths."""

    task = "segment"
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            "swin_tiny_patch4_window7_224", features_only=True, **(SWIN | {"num_classes": 1000, "out_indices": (0, 1)})
        )
        shake_(self.backbone)
        self.first, self.second = nn.Conv2d(16, 3, 1), nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (maps.permute(0, 3, 1, 2) for maps in self.backbone(x))
        return self.first(first) + nn.functional.interpolate(self.second(second), scale_factor=2.0)


class Towers(nn.Module):
    """Two models side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = tiny(num_classes=0), tiny(num_classes=0, depth=1)
        self.head = nn.Linear(96, 7)
        self.num_classes = 7

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(x)], 1))


KINDS: dict[str, Any] = {"tokens": ByTokens, "maps": ByMaps, "towers": Towers}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return KINDS[request.param]().eval()


def test_open_student_is_the_teacher(model: Any) -> None:
    student = road.open_student_is_the_teacher(model)
    assert all(layer.status == "castled" for layer in student.castling.layers)


def test_closed_student_folds(model: Any) -> None:
    road.closed_student_folds(model)


def test_what_is_found() -> None:
    family = family_of(ByTokens())
    assert [layer.name for layer in family.layers(ByTokens())] == [f"inner.vit.blocks.{i}.attn" for i in (0, 1)]
    assert input_size_of(ByTokens()) == (3, 32, 32)
    assert task_of(ByTokens()).name == "segment"
    assert [layer.block for layer in family.layers(Towers())] == [0, 1, 2]
    assert task_of(Towers()).name == "classify"


def test_the_maps_are_those_that_the_head_reads(model: Any) -> None:
    family = family_of(model)
    with torch.no_grad():
        seen = family.features(model, images(2))
        whole = model(images(2))
    wanted = whole["out"] if isinstance(whole, dict) else whole
    torch.testing.assert_close(family.head(model, seen), wanted)
    shapes = [tuple(tokens.shape) for tokens, _ in family.maps(model, seen)]
    expected = {"ByTokens": [(2, 17, 48)], "ByMaps": [(2, 64, 16), (2, 16, 32)], "Towers": [(2, 1, 48), (2, 1, 48)]}
    assert shapes == expected[type(model).__name__]


def test_layers_by_pattern() -> None:
    student = cc.castle(Towers(), recipe(**LANDMARKS), "right.*")
    assert student.castling.castled == ["right.blocks.0.attn"]
    assert {layer.why for layer in student.castling.layers if layer.status == "kept"} == {
        "not chosen by layers=right.*"
    }


@pytest.mark.parametrize("form", [LANDMARKS, WINDOW])
def test_distilled_on_its_maps_and_outputs(form: dict[str, Any]) -> None:
    teacher = ByMaps().eval()
    steps = cc.Recipe.parse(
        {"attention": form, "distill": {"steps": 12, "batch_size": 4, "align": {"share": 0.5}}}, "test"
    )
    student = cc.castle(teacher, steps)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    result = cc.distill(student, teacher, [images(4)] * 12, steps, device="cpu")
    assert set(result.losses) == {"attention", "logits", "features"}
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("backbone.") for name in changed)
    assert not any(name.startswith(("first.", "second.")) for name in changed)  # the head is not trained
    folded, certificate = certify(student, images(2))
    assert certificate.holds
    assert task_of(folded).name == "segment"


def test_the_head_is_trained_where_it_is_asked_for() -> None:
    teacher = ByMaps().eval()
    steps = cc.Recipe.parse(
        {
            "attention": LANDMARKS,
            "distill": {"steps": 4, "batch_size": 4, "align": {"share": 0.5}, "optimizer": {"train": "head"}},
        },
        "test",
    )
    student = cc.castle(teacher, steps)
    cc.distill(student, teacher, [images(4)] * 4, steps, device="cpu")
    assert not torch.equal(student.first.weight, teacher.first.weight)


def test_a_head_that_reads_no_castled_layer() -> None:
    class Shallow(ByMaps):
        def forward(self, x: Tensor) -> Tensor:
            return self.first(self.backbone(x)[0].permute(0, 3, 1, 2))

    teacher = Shallow().eval()
    student = cc.castle(teacher, recipe(**LANDMARKS))
    with pytest.raises(ModelError, match=r"reads nothing of backbone\.layers_1\.blocks\.0\.attn"):
        cc.distill(student, teacher, [images(4)] * 4, "castling", device="cpu")


class Pair(ByMaps):
    """Several things without names, as open_clip's CLIP returns: embeddings of images and of texts, and a scale."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), torch.ones(())


class Unsaid(ByMaps):
    """Logits of pixels, and nobody says so."""

    task = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Pair, r"Pair returns a tuple, not one tensor; convert the module inside it"),
        (Unsaid, r"returns \[1, 3, 8, 8\].*attribute task"),
    ],
)
def test_an_output_that_nobody_knows_is_refused_before_anything_is_learned(kind: type[nn.Module], why: str) -> None:
    teacher, learned = kind().eval(), recipe(**LANDMARKS)
    student = cc.castle(teacher, learned)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ModelError, match=why):
        cc.distill(student, teacher, [images(4)] * 4, learned, device="cpu")
    after = student.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_model_that_is_not_called() -> None:
    class Unused(ByTokens):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.head(x.mean(1, keepdim=True).expand(-1, 48, -1, -1))

    with pytest.raises(ModelError, match=r"Unused reads nothing of inner\.vit"):
        family_of(Unused()).features(Unused(), images(1))


def test_nothing_inside_is_known() -> None:
    assert known_family(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())) is None


def test_export(tmp_path: Any) -> None:
    student = cc.castle(ByTokens().eval(), recipe(**LANDMARKS))
    close_masks(student)
    folded = cc.fold(student)
    cc.export(folded, tmp_path / "m.onnx", format="onnx")
    session = cc.Session(tmp_path / "m.onnx")
    torch.testing.assert_close(
        torch.from_numpy(session(images(2).numpy())), folded(images(2))["out"], rtol=0, atol=1e-5
    )


REGISTERED = """
import sys, timm, torch
from torch import nn
from timm.models import build_model_with_cfg, register_model
import castling_convert as cc
from castling_convert.bundle import load_trained
from castling_convert.tasks import task_of
from pathlib import Path

class Mine(nn.Module):
    def __init__(self, num_classes=5, in_chans=3, depth=2):
        super().__init__()
        self.num_classes, self.num_features = num_classes, 32
        self.vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=depth,
                                     num_heads=2, num_classes=0)
        self.head = nn.Conv2d(32, num_classes, 1)

    def forward(self, x):
        tokens = self.vit.forward_features(x)[:, 1:]
        return {"out": self.head(tokens.transpose(1, 2).unflatten(2, (4, 4)))}

@register_model
def mine(pretrained=False, **kwargs):
    return build_model_with_cfg(Mine, "mine", pretrained, **kwargs)

recipe = cc.Recipe.load("castling", ["distill.steps=2", "distill.batch_size=4"])
out = Path(sys.argv[1], "out")
summary = cc.convert(timm.create_model("mine").eval(), out, task="segment", data="scenes", recipe=recipe, device="cpu")
models = cc.load(out), load_trained(out), timm.create_model(f"local-dir:{out}", pretrained=True)
print([task_of(model).name for model in models], "miou" in summary["accuracy"]["castled"])
"""


@pytest.mark.slow
def test_a_bundle_of_a_registered_class_knows_what_it_is_for(tmp_path: Any) -> None:
    run = subprocess.run([sys.executable, "-c", REGISTERED, tmp_path], capture_output=True, text=True, check=False)
    assert run.stdout == "['segment', 'segment', 'segment'] True\n", run.stderr
