"""What a user can get wrong about the model and its weights: each is one line, exit 2, and no file."""

from __future__ import annotations

import os
import pickle
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

CONVERT = ("convert", "--output", "out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "diet_s"], ["'diet_s'", "did you mean", "deit_s"]),
        (["--model", "deit_smal_patch16_224"], ["deit_smal_patch16_224", "deit_small_patch16_224"]),
        (["--model", "qqqq"], ["'qqqq'", "castling models"]),
        (["--model", "resnet50"], ["resnet50", "can't be castled: no attention between tokens", "castling models"]),
        (["--model", "xcit_nano_12_p16_224"], ["xcit_nano_12_p16_224", "cross-covariance", "already linear"]),
        (["--model", "swin_t", "--no-pretrained", "--image-size", "3"], ["3x3", "give another --image-size"]),
        (["--model", "pvt_v2_b0", "--image-size", "64"], ["pvt_v2_b0", "without an image size", "leave out"]),
        (["--model", "cait_xxs24_224", "--no-pretrained"], ["nothing to castle", "talking heads"]),
        (["--model", "poolformer_s12"], ["poolformer_s12", "no attention between tokens"]),
        (["--model", "deit_s", "--model-arg", "mlp_ration=2"], ["deit_s", "--model-arg", "mlp_ration"]),
        (["--model", "deit_s", "--model-arg", "depth"], ["--model-arg", "key=value", "'depth'"]),
        (["--model", "deit_s", "--model-arg", "a-b=1"], ["--model-arg", "key=value", "'a-b=1'"]),
        (["--model", "deit_s", "--model-arg", "depth=[1"], ["--model-arg depth", "[1"]),
        (["--model", "deit_s", "--image-size", "2x"], ["--image-size", "224 or 384x512", "castling convert --help"]),
        (["--model", "deit_s", "--steps", "0"], ["--steps", "castling convert --help"]),
        (["--model", "local-dir:nowhere"], ["nowhere", "config.json"]),
        (["--modle", "deit_s"], ["--modle", "--model"]),
        ([], ["--model", "castling convert --help"]),
    ],
    ids=lambda value: "_".join(value)[:40] if isinstance(value, list) else None,
)
def test_convert_refuses_a_wrong_model_before_any_download(castling, arguments, words):
    castling(*CONVERT, *arguments).refused(*words)


@pytest.mark.parametrize("command", ["inspect"])
def test_other_commands_refuse_a_cnn_too(castling, command):
    castling(command, "--model", "resnet50").refused("resnet50", "can't be castled")


def test_a_folder_is_no_model_name(castling, here):
    (here / "mymodel").mkdir()
    castling(*CONVERT, "--model", "mymodel").refused("mymodel is a folder", "local-dir:mymodel")


