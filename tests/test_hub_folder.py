"""Models of Hugging Face transformers from a local folder, as its own save_pretrained writes one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import castling_convert as cc
from castling_convert import bundle
from castling_convert.castling import close_masks
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.errors import BundleError, DataError, ModelError, WeightsError
from castling_convert.evaluation.teacher import teacher_of
from castling_convert.families import family_of, input_size_of
from castling_convert.files import sha256
from castling_convert.loading import load_model
from castling_convert.pipeline.conversion import convert
from castling_convert.tasks import task_of
from tests.families.test_hub_dense import small as dense
from tests.models import LANDMARKS, recipe

hub = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install castling-convert[transformers]"
)

PROCESSOR = {
    "do_resize": True, "size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
    "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.2],
}  # fmt: skip


def vit() -> Any:
    torch.manual_seed(0)
    config = hub.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, intermediate_size=64,
        num_labels=10,
    )  # fmt: skip
    return hub.ViTForImageClassification(config).eval()


def saved(model: Any, folder: Path, processor: dict[str, Any] | None = PROCESSOR) -> Path:
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(vit(), tmp_path_factory.mktemp("hub") / "vit")


@pytest.fixture
def copied(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@torch.no_grad()
def test_it_is_the_model_that_was_saved(good: Path) -> None:
    model: Any = load_model(f"local-dir:{good}")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), vit()(images).logits)
    assert not model.training
    assert input_size_of(model) == (3, 32, 32)
    assert task_of(model).name == "classify"
    assert task_of(model).classes(model) == 10


@torch.no_grad()
@pytest.mark.parametrize("name", ["segformer", "segformer encoder", "vitdet backbone, padded", "sam"])
def test_dense_models(name: str, tmp_path: Path) -> None:
    original = dense(name)
    model: Any = load_model(f"local-dir:{saved(original, tmp_path / 'm')}")
    images = torch.randn(2, *input_size_of(model))
    family = family_of(original)
    expected = family.head(original, family.features(original, images))
    torch.testing.assert_close(model(images), expected)
    assert task_of(model).name == task_of(original).name
    student = cc.castle(model, recipe(**LANDMARKS)).eval()
    torch.testing.assert_close(student(images), expected)


def test_the_preprocessing_is_that_of_the_folder(good: Path, copied: Path) -> None:
    found = Preprocessing.of(load_model(f"local-dir:{good}", pretrained=False))
    assert (found.mean, found.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    assert (found.interpolation, found.crop_pct, found.crop_mode) == ("bicubic", 0.8, "center")
    (copied / "preprocessor_config.json").write_text(json.dumps({
        "size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }))  # fmt: skip
    found = Preprocessing.of(load_model(f"local-dir:{copied}", pretrained=False))
    assert (found.interpolation, found.crop_pct, found.crop_mode) == ("bilinear", 1.0, "squash")
    change(copied / "preprocessor_config.json", size=40, crop_size=32, do_center_crop=True)  # as older ones have it
    assert Preprocessing.of(load_model(f"local-dir:{copied}", pretrained=False)).crop_pct == 0.8
    change(copied / "preprocessor_config.json", rescale_factor=1.0)
    with pytest.raises(ModelError, match="another range of pixels"):
        load_model(f"local-dir:{copied}")
    change(copied / "preprocessor_config.json", rescale_factor="all")
    with pytest.raises(ModelError, match="'all' stands where a number should"):
        load_model(f"local-dir:{copied}")


def test_the_size_of_a_model_that_takes_any_is_that_of_its_preprocessing(tmp_path: Path) -> None:
    folder = saved(dense("segformer"), tmp_path, PROCESSOR | {"size": {"height": 96, "width": 64}})
    assert input_size_of(load_model(f"local-dir:{folder}")) == (3, 96, 64)


def test_a_folder_that_does_not_say_how_images_are_normalised(copied: Path, tmp_path: Path) -> None:
    """It is castled with tensors of one's own; data by name and a bundle need it."""
    (copied / "preprocessor_config.json").unlink()
    model = load_model(f"local-dir:{copied}")
    with pytest.raises(DataError, match="does not say how its images are normalised"):
        Preprocessing.of(model)
    with pytest.raises(BundleError, match=r"add the preprocessor_config\.json"):
        convert(f"local-dir:{copied}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_from_a_folder_to_a_bundle_to_onnx(good: Path, tmp_path: Path) -> None:
    fast = cc.Recipe.load("datafree", ("distill.steps=4", "distill.batch_size=2"))
    summary = convert(f"local-dir:{good}", tmp_path / "out", recipe=fast, device="cpu")
    assert summary["fold"]["holds"]
    loaded: Any = cc.load(tmp_path / "out")
    assert loaded(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert bundle.load_trained(tmp_path / "out") is not None
    assert Preprocessing.of(loaded).mean == (0.4, 0.5, 0.6)
    again = cc.save(loaded, tmp_path / "again")
    cc.load(again)
    assert sha256(again / "model.safetensors") == sha256(tmp_path / "out" / "model.safetensors")
    cc.export(loaded, tmp_path / "m.onnx", batch="dynamic")


@pytest.mark.slow
@pytest.mark.parametrize("pretrained", [True, False])
def test_the_teacher_of_a_bundle_is_had_again(good: Path, tmp_path: Path, pretrained: bool) -> None:
    fast = cc.Recipe.load("datafree", ("distill.steps=2", "distill.batch_size=2"))
    convert(f"local-dir:{good}", tmp_path / "out", recipe=fast, device="cpu", pretrained=pretrained)
    teacher = teacher_of(tmp_path / "out", cc.load(tmp_path / "out"))
    assert teacher(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.slow
@torch.no_grad()
def test_a_segmenter_is_measured_and_takes_any_size(tmp_path: Path) -> None:
    model: Any = load_model(f"local-dir:{saved(dense('segformer'), tmp_path / 'm')}", image_size=(64, 96))
    student = cc.castle(model, recipe(**LANDMARKS))
    close_masks(student)
    folded = cc.fold(student)
    loaded: Any = cc.load(cc.save(folded, tmp_path / "b"))
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(loaded(images), folded(images), rtol=0, atol=0)
    assert input_size_of(loaded) == (3, 64, 96)
    assert task_of(loaded).name == "segment"
    family_of(loaded).resize_(loaded, (32, 64))
    assert input_size_of(cc.load(cc.save(loaded, tmp_path / "c"))) == (3, 32, 64)
    assert cc.export(loaded, tmp_path / "half.onnx", precision="fp16").is_file()


def test_older_names_of_weights_are_known(good: Path) -> None:
    """transformers renames them; a checkpoint has those that they had when most were published."""
    from safetensors import safe_open

    with safe_open(good / "model.safetensors", "pt") as file:
        assert "vit.encoder.layer.0.attention.attention.query.weight" in file.keys()  # noqa: SIM118


def test_sharded_weights(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model(f"local-dir:{tmp_path}")(images), vit()(images).logits)


def test_weights_that_are_pickled(copied: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {copied / 'executed'}",)

    (copied / "model.safetensors").unlink()
    torch.save({"classifier.weight": Payload()}, copied / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors, and pickles are not read"):
        load_model(f"local-dir:{copied}")
    assert not (copied / "executed").exists()


def test_weights_that_are_truncated_or_of_another_model(copied: Path) -> None:
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="is damaged or no weights file"):
        load_model(f"local-dir:{copied}")
    weights.write_bytes(whole)
    change(copied / "config.json", num_hidden_layers=3)
    with pytest.raises(
        WeightsError, match=r"not those of a ViTForImageClassification with this config: \d+ are missing"
    ):
        load_model(f"local-dir:{copied}")
    change(copied / "config.json", num_hidden_layers=2, patch_size=4)
    with pytest.raises(WeightsError, match=r"2 are of another size, such as vit\.embeddings"):
        load_model(f"local-dir:{copied}")
    change(copied / "config.json", hidden_size=32_768, intermediate_size=65_535)
    with pytest.raises(WeightsError, match="describes a model of"):
        load_model(f"local-dir:{copied}")


STRANGE: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["BertModel"]}, "a BertModel of Hugging Face transformers is not known here"),
    ({"architectures": ["os.system"]}, "is not known here"),
    ({"architectures": ["CLIPForImageClassification"]}, "holds configs of several models"),
    ({"architectures": []}, "names no class in architectures"),
    ({"architectures": 5}, "names no class in architectures"),
    ({"num_hidden_layers": 10**9}, "no plain value within bounds"),
    ({"num_hidden_layers": 900}, "is above 200"),
    ({"num_hidden_layers": "two"}, "can't be read"),
    ({"hidden_act": "os.system"}, "can't be made of its config"),
    ({"hidden_act": {"class": "os.system"}}, "no plain value within bounds"),
    ({"num_attention_heads": 7}, "are of another size"),
]


@pytest.mark.parametrize(("values", "why"), STRANGE, ids=lambda value: str(value)[:40])
def test_a_strange_config_is_one_line(copied: Path, values: dict[str, Any], why: str) -> None:
    change(copied / "config.json", **values)
    with pytest.raises(cc.CastlingError, match=why) as caught:
        load_model(f"local-dir:{copied}")
    assert "\n" not in str(caught.value)


def test_what_transformers_would_follow_is_not_followed(copied: Path) -> None:
    """Code of the folder's own, adapters, other kinds of attention, weights in other formats."""
    change(
        copied / "config.json", auto_map={"AutoModel": "mine.Mine"}, _attn_implementation="somebody/kernels",
        attn_implementation="somebody/kernels", quantization_config={"quant_method": "bitsandbytes"},
        _name_or_path="somebody/model", torch_dtype="float16",
    )  # fmt: skip
    (copied / "mine.py").write_text(f"open({str(copied / 'executed')!r}, 'w')")
    (copied / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model", "peft_type": "LORA"}')
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model(f"local-dir:{copied}")(images), vit()(images).logits)
    assert not (copied / "executed").exists()


def test_what_a_folder_does_not_take(good: Path, tmp_path: Path) -> None:
    name = f"local-dir:{good}"
    with pytest.raises(WeightsError, match=r"the head in .* has 10 classes, one of 5 is random"):
        load_model(name, num_classes=5)
    with pytest.raises(ModelError, match="leave out --model-arg depth"):
        load_model(name, model_args={"depth": 3})
    with pytest.raises(ModelError, match="takes images of 32x32 alone, not of 64x64"):
        load_model(name, image_size=(64, 64))
    with pytest.raises(ModelError, match="not made without its classifier"):
        convert(name, tmp_path / "out", task="features")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(f"local-dir:{tmp_path}")


def test_without_transformers(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="transformers")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModelError, match=r"transformers is not installed; .*castling-convert\[transformers\]"):
        load_model(f"local-dir:{good}")


