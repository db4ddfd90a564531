"""timm's Eva: rotary positions, biases and scales that stand apart, in the forms in which its models come."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor

import castling_convert as cc
from castling_convert.artifact.options import ExportOptions
from castling_convert.attention import CastledAttention
from castling_convert.bench.fused import fuse_attention
from castling_convert.castling import castled_layers
from castling_convert.distillation.losses import tap
from castling_convert.errors import ExportError
from castling_convert.exporting import FORMATS
from castling_convert.families import family_of
from castling_convert.families.eva import EvaFamily
from tests.models import ANGULAR, FEATURES, LANDMARKS, WINDOW, closed_student, images, recipe, tiny

VARIANTS: dict[str, dict[str, Any]] = {
    "eva": {"name": "eva_giant_patch14_224"},
    "eva02": {"name": "eva02_small_patch14_224"},
    "separate": {"name": "eva02_base_patch14_224"},
    "inner norm": {"name": "eva02_base_patch16_clip_224"},
    "post norm": {"name": "eva02_enormous_patch14_clip_224"},
    "dinov3": {"name": "vit_small_patch16_dinov3"},
    "dinov3 with biases": {"name": "vit_small_patch16_dinov3_qkvb"},
    "half rotations, q/k norms": {"name": "vit_5b_patch16_sapiens2", "num_kv_heads": (3, 3)},
    "rope": {"name": "vit_base_patch16_rope_224"},
    "mixed": {"name": "vit_base_patch16_rope_mixed_224"},
    "perception encoder": {"name": "vit_pe_core_base_patch16_224"},
    "rectangular": {"name": "vit_small_patch16_dinov3", "img_size": (32, 48)},
}
ROTATED = ("eva02", "dinov3", "half rotations, q/k norms", "mixed")


@pytest.fixture(scope="module", params=VARIANTS)
def teacher(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return tiny(**VARIANTS[request.param])


def images_for(model: Any) -> Tensor:
    return images(2, *model.patch_embed.img_size)


@torch.no_grad()
def test_open_student_is_the_teacher(teacher: Any) -> None:
    exact = copy.deepcopy(teacher).double()
    student = cc.castle(exact, recipe()).eval()
    x = images_for(teacher).double()
    assert isinstance(family_of(teacher), EvaFamily)
    assert all(layer.status == "castled" or "pooling" in layer.why for layer in student.castling.layers)
    torch.testing.assert_close(student(x), exact(x), rtol=0, atol=1e-10 * exact(x).abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize(
    "form", [LANDMARKS, WINDOW, FEATURES, ANGULAR], ids=["landmarks", "window", "features", "angular"]
)
def test_closed_student_differs_and_folds(teacher: Any, form: dict[str, Any]) -> None:
    exact = copy.deepcopy(teacher).double()
    student = closed_student(exact, **form)
    x = images_for(teacher).double()
    expected = student(x)
    assert (expected - exact(x)).abs().max() > 1e-6
    folded = cc.fold(student)
    assert all(getattr(block, "gamma_1", None) is None for block in folded.blocks)
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("kind", ROTATED)
def test_the_linear_form_is_its_matrix(kind: str) -> None:
    """Of turned q and k, written out with timm's own rotation; row sums are one."""
    torch.manual_seed(0)
    teacher: Any = tiny(**VARIANTS[kind]).double()
    student = closed_student(teacher, form="landmarks", landmarks=5, prefix_rows=False, depthwise="none")
    (_, layer), *_ = castled_layers(student)
    before: Any = teacher.blocks[0].attn
    prefix, tokens = teacher.num_prefix_tokens, teacher.num_prefix_tokens + 16
    x = torch.randn(2, tokens, 48, dtype=torch.float64)
    table = student.rope.get_embed(shape=[4, 4])
    table = table[0] if student.rope_mixed else table  # 16 places, 16 sines and 16 cosines
    q, k, v = layer.qkv(x).reshape(2, tokens, 3, 3, 16).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = layer.q_norm(q), layer.k_norm(k)
    q, k = (
        torch.cat([z[:, :, :prefix], apply_rot_embed_cat(z[:, :, prefix:], table, half=before.rotate_half)], 2)
        for z in (q, k)
    )
    pooling = (layer.directions @ k.transpose(-2, -1)).softmax(-1)  # B, heads, M, N
    entropy = -(pooling * pooling.log()).sum(-1)
    mass = layer.gain[..., 0] * entropy + layer.bias[..., 0]
    scores = layer.softmax_scale * q @ (pooling @ k).transpose(-2, -1) + mass[:, :, None]
    matrix = scores.softmax(-1) @ pooling  # B, heads, N, N
    torch.testing.assert_close(matrix.sum(-1), torch.ones_like(matrix[..., 0]))
    y = layer.norm((matrix @ v).transpose(1, 2).flatten(2))
    y = y if layer.gate is None else y * layer.gate(x).sigmoid()
    torch.testing.assert_close(layer(x), layer.proj(y), rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["eva02", "dinov3", "mixed"])