def test_an_argument_the_model_chokes_on(castling, tiny):
    castling(*CONVERT, *tiny, "--model-arg", "num_heads=5", "--data", "digits").refused("vit_t", "num_heads")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("garbage", ["layers", "'garbage'", "0-7,9"]),
        ("0-99", ["layers", "0-99", "0-1"]),
        ("1-0", ["layers", "1-0"]),
        ("0,,1", ["layers", "''"]),
    ],
)
def test_layers_that_can_not_be_read(castling, tiny, layers, words):
    castling(*CONVERT, *tiny, "--data", "digits", "--layers", layers).refused(*words)


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_a_device_that_is_not_here(castling, tiny, device):
    castling(*CONVERT, *tiny, "--data", "digits", "--device", device).refused(f"device {device}", "--device cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(castling, tiny):
    castling(*CONVERT, *tiny, "--data", "digits", "--device", "cuda").refused("device cuda", "--device cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_half_precision_training_without_a_gpu(castling, tiny):
    result = castling(*CONVERT, *tiny, "--data", "digits", "--set", "distill.precision=fp16")
    result.refused("distill.precision", "fp16")


class Payload:
    """Unpickling this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.pt"])
@pytest.mark.parametrize("how", ["torch", "legacy torch", "plain pickle"])
@pytest.mark.filterwarnings("error")
def test_a_pickle_with_code_is_refused_and_not_run(castling, here, tmp_path, name, how):
    marker = tmp_path / "executed"
    content = {"model": Payload(f"touch {marker}")}
    if "torch" in how:
        torch.save(content, here / name, _use_new_zipfile_serialization=how == "torch")
    else:
        (here / name).write_bytes(pickle.dumps(content))
    line = castling(*CONVERT, "--model", "vit_t", "--weights", name).refused(name, "refused", ".safetensors")
    assert not marker.exists()
    assert "weights_only=False" not in line  # nobody should be told to run the code


def _missing(here: Path, _state: dict) -> None:
    pass


def _a_folder(here: Path, _state: dict) -> None:
    (here / "w.safetensors").mkdir()


def _truncated(here: Path, state: dict) -> None:
    save_file(state, here / "w.safetensors")
    whole = (here / "w.safetensors").read_bytes()
    (here / "w.safetensors").write_bytes(whole[: len(whole) // 2])


def _empty(here: Path, _state: dict) -> None:
    (here / "w.safetensors").write_bytes(b"")


def _other_architecture(here: Path, _state: dict) -> None:
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(10)}, here / "w.safetensors")


def _other_size(here: Path, state: dict) -> None:
    save_file({name: torch.cat([tensor, tensor]) for name, tensor in state.items()}, here / "w.safetensors")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_missing, ["w.safetensors", "not found"]),
        (_a_folder, ["w.safetensors", "folder"]),
        (_truncated, ["w.safetensors", "damaged"]),
        (_empty, ["w.safetensors", "damaged"]),
        (_other_architecture, ["w.safetensors", "doesn't fit vit_t", "missing keys", "conv1.weight"]),
        (_other_size, ["w.safetensors", "doesn't fit vit_t", "sizes differ"]),
    ],
)
def test_weights_that_can_not_be_used(castling, here, weights, make, words):
    make(here, weights[1].state_dict())
    castling(*CONVERT, "--model", "vit_t", "--weights", "w.safetensors").refused(*words)


def test_num_classes_that_contradicts_the_weights(castling, weights):
    result = castling(*CONVERT, "--model", "vit_t", "--weights", weights[0], "--num-classes", "10")
    result.refused("1000 classes", "10", "--num-classes")


def test_weights_on_top_of_a_local_dir(castling, made, weights):
    castling(*CONVERT, "--model", f"local-dir:{made}", "--weights", weights[0]).refused("--weights", "local-dir:")


def test_a_bundle_is_not_castled_again(castling, made):
    castling(*CONVERT, "--model", f"local-dir:{made}", "--data", "digits").refused("castled already")


def test_no_download_offline(castling, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = castling(*CONVERT, "--model", "deit_s")
    result.refused("deit_s", "can't be downloaded", "--weights", "--no-pretrained")


def _safetensors(state: dict, here: Path) -> Path:
    save_file(state, here / "good.safetensors")
    return here / "good.safetensors"


def _model_in_pth(state: dict, here: Path) -> Path:
    torch.save({"model": state, "epoch": 3}, here / "good.pth")
    return here / "good.pth"


def _data_parallel_pth(state: dict, here: Path) -> Path:
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, here / "good.pth")
    return here / "good.pth"


@pytest.mark.parametrize("form", [_safetensors, _model_in_pth, _data_parallel_pth])
def test_good_weights_are_loaded_and_the_head_is_theirs(castling, here, form, weights):
    """The file has ten classes and not the model's thousand; nothing else has to be said."""
    state = {name: tensor for name, tensor in weights[1].state_dict().items() if not name.startswith("head.")}
    torch.manual_seed(1)
    state |= {"head.weight": torch.randn(10, 192), "head.bias": torch.randn(10)}
    path = form(state, here)
    arguments = shlex.split(
        "--data digits --image-size 32 --steps 1 --set distill.batch_size=2 --device cpu --layers 0"
    )
    castling(*CONVERT, "--model", "vit_t", "--weights", path, *arguments, "--set", "distill.optimizer.lr=1e-12").done()
    made = load_file(here / "out" / "model.safetensors")
    assert made["head.weight"].shape == (10, 192)
    torch.testing.assert_close(made["head.weight"], state["head.weight"], atol=1e-5, rtol=0)
    torch.testing.assert_close(made["blocks.1.attn.qkv.weight"], state["blocks.1.attn.qkv.weight"], atol=1e-5, rtol=0)
