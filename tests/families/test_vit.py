"""timm's VisionTransformer as it is today, in the forms its constructor can take."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers import AttentionRope
from timm.models._features import FeatureGetterNet

import castling_convert as cc
from castling_convert.attention import CastledAttention
from castling_convert.attention.angular import FoldedAngular
from castling_convert.castling import castled_layers, close_masks
from castling_convert.errors import ModelError
from castling_convert.families import FAMILIES, CalledFamily, castable_names, family_of, reason_of, skeleton
from castling_convert.families.refused import WITHOUT
from tests.models import KINDS, closed_student, images, recipe, shake_, tiny

VARIANTS: dict[str, dict[str, Any]] = {
    **{kind: {"name": name} for kind, name in KINDS.items()},
    "hybrid": {"name": "vit_tiny_r_s16_p8_224", "img_size": 64, "patch_size": 1},
    "parallel_things": {"name": "vit_small_patch16_18x2_224", "init_values": 0.1},
    "post_norm": {"name": "vit_relpos_none", "block_fn": timm.models.vision_transformer.ResPostBlock},
    "qk_norm": {"qk_norm": True},
    "no_qkv_bias": {"qkv_bias": False},
    "no_proj_bias": {"proj_bias": False},
    "layer_scale": {"init_values": 0.1},
    "drop_path": {"drop_path_rate": 0.3},
    "average_pool": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 3},
    "no_embed_class": {"reg_tokens": 2, "no_embed_class": True},
    "dynamic": {"dynamic_img_size": True},
    "rectangular": {"img_size": (32, 48)},
    "pre_norm": {"pre_norm": True},
    "map_pool": {"class_token": False, "global_pool": "map"},
    "scale_attn_norm": {"scale_attn_norm": True},
    "scale_mlp_norm": {"scale_mlp_norm": True, "init_values": 0.1},
    "swiglu": {"mlp_layer": timm.layers.SwiGLU, "init_values": 0.1},
    "rope_class": {"attn_layer": AttentionRope},
    "separate": {"separate": True},
    "separate_gated_qk_norm": {"separate": True, "gated": True, "qk_norm": True, "norm_layer": torch.nn.LayerNorm},
}
VARIANTS["post_norm"]["name"] = "vit_tiny_patch16_224"


def build(name: str = "vit_tiny_patch16_224", separate: bool = False, **arguments: Any) -> Any:
    """A variant; `separate` puts timm's attention with q, k and v projections of their own in every block."""
    if not separate:
        return tiny(name, **arguments)
    model = tiny(name)
    for block in model.blocks:
        block.attn = AttentionRope(48, 3, qkv_fused=False, num_prefix_tokens=1, **arguments)
    return shake_(model).eval()


def images_for(model: Any) -> torch.Tensor:
    return images(2, *model.patch_embed.img_size)