FORGED: list[tuple[str, Any]] = [
    ("kind", "os.system"),
    ("kind", "BertModel"),
    ("kind", 5),
    ("config", None),
    ("config", "/etc/passwd"),
    ("config", {"hidden_size": {"file": "/etc/passwd"}}),
    ("config", {"auto_map": "mine.Mine"}),
    ("config", {"_attn_implementation": "somebody/kernels"}),
    ("config", {"num_hidden_layers": 10**12}),
    ("config", {"num_hidden_layers": 60_000}),
    ("config", {"hidden_size": 65_535}),
    ("config", {"image_size": [65_000] * 300}),
    ("config", {"hidden_act": "os.system"}),
    ("pretrained", True),
    ("checkpoint_path", "/etc/passwd"),
    ("num_classes", 7),
    ("device", "cuda:99"),
]


@pytest.fixture(scope="module")
def made(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    student = cc.castle(load_model(f"local-dir:{good}"), recipe(**LANDMARKS))
    close_masks(student)
    return cc.save(cc.fold(student), tmp_path_factory.mktemp("made") / "b")


@pytest.mark.parametrize(("key", "value"), FORGED, ids=lambda value: str(value)[:40])
def test_a_forged_bundle_is_one_line(made: Path, tmp_path: Path, key: str, value: Any) -> None:
    path = Path(shutil.copytree(made, tmp_path / "b"))
    config = json.loads((path / "config.json").read_text())
    config["model_args"]["base_args"][key] = value
    (path / "config.json").write_text(json.dumps(config))
    summary = json.loads((path / "summary.json").read_text())
    change(path / "summary.json", sha256=summary["sha256"] | {"config.json": sha256(path / "config.json")})
    with pytest.raises(cc.CastlingError) as caught:
        cc.load(path)
    assert "\n" not in str(caught.value)


def test_a_bundle_of_a_window_that_fills_the_memory(made: Path, tmp_path: Path) -> None:
    """Its places are counted by no weights, and are as many as its tokens squared."""
    path = Path(shutil.copytree(made, tmp_path / "b"))
    config = json.loads((path / "config.json").read_text())
    config["model_args"]["base_args"] |= {
        "kind": "SwinForImageClassification",
        "config": {
            "window_size": 400,
            "image_size": 1600,
            "depths": [1],
            "num_heads": [1],
            "embed_dim": 8,
            "num_labels": 10,
        },
    }
    (path / "config.json").write_text(json.dumps(config))
    summary = json.loads((path / "summary.json").read_text())
    change(path / "summary.json", sha256=summary["sha256"] | {"config.json": sha256(path / "config.json")})
    with pytest.raises(BundleError, match="more numbers"):
        cc.load(path)
