"""What a user can get wrong about the data and the recipe."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

import castling_convert as cc
from castling_convert.recipe import shipped


@pytest.fixture
def images(here, photographs):
    """A folder of the user's own to break: eight photographs in two class folders."""
    for name in ("china", "flower"):
        (here / "images" / name).mkdir(parents=True)
        for index in range(4):
            shutil.copy(photographs / name / f"{index}.jpg", here / "images" / name)
    return here / "images"


def truncate(path: Path) -> None:
    """A JPEG whose header is whole and whose pixels end early, as after a broken download."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Image.open(path) as image:
        assert image.size[0] > 0


def test_no_such_data_folder(castling, tiny):
    castling("convert", *tiny, "--data", "nowhere", "-o", "out").refused("data folder nowhere not found", "digits")


def test_an_empty_data_folder(castling, tiny, here):
    (here / "images" / "china").mkdir(parents=True)
    castling("convert", *tiny, "--data", "images", "-o", "out").refused("no images in images", "jpg")


def test_a_file_given_as_data(castling, tiny, images):
    path = images / "china" / "0.jpg"
    castling("convert", *tiny, "--data", path, "-o", "out").refused(f"{path} is a file", "folder")


@pytest.mark.parametrize("spec", ["torch/nothing:.", "wds/x:nowhere", "hfds/some/thing", "torch/image_folder:nowhere"])
def test_a_timm_data_set_that_can_not_be_opened(castling, tiny, spec):
    castling("convert", *tiny, "--data", spec, "-o", "out").refused(spec.partition(":")[0])


def test_a_text_file_named_jpg_is_found_before_training(castling, tiny, images):
    (images / "flower" / "notes.jpg").write_text("Remember the milk.\n")
    castling("convert", *tiny, "--data", "images", "-o", "out").refused("images/flower/notes.jpg", "is no image")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_jpeg_ends_the_run_and_leaves_nothing(castling, tiny, images, workers):
    truncate(images / "flower" / "1.jpg")
    arguments = ("--data", "images", "--steps", 3, "--set", f"data.workers={workers}", "-o", "out")
    castling("convert", *tiny, *arguments).refused("images/flower/1.jpg", "remove it")


@pytest.fixture
def parts(images):
    """The photographs as a data set of two parts, and a broken one in the held-out part, with its former bytes."""
    for part, name in (("train", "flower"), ("val", "china")):
        (images / part).mkdir()
        (images / name).rename(images / part / name)
    bad = images / "val" / "china" / "1.jpg"
    whole = bad.read_bytes()
    truncate(bad)
    return bad, whole


def test_a_truncated_jpeg_in_the_held_out_part_is_found_before_the_training(castling, tiny, parts):
    """The images that accuracy is followed on are read first."""
    result = castling("convert", *tiny, "--data", "images", "--steps", 2, "-o", "out")
    result.failed(2, "images/val/china/1.jpg")
    assert result.after == result.before


def test_a_folder_with_one_image_is_warned_of(castling, tiny, here, photographs):
    (here / "images").mkdir()
    shutil.copy(photographs / "china" / "0.jpg", here / "images")
    result = castling("convert", *tiny, "--data", "images", "--steps", 2, "-o", "out").done()
    assert "warning: images holds one image: the student sees the same ones" in result.err
    shutil.copytree(photographs / "flower", here / "images" / "more")
    assert "warning" not in castling("convert", *tiny, "--data", "images", "--steps", 1, "-o", "two").done().err


@pytest.mark.parametrize("kind", ["pipe", "link to nothing"])
def test_what_has_the_name_of_an_image_and_is_no_file(castling, tiny, images, kind):
    """Nobody writes into the pipe: reading it would wait for ever."""
    bad = images / "flower" / "9.jpg"
    if kind == "pipe":
        os.mkfifo(bad)
    else:
        bad.symlink_to("nowhere")
    castling("convert", *tiny, "--data", "images", "-o", "out").refused("images/flower/9.jpg is no file", "remove it")


def test_a_home_folder_that_the_shell_left_alone(castling, tiny, here, photographs, tmp_path, monkeypatch):
    """As in `--output=~/mine`; for every path that convert takes."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(photographs, tmp_path / "home" / "images")
    castling("recipes", "copy", "castling", "~/mine.yaml").done()
    arguments = ("--data=~/images", "--recipe=~/mine.yaml", "--steps", 1, "--output=~/out")
    castling("convert", *tiny, *arguments).done()
    assert (tmp_path / "home" / "out" / "config.json").is_file()
    castling("report", "~/out", "--no-latency", "--no-images", "--output=~/page.html").done()
    assert (tmp_path / "home" / "page.html").is_file()
    assert cc.load("~/out").num_classes == 10
    shutil.copy(tmp_path / "home" / "out" / "model.safetensors", tmp_path / "home" / "w.safetensors")
    castling("convert", *tiny, "--weights=~/w.safetensors", "--output=~/other").failed(2, "w.safetensors doesn't fit")
    castling("convert", "--model", "local-dir:~/out", "--output=~/other").failed(2, "castled")
    castling("convert", *tiny, "--data", "torch/image_folder:~/images", "--steps", 1, "--output=~/three").done()
    assert list(here.iterdir()) == []


