from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from castling_convert.errors import RecipeError
from castling_convert.recipe import Recipe, known_keys, shipped


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_what_is_shipped() -> None:
    assert {"castling", "reference"} <= set(shipped())


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_load_and_round_trip(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.version == 2
    assert "not support" in recipe.description
    assert Recipe.load(write(tmp_path, recipe.to_yaml())) == recipe
    assert Recipe.parse(yaml.safe_load(recipe.to_yaml()), "text") == recipe


def test_values_that_are_set_survive_the_round_trip(tmp_path: Path) -> None:
    recipe = Recipe.load("castling", ["distill.steps=7", "attention.eps=1e-5", "layers=0-3"])
    again = Recipe.load(write(tmp_path, recipe.to_yaml()))
    assert again == recipe
    assert (again.distill.steps, again.attention.eps, again.layers) == (7, 1e-5, "0-3")


def test_reference_is_the_snippets_form() -> None:
    form = Recipe.load("reference").attention
    assert (form.form, form.constant, form.depthwise, form.kernel_size) == ("snippet", "token", "tokens", 9)


def test_the_rate_goes_with_the_optimiser() -> None:
    rates = [
        Recipe.load("castling", [f"distill.optimizer.name={name}"]).distill.optimizer.lr for name in ("muon", "adamw")
    ]
    assert rates == [0.03, 0.001]
    given = Recipe.load("castling", ["distill.optimizer.name=adamw", "distill.optimizer.lr=0.5"])
    assert given.distill.optimizer.lr == 0.5
    assert Recipe.parse(given.model_dump(), "again") == given
    assert given.override("distill.optimizer.name=muon").distill.optimizer.lr == 0.5
    muon = Recipe.load("castling").override("distill.optimizer.name=muon")
    assert muon.distill.optimizer.lr == 0.03
    assert muon.override("distill.steps=3").distill.optimizer.lr == 0.03
    assert muon.override("distill.optimizer.name=adamw").distill.optimizer.lr == 0.001


@pytest.mark.parametrize("key", ["closed_from=0.6", "open_until=0.1", "start=0.5", "order=last"])
def test_a_mask_key_that_does_nothing_is_refused(key: str) -> None:
    with pytest.raises(RecipeError, match=rf"{key.partition('=')[0]} has no effect with schedule 'none'"):
        Recipe.load("castling", [f"distill.mask.{key}"])
    Recipe.load("castling", [f"distill.mask.{key}", "distill.mask.schedule=gate"])


def test_datafree_differs_from_castling_in_the_training_alone() -> None:
    values, default = Recipe.load("datafree").model_dump(), Recipe.load("castling").model_dump()
    assert values["attention"] == default["attention"]
    assert values["layers"] == default["layers"]
    assert values["distill"]["refit"] is False  # nothing there judges it on images of the model's own kind
    values["distill"] |= {key: default["distill"][key] for key in ("images", "refit")}
    assert values["distill"] == default["distill"]


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("version: 1\natention:\n  constant: mean\n", "atention", "attention"),
        ("attention:\n  kernal_size: 5\n", "attention.kernal_size", "attention.kernel_size"),
        ("distill:\n  stpes: 5\n", "distill.stpes", "distill.steps"),
        ("distill:\n  mask:\n    closed_form: 0.5\n", "distill.mask.closed_form", "distill.mask.closed_from"),
        ("steps: 5\n", "steps", "distill.steps"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(tmp_path: Path, text: str, key: str, near: str) -> None:
    with pytest.raises(RecipeError, match=rf"unknown key '{key}'; did you mean .*{near}") as raised:
        Recipe.load(write(tmp_path, text))
    assert "mine.yaml" in str(raised.value)


def test_an_unknown_key_like_no_other_still_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="castling recipes"):
        Recipe.load(write(tmp_path, "zzzzqqqq: 5\n"))


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("distill.steps=100", lambda r: r.distill.steps, 100),
        ("distill.optimizer.lr=1e-3", lambda r: r.distill.optimizer.lr, 1e-3),
        ("distill.optimizer.lr=0.002", lambda r: r.distill.optimizer.lr, 0.002),
        ("attention.depthwise=none", lambda r: r.attention.depthwise, "none"),
        ("distill.precision=bf16", lambda r: r.distill.precision, "bf16"),
        ("data.workers=null", lambda r: r.data.workers, None),
        ("layers=0-7,9", lambda r: r.layers, "0-7,9"),
        ("layers=3", lambda r: r.layers, "3"),
        ("layers='3'", lambda r: r.layers, "3"),
        ("layers=0,3", lambda r: r.layers, "0,3"),
        ("name=1e3", lambda r: r.name, "1e3"),
        (" distill.steps = 5", lambda r: r.distill.steps, 5),
        ("attention={form: angular, constant: token}", lambda r: r.attention.constant, "token"),
        ("attention.form=angular", lambda r: (r.attention.form, r.attention.prefix_rows), ("angular", False)),
        ("attention.window=7", lambda r: r.attention.window, 7),
    ],
)
def test_overrides(override: str, read: Any, value: Any) -> None:
    assert read(Recipe.load("castling", [override])) == value
    assert read(Recipe.load("castling").override(override)) == value


