"""A `config.json` from anybody: strange values with hashes that match."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm

import castling_convert as cc
from castling_convert import bundle
from castling_convert.bundle.config import check_config, check_structure
from castling_convert.errors import BundleError
from castling_convert.files import sha256
from tests.models import closed_student, tiny


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    student = closed_student(tiny())
    return bundle.save(cc.fold(student), tmp_path_factory.mktemp("good") / "bundle", trained=student)


def forge(good: Path, copied: Path, key: str, value: Any) -> Path:
    """A bundle with this value in its config, and the hash that belongs to it."""
    shutil.copytree(good, copied)
    config = json.loads((copied / "config.json").read_text())
    *parents, last = key.split("/")
    place = config
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    (copied / "config.json").write_text(json.dumps(config))
    summary = json.loads((copied / "summary.json").read_text())
    summary["sha256"]["config.json"] = sha256(copied / "config.json")
    (copied / "summary.json").write_text(json.dumps(summary))
    return copied


STRANGE = [
    ("architecture", "resnet50"),
    ("architecture", "vit_tiny_patch16_224"),
    ("architecture", KeyError),
    ("num_classes", -1),
    ("num_classes", "ten"),
    ("model_args", KeyError),
    ("model_args", []),
    ("model_args/checkpoint_path", "/etc/passwd"),
    ("model_args/pretrained_cfg", {"file": "/etc/passwd"}),
    ("model_args/base", "resnet50"),
    ("model_args/base", "castled"),
    ("model_args/base", "local-dir:/etc"),
    ("model_args/base", "hf-hub:somebody/model"),
    ("model_args/base", "no_such_model"),
    ("model_args/base", 5),
    ("model_args/base_args", None),
    ("model_args/base_args/checkpoint_path", "/etc/passwd"),
    ("model_args/base_args/pretrained", True),
    ("model_args/base_args/pretrained_cfg", {"file": "/etc/passwd"}),
    ("model_args/base_args/cache_dir", "/etc"),
    ("model_args/base_args/depth", 10**12),
    ("model_args/base_args/depth", 50_000),
    ("model_args/base_args/depth", 900),
    ("model_args/base_args/depth", -1),
    ("model_args/base_args/depth", "two"),
    ("model_args/base_args/depth", [[150, 30], [30]]),
    ("model_args/base_args/depth", [[[2]]]),
    ("model_args/base_args/depths", [100, 101]),
    ("model_args/base_args/depth", 3),
    ("model_args/base_args/embed_dim", 65_535),
    ("model_args/base_args/embed_dim", 2.5),
    ("model_args/base_args/num_heads", 7),
    ("model_args/base_args/num_heads", 0),
    ("model_args/base_args/img_size", 10**6),
    ("model_args/base_args/img_size", 60_000),
    ("model_args/base_args/img_size", [32] * 100),
    ("model_args/base_args/mlp_ratio", 1e300),
    ("model_args/base_args/mlp_ratio", math.nan),
    ("model_args/base_args/norm_layer", "os.system"),
    ("model_args/base_args/device", "cuda:99"),
    ("model_args/base_args/dtype", "float16"),
    ("model_args/castling/layers", 5),
    ("model_args/castling/layers", "0-999999999999"),
    ("model_args/castling/attention", None),
    ("model_args/castling/attention/form", "nothing"),
    ("model_args/castling/attention/kernel_size", 10**9),
    ("model_args/castling/attention/kernel_size", "large"),
    ("model_args/castling/attention/file", "/etc/passwd"),
    ("model_args/castling/file", "/etc/passwd"),
    ("pretrained_cfg", KeyError),
    ("pretrained_cfg/file", "/etc/passwd"),
    ("pretrained_cfg/url", "http://localhost/weights.pth"),
    ("pretrained_cfg/hf_hub_id", "somebody/model"),
    ("pretrained_cfg/state_dict", {}),
    ("pretrained_cfg/source", "url"),
    ("pretrained_cfg/custom_load", True),
    ("pretrained_cfg/custom_load", "hf"),
    ("pretrained_cfg/unheard_of", 1),
    ("pretrained_cfg/input_size", [3, 10**9, 10**9]),
    ("pretrained_cfg/input_size", 32),
    ("pretrained_cfg/mean", [math.nan] * 3),
    ("pretrained_cfg/std", [0.0] * 3),
    ("pretrained_cfg/std", "grey"),
    ("pretrained_cfg/interpolation", "magic"),
    ("pretrained_cfg/label_offset", 5),
    ("castling/family", 5),
    ("castling/attention", "angular"),
    ("castling/layers", {"name": "x"}),
    ("castling/layers/0/name", "../../x"),
    ("castling/layers/0/status", "kept for ever"),
    ("castling/layers/0/file", "/etc/passwd"),
]


@pytest.mark.parametrize(("key", "value"), STRANGE, ids=lambda value: str(value)[:40])
def test_a_strange_config_is_one_line(good: Path, tmp_path: Path, key: str, value: Any) -> None:
    path = forge(good, tmp_path / "bundle", key, value)
    with pytest.raises(cc.CastlingError) as caught:
        cc.load(path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    with pytest.raises(cc.CastlingError):
        bundle.load_trained(path)


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("key", ["model_args/checkpoint_path", "model_args/base_args/checkpoint_path"])
def test_timm_itself_reads_no_other_file(good: Path, tmp_path: Path, key: str, pretrained: bool) -> None:
    path = forge(good, tmp_path / "bundle", key, str(tmp_path / "other.pth"))
    with pytest.raises(BundleError, match="has no argument checkpoint_path"):
        timm.create_model(f"local-dir:{path}", pretrained=pretrained)


def test_a_key_that_nobody_reads_is_passed_over(good: Path, tmp_path: Path) -> None:
    assert cc.load(forge(good, tmp_path / "one", "num_features", 48)).num_classes == 10
    assert cc.load(forge(good, tmp_path / "two", "castling/made_later", [1])).num_classes == 10


def test_weights_that_do_not_fit(good: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle can't be loaded: .*; copy the bundle again"):
        cc.load(forge(good, tmp_path / "bundle", "model_args/base_args/depth", 3))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224"])
def test_what_a_user_may_have_given_is_allowed(good: Path, name: str) -> None:
    """Every argument that a model of the supported family takes, of plain values."""
    values = json.loads((good / "config.json").read_text())
    arguments = {
        "img_size": 32, "num_classes": 0, "drop_path_rate": 0.1, "init_values": 1e-5, "qk_norm": True, "reg_tokens": 4,
        "global_pool": "avg", "class_token": True, "norm_layer": "layernorm", "act_layer": "relu", "in_chans": 1,
    }  # fmt: skip
    if "distilled" in name:
        del arguments["reg_tokens"], arguments["global_pool"]
    changed = copy.deepcopy(values)
    changed["model_args"] |= {"base": name, "base_args": arguments}
    check_config(changed, good / "config.json")
    check_structure(changed, good / "config.json", 10**9)