@pytest.fixture(scope="module", params=VARIANTS)
def teacher(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return build(**VARIANTS[request.param])


@torch.no_grad()
def test_open_student_is_the_teacher(teacher: Any) -> None:
    exact = copy.deepcopy(teacher).double()
    student = cc.castle(exact, recipe()).eval()
    x = images_for(teacher).double()
    assert all(layer.status == "castled" or "pooling" in layer.why for layer in student.castling.layers)
    torch.testing.assert_close(student(x), exact(x), rtol=0, atol=1e-10 * exact(x).abs().max().item())


@torch.no_grad()
def test_closed_student_differs_and_folds(teacher: Any) -> None:
    student = closed_student(copy.deepcopy(teacher).double())
    x = images_for(teacher).double()
    expected = student(x)
    assert expected.isfinite().all()
    assert (expected - teacher.double()(x)).abs().max() > 1e-4
    teacher.float()
    torch.testing.assert_close(cc.fold(student)(x), expected, rtol=0, atol=1e-10 * expected.abs().max().item())


def test_training_mode_runs_with_gradients(teacher: Any) -> None:
    student = cc.castle(teacher, recipe()).train()
    for _, layer in castled_layers(student):
        layer.set_mask(0.05)
    logits = student(images_for(teacher))
    for out in logits if isinstance(logits, tuple) else (logits,):
        out.square().sum().backward(retain_graph=True)
    missing = [name for name, p in student.named_parameters() if p.grad is None and ".attn.qkv" in name]
    assert not missing


def test_every_attention_layer_is_accounted_for(teacher: Any) -> None:
    student = cc.castle(teacher, recipe())
    attention = {name for name, m in teacher.named_modules() if "Attention" in type(m).__name__}
    assert {layer.name for layer in student.castling.layers} == attention
    castled = {name for name, m in student.named_modules() if isinstance(m, CastledAttention)}
    assert set(student.castling.castled) == castled
    assert len(castled) >= len(teacher.blocks)


def test_projections_are_kept(teacher: Any) -> None:
    student = cc.castle(teacher, recipe())
    for name in student.castling.castled:
        old, new = teacher.get_submodule(name), student.get_submodule(name)
        if getattr(old, "qkv", None) is None:
            parts = (old.q_proj, old.k_proj, old.v_proj)
            assert torch.equal(new.qkv.weight, torch.cat([p.weight for p in parts]))
            assert torch.equal(new.qkv.bias, torch.cat([p.bias for p in parts]))
        else:
            assert torch.equal(new.qkv.weight, old.qkv.weight)
            assert (new.qkv.bias is None) == (old.qkv.bias is None)
        assert torch.equal(new.proj.weight, old.proj.weight)
        for norm in ("q_norm", "k_norm", "norm"):
            assert str(getattr(new, norm)) == str(getattr(old, norm))


def test_only_gains_and_depthwise_are_new() -> None:
    teacher = tiny()
    student = cc.castle(teacher, recipe())
    added = student.state_dict().keys() - teacher.state_dict().keys()
    assert added == {f"blocks.{i}.attn.{new}" for i in range(2) for new in ("gain", "depthwise.weight")}
    assert not teacher.state_dict().keys() - student.state_dict().keys()


@torch.no_grad()
def test_a_missing_bias_among_separate_projections_is_zero() -> None:
    teacher = build(separate=True).double()
    for block in teacher.blocks:
        k = torch.nn.Linear(48, 48, bias=False).double()
        k.weight.copy_(block.attn.k_proj.weight)
        block.attn.k_proj = k
    student = cc.castle(teacher, recipe()).eval()
    x = images().double()
    torch.testing.assert_close(student(x), teacher(x), rtol=0, atol=1e-10)


@torch.no_grad()
def test_dynamic_sizes_follow_the_images() -> None:
    """At every size the model agrees with a fixed-size model that has the same weights."""
    student = closed_student(tiny(dynamic_img_size=True).double())
    for height, width in ((32, 32), (48, 32), (32, 48), (24, 40), (32, 32)):
        x = images(2, height, width).double()
        fixed = closed_student(tiny().double())
        fixed.load_state_dict(student.state_dict())
        fixed.set_input_size(img_size=(height, width))
        logits, expected = student(x), fixed(x)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10 * expected.abs().max().item())
        torch.testing.assert_close(cc.fold(student)(x), logits, rtol=0, atol=1e-10 * logits.abs().max().item())


@torch.no_grad()
def test_dynamic_padding_counts_the_padded_patches() -> None:
    teacher = tiny(dynamic_img_size=True, dynamic_img_pad=True).double()
    student = cc.castle(teacher, recipe()).eval()
    x = images(1, 35, 42).double()
    torch.testing.assert_close(student(x), teacher(x), rtol=0, atol=1e-10)
    close_masks(student)
    assert student(x).isfinite().all()
    assert (student.blocks[0].attn.grid.height, student.blocks[0].attn.grid.width) == (5, 6)


@torch.no_grad()
def test_set_input_size_after_castling() -> None:
    teacher = tiny().double()
    student = cc.castle(teacher, recipe()).eval()
    closed = closed_student(teacher)
    for model in (teacher, student, closed):
        model.set_input_size(img_size=(48, 24))
    x = images(2, 48, 24).double()
    torch.testing.assert_close(student(x), teacher(x), rtol=0, atol=1e-10)
    fresh = closed_student(teacher)  # castled at the new size in the first place
    fresh.load_state_dict(closed.state_dict())
    expected = fresh(x)
    for model in (closed, cc.fold(closed)):
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@torch.no_grad()
def test_a_deep_copy_keeps_its_own_grid() -> None:
    first = closed_student(tiny(dynamic_img_size=True))
    second = copy.deepcopy(first)
    assert len({id(block.attn.grid) for block in first.blocks}) == 1
    assert first.blocks[0].attn.grid is not second.blocks[0].attn.grid
    second(images(1, 48, 32))
    assert first.blocks[0].attn.grid.height == 4
    assert second.blocks[0].attn.grid.height == second.blocks[1].attn.grid.height == 6


@pytest.mark.parametrize("kind", ["deit", "dinov2", "siglip"])
@torch.no_grad()
def test_forward_intermediates(kind: str) -> None:
    teacher = tiny(KINDS[kind]).double()
    student, x = cc.castle(teacher, recipe()).eval(), images().double()
    for options in ({}, {"return_prefix_tokens": True, "norm": True}, {"output_fmt": "NLC", "indices": [0]}):
        final, maps = student.forward_intermediates(x, **options)
        expected_final, expected_maps = teacher.forward_intermediates(x, **options)
        torch.testing.assert_close(final, expected_final, rtol=0, atol=1e-10)
        torch.testing.assert_close(maps, expected_maps, rtol=0, atol=1e-10)


