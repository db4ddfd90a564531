"""The whole job as a Python function."""

from __future__ import annotations

import json
import signal

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import castling_convert as cc
from castling_convert.distill.progress import Progress
from castling_convert.errors import CastlingError, DataError, Interrupted

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def small():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, **SMALL).eval()


@pytest.fixture
def file(tmp_path):
    save_file(small().state_dict(), tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


def convert(output, *overrides: str, steps: int = 6, **options):
    recipe = cc.Recipe.load("castling", [f"distill.steps={steps}", "distill.batch_size=4", *overrides])
    values = {"data": "digits", "image_size": (32, 32), "model_args": SMALL, "device": "cpu"}
    return cc.convert(options.pop("model", "vit_t"), output, recipe=recipe, **(values | options))


def stop_at(monkeypatch, step: int, how) -> None:
    whole = Progress.step

    def stopping(self, **values):
        whole(self, **values)
        if values["step"] == step:
            how()

    monkeypatch.setattr(Progress, "step", stopping)


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_what_a_bundle_holds(tmp_path, file):
    summary = convert(tmp_path / "out", weights=file)
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*"))
    assert files == [
        "config.json", "metrics.jsonl", "model.safetensors", "recipe.yaml", "summary.json", "train",
        "train/trained.safetensors",
    ]  # fmt: skip
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {key: written[key] for key in summary} == json.loads(json.dumps(summary))
    assert [layer["status"] for layer in written["layers"]] == ["castled", "castled"]
    assert written["fold"]["holds"] is True
    assert set(written["sha256"]) == set(files) - {"summary.json", "train"}
    assert written["accuracy"]["held_out"] is True
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 6
    assert cc.Recipe.load(tmp_path / "out" / "recipe.yaml").distill.steps == 6


def test_both_ways_of_loading_agree_with_the_trained_model(tmp_path, file):
    from castling_convert.bundle import load_trained

    convert(tmp_path / "out", weights=file)
    images = torch.randn(4, 3, 32, 32)
    models = [cc.load(tmp_path / "out"), timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()]
    with torch.no_grad():
        expected = load_trained(tmp_path / "out")(images)
        for model in models:
            torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at", [1, 4, 6])
def test_interrupted_and_resumed_gives_the_same_weights(tmp_path, file, monkeypatch, at):
    """Ctrl-C in the last step lets the run end, or leaves a state to end it from; the weights are the same."""
    convert(tmp_path / "whole", weights=file)
    with monkeypatch.context() as patch:
        stop_at(patch, at, press_ctrl_c)
        if at < 6:
            with pytest.raises(Interrupted, match=rf"after step {at} of 6; .*--resume"):
                convert(tmp_path / "parts", weights=file)
        else:
            convert(tmp_path / "parts", weights=file)
    if at < 6:
        torch.manual_seed(99)
        convert(tmp_path / "parts", weights=file, resume=True)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_second_ctrl_c_stops_at_once_and_leaves_nothing(tmp_path, file, monkeypatch):
    stop_at(monkeypatch, 2, lambda: [press_ctrl_c(), press_ctrl_c()])
    with pytest.raises(Interrupted, match="nothing was written"):
        convert(tmp_path / "out", weights=file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("stage", ["measure", "certify", "bundle.save"])
def test_ctrl_c_after_the_training_loses_nothing(tmp_path, file, monkeypatch, stage):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"castling_convert.pipeline.{stage}", interrupted)
        with pytest.raises(Interrupted, match=r"after step 6 of 6.*--resume"):
            convert(tmp_path / "out", weights=file)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]
    convert(tmp_path / "out", weights=file, resume=True)
    assert cc.load(tmp_path / "out").num_classes == 10


def test_the_seed_makes_random_weights_too(tmp_path):
    """--no-pretrained --seed 0 is the same model every time, and --resume goes on with the same teacher."""
    for name in ("first", "second"):
        torch.rand(3)
        convert(tmp_path / name, pretrained=False, num_classes=10, steps=1)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_is_taken_as_it_is(tmp_path):
    teacher = small().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    summary = convert(tmp_path / "out", model=teacher)
    assert summary["model"] == "vit_tiny_patch16_224"
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_layers_that_are_kept_stay_softmax(tmp_path, file):
    summary = convert(tmp_path / "out", weights=file, layers="1")
    assert [layer["status"] for layer in summary["layers"]] == ["kept", "castled"]
    kinds = [type(block.attn).__name__ for block in cc.load(tmp_path / "out").blocks]
    assert kinds == ["Attention", "FoldedAttention"]


def folders(root, *classes: str, count: int = 2) -> str:
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (40, 40), (40 * index, 90, 10)).save(root / name / f"{index}.png")
    return str(root)


def test_unlabelled_images_give_agreement_alone(tmp_path, file):
    data = folders(tmp_path, "flat")
    accuracy = convert(tmp_path / "out", weights=file, data=f"{data}/flat", steps=1)["accuracy"]
    assert accuracy["measured"] is False
    assert "no labels" in accuracy["why"]
    assert accuracy["castled"]["top1"] is None
    assert accuracy["castled"]["agreement"] is not None


@pytest.mark.parametrize(("parts", "held_out"), [(("",), False), (("train/",), False), (("train/", "val/"), True)])
def test_held_out_is_said_only_of_other_images(tmp_path, file, parts, held_out):
    for part in parts:
        folders(tmp_path / "data" / part, *(f"class{index}" for index in range(10)), count=1)
    accuracy = convert(tmp_path / "out", weights=file, data=str(tmp_path / "data"), steps=1)["accuracy"]
    assert accuracy["measured"] is True
    assert accuracy["held_out"] is held_out


def test_held_out_of_a_torchvision_folder_without_parts(tmp_path, file):
    data = folders(tmp_path / "data", *(f"class{index}" for index in range(10)), count=1)
    accuracy = convert(tmp_path / "out", weights=file, data=f"torch/image_folder:{data}", steps=1)["accuracy"]
    assert accuracy["held_out"] is False


def test_accuracy_of_other_classes_is_not_called_accuracy(tmp_path, file):
    """Two folders of the user's own are not the first two of the model's ten classes."""
    data = folders(tmp_path / "data", "mine", "yours")
    accuracy = convert(tmp_path / "out", weights=file, data=data, steps=1)["accuracy"]
    assert accuracy["measured"] is False
    assert "2 classes" in accuracy["why"]
    assert accuracy["castled"]["agreement"] is not None


def test_a_broken_torchvision_image_is_named(tmp_path, file):
    data = folders(tmp_path / "data", "a", "b")
    (tmp_path / "data" / "b" / "9.png").write_text("not an image")
    with pytest.raises(DataError):
        convert(tmp_path / "out", weights=file, data=f"torch/image_folder:{data}", steps=4)
    assert not (tmp_path / "out").exists()


def test_failures_leave_no_output(tmp_path, file):
    for wrong in ({"data": "nowhere"}, {"layers": "9"}, {"device": "tpu"}, {"model": "resnet50"}):
        with pytest.raises(CastlingError):
            convert(tmp_path / "out", **({"weights": file} | wrong))
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