def test_a_home_folder_of_nobody_is_a_name_like_any_other(castling, tiny):
    castling("convert", *tiny, "--data=~nobody-at-all/x", "-o", "out").refused("~nobody-at-all/x not found")


def test_one_that_is_found_only_after_the_training_loses_nothing(castling, tiny, parts, here, monkeypatch):
    monkeypatch.setattr("castling_convert.data.loaders.IN_MEMORY_BYTES", 0)  # the first image alone is probed
    command = ("convert", *tiny, "--data", "images", "--steps", 2, "-o", "out")
    castling(*command).failed(2, "images/val/china/1.jpg", "--resume")
    bad, whole = parts
    bad.write_bytes(whole)
    castling(*command, "--resume").done()
    assert not (here / "out" / "train" / "state").exists()


def test_labels_of_other_classes_are_not_needed_and_not_counted(castling, tiny, images):
    result = castling("convert", *tiny, "--num-classes", "1", "--data", "images", "--steps", 1, "-o", "out").done()
    assert "unmeasured" in result.out
    assert "2 classes and the model 1" in " ".join(result.out.split())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version: 1\ndistil:\n  steps: 3\n", ["mine.yaml", "unknown key 'distil'", "distill"]),
        ("distill:\n  stepz: 3\n", ["mine.yaml", "unknown key 'distill.stepz'", "distill.steps"]),
        ("distill:\n  steps: many\n", ["mine.yaml", "distill.steps"]),
        ("distill: 3\n", ["mine.yaml", "distill"]),
        ("version: 7\n", ["mine.yaml", "version"]),
        ("steps: [1,\n", ["mine.yaml", "not valid YAML"]),
        ("just words\n", ["mine.yaml", "mapping"]),
        ("", ["mine.yaml", "mapping"]),
        ("\x00\xff", ["mine.yaml", "not valid YAML"]),
        ("distill: {mask: {schedule: gate, open_until: 0.9}}\n", ["mine.yaml", "distill.mask", "before closed_from"]),
        ("distill: {steps: 3}\ndistill: {steps: 4}\n", ["mine.yaml", "the key 'distill' is there twice", "line 2"]),
        ("distill: {seed: 1, seed: 2}\n", ["mine.yaml", "the key 'seed' is there twice"]),
        ("distill: " + "[" * 3000, ["mine.yaml", "nested too deeply"]),
        ("{a: " * 3000, ["mine.yaml", "nested too deeply"]),
        ("name: 2024-13-45\n", ["mine.yaml", "not valid YAML", "month"]),
        ("distill: {steps: " + "9" * 5000 + "}\n", ["mine.yaml", "not valid YAML", "digits"]),
    ],
)
@pytest.mark.parametrize("command", [("recipes", "validate"), ("convert", "--recipe")], ids=["validate", "convert"])
def test_a_recipe_with_a_mistake(castling, tiny, here, monkeypatch, command, content, words):
    monkeypatch.setattr("castling_convert.pipeline.convert", lambda *_, **__: pytest.fail("the recipe was accepted"))
    (here / "mine.yaml").write_bytes(content.encode("latin-1"))
    rest = [*tiny, "-o", "out"] if command[0] == "convert" else []
    castling(*command, "mine.yaml", *rest).refused(*words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.stepz=3", ["unknown key 'distill.stepz'", "distill.steps"]),
        ("distill.steps", ["key=value", "'distill.steps'"]),
        ("distill.steps=few", ["distill.steps"]),
        ("distill.steps=[1", ["distill.steps", "[1"]),
        ("attention.kernel_size=4", ["attention", "odd"]),
        ("data.scale=2", ["data.scale"]),
        ("distill=3", ["distill", "dictionary"]),
        ("distill.seed=4294967296", ["distill.seed", "less than 4294967296"]),
        ("distill.seed=-1", ["distill.seed"]),
        ("distill.steps=true", ["distill", "steps", "true"]),
        ("distill.optimizer.lr=yes", ["distill.optimizer", "lr", "true"]),
        ("attention.kernel_size=true", ["attention", "kernel_size", "true"]),
        ("version=true", ["version", "true"]),
        ("data.workers=1000000", ["data.workers", "256"]),
        ("distill.optimizer.lr=.inf", ["distill.optimizer.lr", "finite"]),
        ("distill.optimizer.lr=1e39", ["distill.optimizer.lr", "less than or equal"]),
        ("distill.align.lr=.nan", ["distill.align.lr", "finite"]),
        ("distill.loss.logits=.inf", ["distill.loss.logits", "finite"]),
        ("distill.loss.temperature=1e30", ["distill.loss.temperature", "1000"]),
        ("distill.checkpoint_minutes=.inf", ["distill.checkpoint_minutes", "finite"]),
        ("distill.steps=" + "9" * 5000, ["distill.steps"]),
        ("distill.steps=" + "9" * 400, ["distill.steps"]),
        ("distill.steps=" + "[" * 3000, ["distill.steps", "not a YAML value"]),
    ],
)
def test_a_set_with_a_mistake(castling, tiny, override, words):
    castling("convert", *tiny, "--set", override, "-o", "out").refused(*words)


