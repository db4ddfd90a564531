"""open_clip's image encoders: on a backbone of timm's, found inside, and its own ViT; both castled as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer

import castling_convert as cc
from castling_convert.errors import ModelError
from castling_convert.families import family_of
from castling_convert.tasks import task_of
from tests.families import road
from tests.models import LANDMARKS, images

STEPS = cc.Recipe.parse({"attention": LANDMARKS, "distill": {"steps": 4, "batch_size": 4}}, "test")
SIZE = 160
TEXT = {"context_length": 8, "vocab_size": 40, "width": 32, "heads": 2, "layers": 1}
POOLER = {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 3, "output_tokens": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "CLIP": {"act_layer": open_clip.transformer.QuickGELU},
    "a mean of wide images, layers scaled": {"image_size": (32, 48), "pool_type": "avg", "ls_init_value": 0.5},
    "CoCa": POOLER,
}


def own(**arguments: Any) -> Any:
    torch.manual_seed(0)
    values: dict[str, Any] = {"image_size": 32, "patch_size": 8, "output_dim": 24, "mlp_ratio": 2.0} | arguments
    return VisionTransformer(width=48, layers=2, heads=3, **values).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return own(**VARIANTS[request.param])


class TestItsOwn(road.EveryVariant):
    def accounted(self, model: Any, student: Any) -> None:
        assert [layer.name for layer in student.castling.layers if layer.status != "castled"] == (
            ["attn_pool.attn"] if model.output_tokens else []
        )


@torch.no_grad()
def test_two_parts_are_its_embedding(model: Any) -> None:
    batch, task = road.images_for(model), task_of(model)
    assert task.output == "features"
    found = task.head(model, task.features(model, batch))
    assert found.shape == (2, 24)
    whole = model(batch)
    torch.testing.assert_close(found, whole[0] if isinstance(whole, tuple) else whole)


@pytest.mark.slow
def test_its_own_from_castle_to_onnx(tmp_path: Path) -> None:
    road.from_castle_to_onnx(own(), tmp_path, named=False)


def test_what_stays_of_its_own_says_why() -> None:
    def reasons(teacher: Any) -> set[str | None]:
        return {layer.reason for layer in family_of(teacher).layers(teacher)}

    pooled, scaled = reasons(own(**POOLER)), reasons(own(block_type="custom", scale_heads=True))
    assert pooled == {None, "attention pooling has a fixed number of queries and is already linear in the tokens"}
    assert scaled == {"it scales or normalises heads as no published model of open_clip does"}


@pytest.mark.parametrize(
    ("name", "layers", "kept"), [("ViT-B-32", 12, 0), ("ViT-bigG-14", 48, 0), ("coca_ViT-L-14", 24, 1)]
)
def test_published_names(name: str, layers: int, kept: int) -> None:
    values = open_clip.get_model_config(name)
    with torch.device("meta"):
        tower = open_clip.model._build_vision_tower(values["embed_dim"], values["vision_cfg"])
    found = family_of(tower).layers(tower)
    assert [layer.castable for layer in found] == layers * [True] + kept * [False]


def test_its_own_has_one_size() -> None:
    teacher = own()
    with pytest.raises(ModelError, match="VisionTransformer takes images of 32x32 alone, not of 64x64; leave out"):
        family_of(teacher).resize_(teacher, (64, 64))


def test_the_encoder_on_timm_is_castled_distilled_and_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = TimmModel("test_vit", embed_dim=24, image_size=SIZE, pool="", proj="linear").eval()
    batch = images(4, SIZE, SIZE)
    student = cc.castle(teacher, STEPS)
    assert len(student.castling.castled) == len(teacher.trunk.blocks)
    cc.distill(student, teacher, [batch] * 4, STEPS, device="cpu")
    folded = cc.fold(student)
    cc.export(folded, tmp_path / "m.onnx", format="onnx")
    found = torch.from_numpy(cc.Session(tmp_path / "m.onnx")(batch.numpy()))
    assert found.shape == (4, 24)
    torch.testing.assert_close(found, folded(batch).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "vision",
    [
        {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
        {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    ],
    ids=["on timm", "its own"],
)
def test_the_whole_model_is_refused_for_its_encoder(vision: dict[str, Any]) -> None:
    teacher = open_clip.CLIP(embed_dim=24, vision_cfg=vision | {"image_size": SIZE}, text_cfg=TEXT).eval()
    with pytest.raises(ModelError, match=r"CLIP returns a tuple.*its image encoder"):
        cc.distill(cc.castle(teacher, STEPS), teacher, [images(4, SIZE, SIZE)] * 4, STEPS, device="cpu")
