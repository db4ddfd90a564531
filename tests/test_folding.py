from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import LayerScale

import castling_convert as cc
from castling_convert.attention import CastledAttention, FoldedAttention
from castling_convert.castling import castled_layers, close_masks
from castling_convert.errors import CheckFailed, FoldError
from castling_convert.folding import FLOAT32_TOLERANCE, FLOAT64_TOLERANCE, ROUNDINGS, certify
from tests.models import KINDS, closed_student, images, recipe, tiny

FORMS = [
    {"form": "angular", "normalization": "row_sum"},
    {"form": "angular", "normalization": "gain"},
    {"form": "angular", "constant": "token", "normalization": "gain", "depthwise": "tokens"},
    {"form": "snippet", "depthwise": "tokens", "kernel_size": 9},
    {"form": "features"},
    {"form": "features", "power": 2, "prefix_rows": False, "depthwise": "none"},
    {"form": "features", "window": 3},
    {"form": "landmarks", "landmarks": 5},
    {"form": "landmarks", "landmarks": 3, "prefix_rows": False, "window": 3},
]


def test_the_promised_tolerances() -> None:
    assert FLOAT64_TOLERANCE <= 1e-10
    assert FLOAT32_TOLERANCE <= 1e-5
    assert ROUNDINGS <= 4


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
@pytest.mark.parametrize("kind", KINDS)
def test_folding_is_exact(kind: str, form: dict[str, object]) -> None:
    student = closed_student(tiny(KINDS[kind]), **form)
    folded, certificate = certify(student, images())
    assert certificate.holds
    assert certificate.float64_logits <= 1e-10
    assert certificate.float32_logits <= 1e-5
    assert certificate.float64_blocks.keys() == {"blocks.0", "blocks.1"}
    assert max(certificate.float64_blocks.values()) <= 1e-10
    assert certificate.to_dict()["holds"] is True
    with torch.no_grad():
        expected = student(images())
        error = (folded(images()) - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5


@pytest.mark.parametrize("kind", ["deit3", "dinov2"])
def test_layer_scale_is_absorbed(kind: str) -> None:
    student = closed_student(tiny(KINDS[kind]))
    assert any(isinstance(m, LayerScale) for m in student.modules())
    folded = cc.fold(student)
    assert not any(isinstance(m, LayerScale) for m in folded.modules())
    gamma = student.blocks[0].ls1.gamma
    proj = student.blocks[0].attn.proj
    assert torch.equal(folded.blocks[0].attn.proj.weight, gamma[:, None] * proj.weight)
    assert torch.equal(folded.blocks[0].attn.proj.bias, gamma * proj.bias)


@torch.no_grad()
def test_certify_catches_a_fold_that_changes_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = FoldedAttention.attend
    monkeypatch.setattr(FoldedAttention, "attend", lambda *args: attend(*args) * (1 + 1e-4))
    with pytest.raises(CheckFailed, match="folding changed the model"):
        certify(closed_student(tiny()), images())


@torch.no_grad()
def test_certify_catches_a_fold_that_is_less_exact_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = FoldedAttention.attend

    def inexact(layer: FoldedAttention, *args: torch.Tensor) -> torch.Tensor:
        out = attend(layer, *args)
        return out * (1 + 1e-4) if out.dtype == torch.float32 else out

    monkeypatch.setattr(FoldedAttention, "attend", inexact)
    with pytest.raises(CheckFailed, match="folding changed the model"):
        certify(closed_student(tiny()), images())


@torch.no_grad()
def test_what_the_model_itself_rounds_by_is_not_the_fold_s() -> None:
    student = closed_student(tiny(KINDS["dinov2"]))  # whose LayerScale is absorbed
    basis = torch.linalg.qr(student.forward_head(student.forward_features(images()), pre_logits=True).T).Q
    student.head.weight -= 0.999 * student.head.weight @ basis @ basis.T  # logits are small sums of large products
    student.head.bias.zero_()
    _, certificate = certify(student, images())
    assert certificate.float64_logits <= 1e-10
    assert 1e-5 < certificate.float32_logits <= certificate.float32_allowed < 1e-2
    assert certificate.float32_allowed == ROUNDINGS * certificate.float32_rounding
    assert certificate.holds


def test_refuses_while_a_mask_is_open_and_names_the_layers() -> None:
    student = cc.castle(tiny(depth=3), recipe())
    close_masks(student)
    dict(castled_layers(student))["blocks.1.attn"].set_mask(0.999)
    with pytest.raises(FoldError, match=r"open in blocks\.1\.attn;"):
        cc.fold(student)
    with pytest.raises(FoldError, match=r"blocks\.1\.attn"):
        cc.fold_(student)
    assert len(list(castled_layers(student))) == 3


def test_refuses_models_that_are_not_castled_or_folded_already() -> None:
    with pytest.raises(FoldError, match="not castled"):
        cc.fold(tiny())
    folded = cc.fold(closed_student(tiny()))
    with pytest.raises(FoldError, match="folded already"):
        cc.fold(folded)


def test_fold_leaves_the_student_untouched() -> None:
    student = closed_student(tiny(KINDS["deit3"]))
    before = copy.deepcopy(student.state_dict())
    cc.fold(student)
    after = student.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert len(list(castled_layers(student))) == 2


def test_fold_in_place() -> None:
    student = closed_student(tiny())
    assert cc.fold_(student) is student
    assert not list(castled_layers(student))


def test_folded_model_holds_nothing_of_the_training_form() -> None:
    student = closed_student(tiny().train())
    folded = cc.fold(student)
    assert not folded.training
    assert not any(isinstance(m, CastledAttention) for m in folded.modules())
    assert {name for name, _ in folded.named_buffers()} == {f"blocks.{i}.attn.head_scale" for i in range(2)}
    gone = student.state_dict().keys() - folded.state_dict().keys()
    assert gone == {f"blocks.{i}.attn.gain" for i in range(2)}


@torch.no_grad()
def test_a_student_saved_in_training_mode_folds_to_its_eval_output() -> None:
    teacher = tiny(drop_path_rate=0.5, proj_drop_rate=0.5)
    student = closed_student(teacher)
    expected = student(images())
    student.train()
    torch.testing.assert_close(cc.fold(student)(images()), expected, rtol=0, atol=1e-5)