def test_a_section_that_is_set_before_a_key_of_it(castling, tiny):
    """`--steps 2` is one more `--set`, after the user's own."""
    result = castling("convert", *tiny, "--set", "distill=3", "--steps", 2, "-o", "out")
    result.refused("--set distill: it is a section and can't be 3; set a key of it, distill.steps=VALUE")


def test_a_seed_beyond_32_bits(castling, tiny):
    castling("convert", *tiny, "--seed", 2**32, "-o", "out").refused("distill.seed", "less than 4294967296")


def test_a_model_argument_that_is_nested_too_deeply(castling):
    castling("convert", "--model", "vit_t", "--model-arg", "depth=" + "[" * 3000, "-o", "out").refused("depth")


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "--model", "{}"),
        ("convert", "--model", "local-dir:{}", "-o", "out"),
        ("convert", "--model", "vit_t", "--weights", "{}", "-o", "out"),
        ("convert", "--model", "vit_t", "--recipe", "{}", "-o", "out"),
        ("convert", "--model", "vit_t", "--no-pretrained", "--data", "{}", "-o", "out"),
        ("convert", "--model", "vit_t", "-o", "{}"),
        ("export", "{}"),
        ("verify", "{}"),
        ("report", "{}"),
        ("recipes", "validate", "{}"),
        ("recipes", "copy", "castling", "{}"),
    ],
    ids=" ".join,
)
def test_a_name_that_is_too_long_for_a_file(castling, arguments):
    result = castling(*(argument.format("a" * 300) for argument in arguments))
    assert len(result.failed(2, "too long")) < 160
    assert result.after == result.before


def test_a_name_beside_which_nothing_can_be_written(castling, tiny):
    """A folder could have it, but not the one that the bundle is written to before it is renamed."""
    castling("convert", *tiny, "--steps", 1, "-o", "a" * 250).refused("too long", "--output")
    castling("convert", *tiny, "--data", "digits", "--steps", 1, "-o", "a" * 241).done()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("castlin", ["no recipe named 'castlin'", "castling", "reference"]),
        ("zzz", ["no recipe named 'zzz'; shipped recipes: castling"]),
        ("nowhere.yaml", ["nowhere.yaml", "not found", "castling"]),
        (".", ["castling"]),
    ],
)
@pytest.mark.parametrize("command", ["show", "validate"])
def test_an_unknown_recipe(castling, command, recipe, words):
    castling("recipes", command, recipe).refused(*words)


def test_recipes_are_listed_with_what_they_do(castling):
    out = castling("recipes", "list").done().out
    assert {line.split()[0] for line in out.splitlines()} == set(shipped())
    assert all(len(line.split()) > 3 for line in out.splitlines())


def test_show_resolves_every_key(castling):
    shown = yaml.safe_load(castling("recipes", "show", "castling", "--set", "distill.steps=7").done().out)
    assert shown["distill"]["steps"] == 7
    assert shown["distill"]["mask"]["closed_from"] == 0.3
    assert shown["attention"]["landmarks"] == 64


def test_copy_change_validate_and_use(castling, tiny, here):
    castling("recipes", "copy", "castling", "mine.yaml").done()
    assert list(here.iterdir()) == [here / "mine.yaml"]
    text = (here / "mine.yaml").read_text()
    assert text.startswith("#")  # comments come along
    (here / "mine.yaml").write_text(text + "distill: {steps: 3}\n")
    assert "3 steps" in castling("recipes", "validate", "mine.yaml").done().out
    castling("convert", *tiny, "--recipe", "mine.yaml", "--data", "digits", "-o", "out").done()
    written = yaml.safe_load((here / "out" / "recipe.yaml").read_text())
    assert written["distill"]["steps"] == 3
    assert written["distill"]["batch_size"] == 8


def test_copy_overwrites_only_with_force(castling, here):
    (here / "mine.yaml").write_text("name: precious\n")
    castling("recipes", "copy", "castling", "mine.yaml").refused("mine.yaml exists", "--force")
    castling("recipes", "copy", "castling", "mine.yaml", "--force").done()
    assert "precious" not in (here / "mine.yaml").read_text()


def test_copy_of_nothing_and_to_a_folder(castling, here):
    castling("recipes", "copy", "nothing", "mine.yaml").refused("no recipe named 'nothing'")
    (here / "folder").mkdir()
    castling("recipes", "copy", "castling", "folder", "--force").refused("folder")
