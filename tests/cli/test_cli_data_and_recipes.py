"""What a user can get wrong about the data and the recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from castling_convert.distill import data
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
    castling("convert", *tiny, "--data", "images", "--steps", 2, "-o", "out").refused("images/val/china/1.jpg")


def test_one_that_is_found_only_after_the_training_loses_nothing(castling, tiny, parts, here, monkeypatch):
    monkeypatch.setattr(data, "KEPT_BYTES", 0)  # the first image alone is probed
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
    ],
)
def test_a_set_with_a_mistake(castling, tiny, override, words):
    castling("convert", *tiny, "--set", override, "-o", "out").refused(*words)


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