@torch.no_grad()
def test_feature_getter_of_castled_and_folded_models() -> None:
    teacher, x = tiny().double(), images().double()
    expected = FeatureGetterNet(copy.deepcopy(teacher), out_indices=[0, 1])(x)
    student = cc.castle(teacher, recipe()).eval()
    torch.testing.assert_close(FeatureGetterNet(student, out_indices=[0, 1])(x), expected, rtol=0, atol=1e-10)
    closed = closed_student(teacher)
    maps = closed.forward_intermediates(x, intermediates_only=True)
    getter = FeatureGetterNet(cc.fold(closed), out_indices=[0, 1])
    torch.testing.assert_close(getter(x), maps, rtol=0, atol=1e-10 * maps[-1].abs().max().item())


def test_patch_dropout_needs_the_tokens_depthwise() -> None:
    teacher = tiny(patch_drop_rate=0.5)
    with pytest.raises(cc.CastlingError, match=r"attention\.depthwise=tokens"):
        cc.castle(teacher, recipe(depthwise="grid"))
    assert not teacher.patch_embed._forward_pre_hooks
    student = cc.castle(teacher, recipe(depthwise="tokens")).train()
    close_masks(student)
    assert student(images()).isfinite().all()


def test_unknown_attention_in_some_blocks_is_kept_with_a_reason() -> None:
    teacher = tiny()
    teacher.blocks[1].attn = timm.layers.DiffAttention(48, 3, depth=1)
    grouped = AttentionRope(48, 4, qkv_fused=False, num_kv_heads=2)
    teacher.blocks.append(copy.deepcopy(teacher.blocks[0]))
    teacher.blocks[2].attn = grouped
    student = cc.castle(teacher, recipe())
    status = {layer.name: (layer.status, layer.why) for layer in student.castling.layers}
    assert status["blocks.0.attn"][0] == "castled"
    assert status["blocks.1.attn"][0] == "castled"
    assert "grouped-query" in status["blocks.2.attn"][1]


def test_a_subclass_of_timms_attention_is_kept() -> None:
    class Other(timm.layers.Attention):
        pass

    teacher = tiny()
    teacher.blocks[0].attn = Other(48, 3)
    why = {layer.name: layer.why for layer in cc.castle(teacher, recipe()).castling.layers}
    assert "Other" in why["blocks.0.attn"]


def test_models_of_other_attention_alone_are_refused() -> None:
    teacher = tiny()
    for block in teacher.blocks:
        block.attn = AttentionRope(48, 4, qkv_fused=False, num_kv_heads=2)
    with pytest.raises(cc.CastlingError, match="grouped-query"):
        cc.castle_(teacher, recipe())


def test_layer_scale_of_parallel_blocks_is_absorbed() -> None:
    folded = cc.fold(closed_student(tiny("vit_small_patch16_18x2_224", init_values=0.1)))
    left = [name for name, m in folded.named_modules() if isinstance(m, timm.layers.LayerScale)]
    assert left == []


def test_folded_layers_of_a_hybrid_selection() -> None:
    folded = cc.fold(closed_student(tiny(init_values=0.1), "1"))
    kinds = [type(block.attn) for block in folded.blocks]
    assert kinds == [timm.layers.Attention, FoldedAngular]


def _on_meta(name: str) -> list[Any]:
    model = skeleton(name)
    return family_of(model, name).layers(model)


@pytest.mark.slow
def test_every_listed_name_can_be_castled() -> None:
    """Every ViT and Eva, and of each other module of timm the first name; `benchmarks/coverage.py` walks them all."""
    names = castable_names()
    assert len(names) >= 560
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(timm.models.model_entrypoint(name).__module__, name)
    called = {f"timm.models.{m}" for f in FAMILIES if isinstance(f, CalledFamily) for m in f.timm_modules}
    walked = [n for n in names if timm.models.model_entrypoint(n).__module__ not in called or n in first.values()]
    assert len(walked) > 270
    wrong = [name for name in walked if not any(layer.castable for layer in _on_meta(name))]
    assert wrong == []


@pytest.mark.parametrize(
    "name",
    # One for each reason.
    sorted({why: name for family in FAMILIES for name, why in family.excluded.items()}.values()),
)
def test_excluded_names_have_no_castable_layer(name: str) -> None:
    reason = reason_of(name)
    assert reason is not None
    if reason.startswith(WITHOUT):
        with pytest.raises(ModelError, match=WITHOUT):
            _on_meta(name)
    else:
        layers = _on_meta(name)
        assert not any(layer.castable for layer in layers)
        assert reason in {layer.reason for layer in layers}
    assert name not in castable_names()
