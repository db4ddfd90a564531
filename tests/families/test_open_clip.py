"""open_clip's image encoder on a backbone of timm's: found inside, and castled as it is."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.timm_model import TimmModel

import castling_convert as cc
from castling_convert.errors import ModelError
from tests.models import LANDMARKS, images

STEPS = cc.Recipe.parse({"attention": LANDMARKS, "distill": {"steps": 4, "batch_size": 4}}, "test")
SIZE = 160


def test_the_image_encoder_is_castled_distilled_and_exported(tmp_path: Path) -> None:
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


def test_the_whole_model_is_refused_for_its_encoder() -> None:
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": SIZE}
    text = {"context_length": 8, "vocab_size": 40, "width": 32, "heads": 2, "layers": 1}
    teacher = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()
    with pytest.raises(ModelError, match=r"CLIP returns a tuple.*its image encoder"):
        cc.distill(cc.castle(teacher, STEPS), teacher, [images(4, SIZE, SIZE)] * 4, STEPS, device="cpu")
