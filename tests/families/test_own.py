"""A model that timm did not make: what its family must say, and what is said where it doesn't."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import castling_convert as cc
from castling_convert.attention import TokenGrid
from castling_convert.castling import castled_layers, close_masks
from castling_convert.errors import BundleError, DataError, ExportError, ModelError
from castling_convert.exporting import FORMATS
from castling_convert.families import FAMILIES, CalledFamily, MultiheadReader, input_size_of, register
from castling_convert.tasks import task_of
from tests.families import road
from tests.models import ANGULAR, LANDMARKS, WINDOW, recipe

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
WIDTH, TOKENS = 24, 16


@pytest.fixture(autouse=True)
def _families_are_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    kept = list(FAMILIES)
    yield
    FAMILIES[:] = kept
    for name in ("custom_model", "custom_transformer"):
        sys.modules.pop(name, None)


@pytest.fixture(params=["custom_model.MyViT", "custom_transformer.MyTransformer"])
def own(request: pytest.FixtureRequest) -> Any:
    module, name = request.param.split(".")
    torch.manual_seed(0)
    return getattr(import_module(module), name)().eval()


class Net(nn.Module):
    """One `nn.MultiheadAttention`, called as `how` says; images are one channel of 4 x 4 patches of 2 x 2."""

    def __init__(self, how: str = "plain", **arguments: Any) -> None:
        super().__init__()
        self.how = how
        self.embed = nn.Conv2d(1, WIDTH, 2, 2)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=how != "tokens first", **arguments)
        self.register_buffer("hidden", torch.arange(TOKENS) >= TOKENS - 3, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        if self.how == "cross":
            return self.attention(x, 2 * x, 2 * x)[0].mean(1)
        if self.how == "pairs":
            return self.attention(x, x, x, attn_mask=torch.zeros(TOKENS, TOKENS, device=x.device))[0].mean(1)
        if self.how == "padded":
            hidden: Any = self.hidden
            return self.attention(x, x, x, hidden.expand(x.shape[0], -1))[0].mean(1)
        if self.how == "narrow keys":
            return self.attention(x, x[..., :8], x)[0].mean(1)
        if self.how == "tokens first":
            x = x.transpose(0, 1)
            return self.attention(x, x, x)[0].mean(0)
        return self.attention(x, x, 2 * x if self.how == "other values" else x, need_weights=False)[0].mean(1)


class NetFamily(CalledFamily):
    title = "net"
    models = (Net,)
    readers = {nn.MultiheadAttention: MultiheadReader}  # noqa: RUF012
    side = 8

    def image_size(self, model: nn.Module) -> tuple[int, int]:
        return self.side, self.side

    def channels(self, model: nn.Module) -> int:
        return 1

    def token_grid(self, model: nn.Module) -> TokenGrid | None:
        return TokenGrid(4, 4, 0)


def test_open_student_is_the_teacher(own: Any) -> None:
    road.open_student_is_the_teacher(own)


def test_closed_student_folds(own: Any) -> None:
    road.closed_student_folds(own)


def test_linear_form_is_its_matrix(own: Any) -> None:
    road.linear_form_is_its_matrix(own)


@pytest.mark.slow
def test_from_castle_to_onnx(own: Any, tmp_path: Path) -> None:
    road.from_castle_to_onnx(own, tmp_path, named=False)


@pytest.mark.slow
def test_half_precision(tmp_path: Path) -> None:
    register(NetFamily())
    assert cc.export(closed(Net()), tmp_path / "half.onnx", precision="fp16").is_file()


def closed(model: nn.Module) -> nn.Module:
    student = cc.castle(model.eval(), recipe(**LANDMARKS))
    close_masks(student)
    return cc.fold(student)


def test_what_needs_a_name_or_a_normalisation_says_so(tmp_path: Path) -> None:
    register(NetFamily())
    assert input_size_of(Net()) == (1, 8, 8)
    assert task_of(Net()).name == "classify"
    folded = closed(Net())
    for verb in (lambda: cc.save(folded, tmp_path / "b"), lambda: cc.convert(Net(), tmp_path / "b", data="digits")):
        with pytest.raises(BundleError, match=r"only models from timm.create_model can be saved.* this Net has none"):
            verb()
    with pytest.raises(DataError, match=r"Net does not say how its images are normalised.*model.pretrained_cfg ="):
        cc.distill(cc.castle(Net()), Net(), "digits")
    with pytest.raises(ExportError, match="how its images are normalised"):
        cc.export(folded, tmp_path / "model.onnx", preprocess=True)
    assert not list(tmp_path.iterdir())


def test_a_model_with_a_normalisation_takes_data_by_name() -> None:
    register(NetFamily())
    teacher: Any = Net().eval()
    teacher.pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}
    config = cc.Recipe.load("castling", ["distill.steps=2", "distill.batch_size=4", "distill.align.echo=1"])
    student = cc.castle(teacher, config)
    assert cc.distill(student, teacher, "digits", config, device="cpu").steps == 2


@pytest.mark.parametrize("how", ["plain", "padded", "tokens first", "other values"])
def test_every_way_that_multihead_attention_is_called_in(how: str) -> None:
    register(NetFamily())
    road.open_student_is_the_teacher(Net(how))
    road.closed_student_folds(Net(how))


def test_nobody_sees_padding() -> None:
    register(NetFamily())
    student: Any = cc.castle(road.exact(Net("padded")), recipe(**LANDMARKS)).eval()
    close_masks(student)
    images = torch.randn(2, 1, 8, 8).double()
    changed = images.clone()
    changed[:, :, 6:, 2:] += 1  # the last three patches
    (_, layer), *_ = castled_layers(student)
    seen = []
    layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    with torch.no_grad():
        student(images), student(changed)
    assert torch.equal(seen[0][:, :-3], seen[1][:, :-3])
    assert not torch.equal(seen[0][:, -3:], seen[1][:, -3:])


def test_padding_is_not_seen_by_forms_that_have_no_masks() -> None:
    register(NetFamily())
    with pytest.raises(ModelError, match="masked, and the linear form angular has no masks"):
        cc.castle(Net("padded"), recipe(**ANGULAR))
    student = cc.castle(Net("padded"), recipe(**WINDOW))
    assert all(layer.config.window == 0 for _, layer in castled_layers(student))


@pytest.mark.parametrize(
    ("how", "arguments", "why"),
    [
        ("cross", {}, "its keys are not its queries' tokens: cross-attention"),
        ("pairs", {}, "it is called with a mask of pairs of tokens, which a linear form has no entries for"),
        ("narrow keys", {"kdim": 8}, "of another width than its queries"),
        ("plain", {"add_bias_kv": True}, "it looks at keys that are no tokens"),
    ],
)
def test_what_is_kept_has_its_reason(how: str, arguments: dict[str, Any], why: str) -> None:
    register(NetFamily())
    with pytest.raises(ModelError, match=why):
        cc.castle(Net(how, **arguments))


def test_a_family_that_says_too_little_is_told_what_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    register(NetFamily())
    monkeypatch.setattr(NetFamily, "token_grid", CalledFamily.token_grid)
    with pytest.raises(ModelError, match=r"attention has 16 tokens, and net says that they are 0x0 .*token_grid"):
        cc.castle(Net())
    monkeypatch.setattr(NetFamily, "image_size", CalledFamily.image_size)
    with pytest.raises(ModelError, match=r"Net does not say how large its images are; .*image_size\(model\)"):
        cc.castle(Net())
    monkeypatch.setattr(NetFamily, "image_size", lambda *_: (7, 7))
    monkeypatch.setattr(NetFamily, "channels", lambda *_: 3)
    with pytest.raises(ModelError, match="Net can't take images of 7x7"):
        cc.castle(Net())


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_model_whose_code_fixes_the_batch_is_told_so(format: str, tmp_path: Path) -> None:
    class Fixed(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).reshape(len(images), WIDTH)

    register(NetFamily())
    folded = closed(Fixed())
    with pytest.raises(ExportError, match=r"the model's own code fixes the batch.*--batch N"):
        cc.export(folded, tmp_path / f"model{FORMATS[format].suffix}", format=format)
    assert not list(tmp_path.iterdir())
    assert cc.export(folded, tmp_path / "model.onnx", batch="2").is_file()