def test_another_image_size(kind: str) -> None:
    """By timm's own way, and for DINOv3, which takes any size, without it."""
    torch.manual_seed(0)
    teacher: Any = tiny(**VARIANTS[kind]).double()
    student, x = cc.castle(teacher, recipe()).eval(), images(2, 48, 64).double()
    if not teacher.dynamic_img_size:
        for model in (teacher, student):
            model.set_input_size((48, 64))
    torch.testing.assert_close(student(x), teacher(x), rtol=0, atol=1e-10 * teacher(x).abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["eva02", "rope", "mixed"])
def test_a_layer_on_another_grid_than_its_model(kind: str) -> None:
    """As where the break-even is looked for: turned as in a model of that size, and its own model is left as it is."""
    student: Any = cc.castle(tiny(**VARIANTS[kind]), recipe())
    (_, layer), *_ = castled_layers(student)
    other: Any = tiny(**{**VARIANTS[kind], "img_size": (24, 40)})
    if kind == "mixed":
        other.rope.freqs.copy_(student.rope.freqs)
    before = student.rope.get_embed()
    torch.testing.assert_close(layer.rotation.table(3, 5), other.rope.get_embed(), rtol=0, atol=0)
    assert torch.equal(student.rope.get_embed(), before)


@torch.no_grad()
def test_a_copy_turns_by_its_own_positions() -> None:
    student: Any = closed_student(tiny(**VARIANTS["mixed"]), **LANDMARKS)
    other, x = copy.deepcopy(student), images()
    expected = student(x)
    other.rope.freqs.mul_(3)
    assert (other(x) - expected).abs().max() > 0
    torch.testing.assert_close(student(x), expected, rtol=0, atol=0)


def test_a_layer_that_is_run_alone_is_the_layer_in_the_model() -> None:
    """As in the phase in which layers learn alone: on tokens, without what the model hands it beside them."""
    student: Any = closed_student(tiny(**VARIANTS["dinov3"]), **LANDMARKS)
    names = [name for name, _ in castled_layers(student)]
    with tap(student, names) as seen, torch.no_grad():
        student(images())
    for name in names:
        layer = student.get_submodule(name)
        assert isinstance(layer, CastledAttention)
        with torch.no_grad():
            torch.testing.assert_close(layer(seen.inputs[name][0][0]), seen.outputs[name], rtol=0, atol=0)


def test_shared_keys_are_kept_as_softmax_with_the_reason() -> None:
    student: Any = cc.castle(tiny("vit_5b_patch16_sapiens2", num_kv_heads=(3, 1)), recipe())
    first, second = student.castling.layers
    assert first.status == "castled"
    assert (second.status, second.why) == ("kept", "grouped-query attention shares keys between heads")


@torch.no_grad()
def test_onnxruntimes_operator_gets_turned_queries_and_keys() -> None:
    teacher: Any = tiny(**VARIANTS["dinov3"])
    torch.testing.assert_close(fuse_attention(teacher)(images()), teacher(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*ROTATED, "post norm", "perception encoder"])
def test_from_castle_to_onnx(tmp_path, kind: str) -> None:
    """Two steps, fold, save, load, export with a dynamic batch and parity."""
    torch.manual_seed(0)
    teacher: Any = tiny(**VARIANTS[kind])
    config = cc.Recipe.parse({"distill": {"steps": 2, "batch_size": 2}, "attention": LANDMARKS}, "test")
    student = cc.castle(teacher, config)
    cc.distill(student, teacher, [images_for(teacher)], config, device="cpu")
    folded = cc.fold(student)
    cc.save(folded, tmp_path / "bundle")
    loaded = cc.load(tmp_path / "bundle")
    with torch.no_grad():
        torch.testing.assert_close(loaded(images_for(teacher)), folded(images_for(teacher)), rtol=0, atol=0)
    cc.export(loaded, tmp_path / "model.onnx", batch="dynamic")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "precision"),
    [
        ("onnx", "fp16"),
        ("onnx", "bf16"),
        ("onnx", "int8"),
        ("openvino", "fp32"),
        ("torch", "fp32"),
        ("trt-rtx", "fp16"),
    ],
)
def test_the_other_formats_of_a_rotary_model(tmp_path, format: str, precision: str) -> None:
    exporter = FORMATS[format].exporter
    if exporter.missing() is not None:
        pytest.skip(exporter.missing())
    model = cc.fold(closed_student(tiny(**VARIANTS["dinov3"], depth=1), **LANDMARKS))
    made = exporter.export(model, tmp_path / f"model{FORMATS[format].suffix}", ExportOptions.make(precision=precision))
    assert made.parity is not None
    assert made.parity.holds


def test_a_range_of_image_sizes_is_refused(tmp_path) -> None:
    model = cc.fold(closed_student(tiny(**VARIANTS["dinov3"]), **LANDMARKS))
    with pytest.raises(ExportError, match="range of image sizes is not known for timm Eva; give one --image-size"):
        cc.export(model, tmp_path / "model.onnx", image_size=(32, 32), image_range=((16, 16), (48, 48)))
