"""Every subcommand says what it does, with an example that works when pasted; and the small commands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.util import find_spec

import click
import pytest

from castling_convert.cli import cli
from castling_convert.exporting import FORMATS


def commands(group: click.Group = cli, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found = {}
    for name, command in group.commands.items():
        found[(*prefix, name)] = command
        if isinstance(command, click.Group):
            found |= commands(command, (*prefix, name))
    return found


ALL = commands()
CHEAP = [
    path
    for path, command in ALL.items()
    if path not in {("demo",), ("convert",)} and not isinstance(command, click.Group)
]
"""Their examples are run; `convert` has a test of its own, the demo is run by `make demo`."""


def example(path: tuple[str, ...]) -> list[str]:
    """The words of the command's example, after `castling`."""
    epilog = ALL[path].epilog or ""
    match = re.fullmatch(r"Example(?:, after castling demo)?: castling (.+)", epilog)
    assert match, f"castling {' '.join(path)} --help has no example"
    return shlex.split(match[1])


def test_the_commands_of_the_issue_are_there():
    wanted = ["convert", "export", "verify", "evaluate", "inspect", "models", "recipes", "doctor", "demo"]
    assert [name for name in wanted if (name,) not in ALL] == []


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_has_an_example_that_parses(castling, path):
    out = castling(*path, "--help").done().out
    assert f"castling {shlex.join(example(path))}" in " ".join(out.split())
    words = example(path)
    command: click.Command = cli
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context("castling", words)  # raises click.UsageError when it does not parse


@pytest.fixture
def castled(here, made):
    """The bundles that the examples name."""
    for name in ("digits", "deit_s"):
        shutil.copytree(made, here / "castled" / name)


@pytest.mark.parametrize("path", CHEAP, ids=" ".join)
def test_the_example_works_when_pasted(castling, castled, path):
    castling(*example(path)).done()


@pytest.mark.slow
def test_the_example_of_convert_works_when_pasted(castling, here):
    castling(*example(("convert",))).done()
    assert (here / "castled" / "try" / "model.safetensors").is_file()


def test_version(castling):
    import castling_convert

    assert castling_convert.__version__ in castling("--version").done().out


@pytest.mark.parametrize(("typed", "near"), [("conver", "convert"), ("exprot", "export")])
def test_a_command_that_is_misspelt(castling, typed, near):
    castling(typed).refused(typed, near)


@pytest.mark.parametrize("group", [(), ("recipes",)], ids=" ".join)
def test_a_group_without_a_command_shows_its_help(castling, group):
    result = castling(*group)
    assert result.err.startswith("Usage: ")
    assert result.err.splitlines()[-1].startswith(("  verify ", "  Example: "))
    assert "error: " not in result.err
    assert result.code == 2


def test_doctor(castling):
    out = castling("doctor").done().out
    for word in ("torch", "timm", "onnxruntime", "cpu", "onnx", "CPUExecutionProvider", "castling.yaml"):
        assert word in out
    report = json.loads(castling("doctor", "--json").done().out)
    assert report["formats"]["onnx"].startswith("ready")
    assert "tensorrt package" in report["formats"]["trt"]
    assert "pip install" in report["formats"]["trt"]
    if find_spec("tensorrt_rtx") is None:
        assert "pip install 'castling-convert[tensorrt-rtx]'" in report["formats"]["trt-rtx"]
    else:
        assert report["formats"]["trt-rtx"].startswith("ready: fp32, fp16, bf16, int8")
        cannot_run = FORMATS["trt-rtx"].exporter.cannot_run() is not None
        assert ("is built here and not run" in report["formats"]["trt-rtx"]) is cannot_run


def test_models(castling):
    shown = castling("models", "*dinov2*").done()
    names = shown.out.split()
    assert "vit_small_patch14_reg4_dinov2" in names
    assert "dinov2_s" in names
    assert "resnet50" not in names
    assert json.loads(castling("models", "deit3_s", "--json").done().out)["aliases"] == {
        "deit3_s": "deit3_small_patch16_224"
    }
    castling("models", "*convnext*").refused("convnext")


def test_models_names_only_what_is_castled(castling):
    found = json.loads(castling("models", "--json").done().out)
    assert set(found["aliases"].values()) <= set(found["models"])
    assert found["aliases"]["swin_t"] == "swin_tiny_patch4_window7_224"


def test_inspect(castling):
    shown = castling("inspect", "--model", "deit_s", "--no-pretrained").done().out
    assert "12 of 12" in shown
    values = json.loads(castling("inspect", "--model", "deit_s", "--no-pretrained", "--json").done().out)
    assert len(values["layers"]) == 12
    assert {layer["tokens"] for layer in values["layers"]} == {197}
    first = values["layers"][0]
    assert (first["name"], first["num_heads"], first["head_dim"], first["castable"]) == ("blocks.0.attn", 6, 64, True)


def test_inspect_says_why_a_layer_is_kept(castling):
    name = "vit_base_patch16_siglip_224"
    values = json.loads(castling("inspect", "--model", name, "--model-arg", "depth=1", "--json").done().out)
    assert [layer["castable"] for layer in values["layers"]] == [True, False]
    assert "pooling" in values["layers"][1]["reason"]


def test_inspect_at_another_size(castling):
    values = json.loads(castling("inspect", "-m", "deit_s", "--image-size", "64x96", "--json").done().out)
    assert values["layers"][0]["tokens"] == 4 * 6 + 1


def test_models_that_are_refused_have_their_reason(castling):
    shown = castling("models", "--refused", "xcit").done().out
    assert shown.startswith("its cross-covariance attention is between channels and already linear in the tokens:")
    refused = json.loads(castling("models", "--refused", "--json").done().out)["refused"]
    assert refused["resnet50"] == "no attention between tokens: it is made of convolutions"
    listed = json.loads(castling("models", "--json").done().out)["models"]
    assert not set(refused) & set(listed)
    castling("models", "--refused", "deit").refused("'deit'", "without --refused")


def test_inspect_says_where_castling_makes_a_layer_no_cheaper(castling):
    shown = castling("inspect", "--model", "swin_t", "--no-pretrained").done().out
    assert "castling makes 12 layers no cheaper" in shown
    assert "windows of 49 tokens" in shown
    assert "no cheaper" not in castling("inspect", "--model", "deit_s", "--no-pretrained").done().out