def test_one_block_may_be_written_as_a_number(tmp_path: Path) -> None:
    assert Recipe.load(write(tmp_path, "layers: 3\n")).layers == "3"


def test_the_last_override_wins_and_the_rest_stays() -> None:
    base = Recipe.load("castling")
    changed = base.override("distill.steps=5", "distill.steps=6")
    assert changed.distill.steps == 6
    assert changed.override("distill.steps=") == base


def test_overrides_that_only_work_together() -> None:
    recipe = Recipe.load("castling", ["attention.form=angular", "attention.constant=token", "attention.center=false"])
    assert recipe.attention.constant == "token"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.steps", "key=value"),
        ("=5", "key=value"),
        ("", "key=value"),
        ("distill.stpes=5", "did you mean distill.steps"),
        ("steps=5", "distill.steps"),
        ("distill.steps=many", "distill.steps"),
        ("distill.steps=1.5", "distill.steps"),
        ("distill.steps=0", "distill.steps"),
        ("distill.optimizer.lr=-1", "distill.optimizer.lr"),
        ("distill.optimizer.lr=.nan", "distill.optimizer.lr"),
        ("attention.kernel_size=4", "odd"),
        ("attention.landmarks=0", "attention.landmarks"),
        (
            "attention.form=anglar",
            "form 'anglar' is not known; the linear forms are landmarks, features, angular, snippet",
        ),
        ("attention.constant=mean", "form landmarks has no key 'constant'; it has .*landmarks"),
        ("attention=5", "attention"),
        ("attention={kernal_size: 5}", "kernal_size"),
        ("name=[", "name"),
    ],
)
def test_overrides_that_are_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        Recipe.load("castling", [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["version: 3\n", "version: one\n", "version: null\n"])
def test_other_versions_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match="version"):
        Recipe.load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"attention: [\n", "not valid YAML"),
        (b"a: b: c\n", "not valid YAML"),
        (b"\xff\xfe\x00\x01", "not valid YAML"),
        (b"!!python/object/apply:os.system ['true']\n", "not valid YAML"),
        (b"- a\n- b\n", "mapping"),
        (b"just text\n", "mapping"),
        (b"", "mapping"),
        (b"attention: 5\n", "attention"),
        (b"1: 2\n", "unknown key"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as raised:
        Recipe.load(path)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_near_name() -> None:
    with pytest.raises(RecipeError, match=r"nowhere/mine\.yaml not found.*castling"):
        Recipe.load("nowhere/mine.yaml")
    with pytest.raises(RecipeError, match="did you mean castling"):
        Recipe.load("castlin")


def test_known_keys_are_dotted_and_whole() -> None:
    keys = known_keys()
    assert {"layers", "attention", "attention.eps", "distill.mask.start", "distill.optimizer.lr"} <= set(keys)
    assert len(keys) == len(set(keys))


BEFORE_FORMS = Path(__file__).parent / "files" / "before_forms"
"""Files that version 0.1 of the package wrote, before there were linear forms."""


def test_recipes_of_version_1_still_load() -> None:
    old = {name: Recipe.load(BEFORE_FORMS / f"{name}.yaml") for name in ("castling", "reference", "datafree")}
    assert old["castling"].attention == Recipe.load("castling-fast").attention
    assert old["reference"].attention == Recipe.load("reference").attention
    for recipe in old.values():
        assert recipe.version == 2
        assert (recipe.distill.align.share, recipe.distill.loss.features) == (0, 0)
        assert (recipe.distill.optimizer.name, recipe.distill.optimizer.guard) == ("muon", False)
    assert [old[name].distill.optimizer.lr for name in ("castling", "datafree")] == [0.03, 0.01]
    assert old["reference"].distill == Recipe.load("reference").distill.model_copy(
        update={"loss": old["reference"].distill.loss, "optimizer": old["reference"].distill.optimizer}
    )


def test_a_recipe_of_version_1_that_says_little() -> None:
    recipe = Recipe.parse({"version": 1, "distill": {"align": 0.1, "optimizer": {"name": "adamw"}}}, "old")
    assert recipe.attention.model_dump(include={"form", "normalization", "center"}) == {
        "form": "angular", "normalization": "row_sum", "center": False,
    }  # fmt: skip
    assert (recipe.distill.align.share, recipe.distill.optimizer.lr) == (0.1, 3e-3)
    with pytest.raises(RecipeError, match=r"unknown key 'attention\.kernal_size'"):
        Recipe.parse({"version": 1, "attention": {"kernal_size": 3}}, "old")
