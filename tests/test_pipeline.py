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
from castling_convert.bundle.reading import load_trained
from castling_convert.distillation.progress import Progress
from castling_convert.errors import CastlingError, CheckFailed, DataError, Interrupted
from castling_convert.evaluation.evaluate import evaluate
from castling_convert.pipeline import hybrid

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
    convert(tmp_path / "out", weights=file)
    images = torch.randn(4, 3, 32, 32)
    models = [cc.load(tmp_path / "out"), timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()]
    with torch.no_grad():
        expected = load_trained(tmp_path / "out")(images)
        for model in models:
            torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at", [1, 4, 6])
def test_interrupted_and_resumed_gives_the_same_weights(tmp_path, file, monkeypatch, at):
    """After Ctrl-C in the last step, too, there is a state to end the run from; the weights are the same."""
    convert(tmp_path / "whole", weights=file)
    with monkeypatch.context() as patch:
        stop_at(patch, at, press_ctrl_c)
        with pytest.raises(Interrupted, match=rf"after step {at} of 6; .*--resume"):
            convert(tmp_path / "parts", weights=file)
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


@pytest.mark.parametrize("stage", ["_accuracy", "certify", "bundle.save"])
def test_ctrl_c_after_the_training_loses_nothing(tmp_path, file, monkeypatch, stage):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"castling_convert.pipeline.conversion.{stage}", interrupted)
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


def test_a_run_in_bf16_is_folded_exactly_and_measured_as_it_is(tmp_path, file):
    summary = convert(tmp_path / "out", "distill.precision=bf16", "distill.align.share=0.5", weights=file)
    assert summary["fold"]["holds"] is True
    assert summary["fold"]["float32_logits"] < 1e-5
    measured = evaluate(tmp_path / "out", "digits")[0]["castled"].to_dict()
    assert measured == summary["accuracy"]["castled"]


def test_layers_that_are_kept_stay_softmax(tmp_path, file):
    summary = convert(tmp_path / "out", weights=file, layers="1")
    assert [layer["status"] for layer in summary["layers"]] == ["kept", "castled"]
    kinds = [type(block.attn).__name__ for block in cc.load(tmp_path / "out").blocks]
    assert kinds == ["Attention", "FoldedLandmarks"]


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


def lose(monkeypatch, *drops: float) -> None:
    """Let the measured drops be these, in order; the models are far too small for real ones to mean something."""
    values = iter(drops)
    monkeypatch.setattr("castling_convert.tasks.Classify.lost", lambda *_: next(values))


def test_auto_castles_all_where_the_budget_allows_it(tmp_path, file):
    summary = convert(tmp_path / "out", weights=file, layers="auto", max_drop=100.0)
    assert [layer["status"] for layer in summary["layers"]] == ["castled", "castled"]
    assert all("sensitivity" in layer["why"] and "nats, rank" in layer["why"] for layer in summary["layers"])
    plan = json.loads((tmp_path / "out" / "summary.json").read_text())["plan"]
    assert plan["max_drop"] == 100.0
    assert plan["images"] == 298  # half of the 597 held-out images
    assert plan["measure"] == "top-1"
    assert [entry["block"] for entry in plan["sensitivity"]] == [0, 1]
    assert [trial["kept"] for trial in plan["trials"]] == [[]]
    assert summary["accuracy"]["castled"]["images"] == 299  # the other half
    assert not (tmp_path / "out" / "train" / "plan.json").exists()


def test_auto_keeps_the_most_sensitive_block(tmp_path, file, monkeypatch):
    lose(monkeypatch, 5.0, 0.2, 0.2)
    summary = convert(tmp_path / "out", weights=file, layers="auto", max_drop=1.0)
    order = sorted(summary["plan"]["sensitivity"], key=lambda entry: -entry["divergence"])
    kept, castled = (entry["block"] for entry in order)
    assert summary["plan"]["trials"] == [{"kept": [], "drop": 5.0}, {"kept": [kept], "drop": 0.2}]
    assert {layer["name"]: layer["status"] for layer in summary["layers"]} == {
        f"blocks.{kept}.attn": "kept",
        f"blocks.{castled}.attn": "castled",
    }
    kinds = [type(block.attn).__name__ for block in cc.load(tmp_path / "out").blocks]
    assert kinds[kept] == "Attention"
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 6  # of the plan that was taken


def test_the_layers_learn_alone_once_for_all_plans(tmp_path, file, monkeypatch):
    """Every plan starts from the same layers; where nothing is kept it is the plain conversion."""
    phases = []
    whole = Progress.step
    monkeypatch.setattr(Progress, "step", lambda self, **v: phases.append((v["step"], v["phase"])) or whole(self, **v))
    lose(monkeypatch, 5.0, 0.2, 0.2)
    convert(tmp_path / "out", "distill.align.share=0.5", weights=file, layers="auto", max_drop=1.0)
    align, rest = [(1, "align"), (2, "align"), (3, "align")], [(4, "closed"), (5, "closed"), (6, "closed")]
    assert phases == [*align, *rest, *rest]
    lose(monkeypatch, 0.2, 0.2, 0.2)
    convert(tmp_path / "all", "distill.align.share=0.5", weights=file, layers="auto", max_drop=1.0)
    convert(tmp_path / "plain", "distill.align.share=0.5", weights=file)
    planned, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("all", "plain"))
    assert all(torch.equal(planned[name], plain[name]) for name in plain)


@pytest.mark.parametrize("share", [0, 1])
def test_plans_of_a_recipe_with_one_phase(tmp_path, file, monkeypatch, share):
    lose(monkeypatch, 5.0, 0.2, 0.2)
    summary = convert(tmp_path / "out", f"distill.align.share={share}", weights=file, layers="auto", max_drop=1.0)
    assert [len(trial["kept"]) for trial in summary["plan"]["trials"]] == [0, 1]
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 6


def test_no_plan_within_the_budget_publishes_nothing(tmp_path, file, monkeypatch):
    lose(monkeypatch, 5.0, 3.0)
    with pytest.raises(CheckFailed, match=r"the best lost 3\.00 points on the 298 planning images"):
        convert(tmp_path / "out", weights=file, layers="auto", max_drop=1.0)
    assert not (tmp_path / "out" / "config.json").exists()
    with pytest.raises(CastlingError):
        cc.load(tmp_path / "out")


@pytest.mark.parametrize("at", [1, 4, 7], ids="at step {} of all".format)
def test_auto_interrupted_and_resumed_is_the_uninterrupted_search(tmp_path, file, monkeypatch, at):
    options = {"weights": file, "layers": "auto", "max_drop": 1.0, "steps": 5}
    phases = "distill.align.share=0.4"  # two steps of layers alone, then three of every plan
    with monkeypatch.context() as patch:
        lose(patch, 5.0, 0.2, 0.2)
        convert(tmp_path / "whole", phases, **options)
    seen = []
    with monkeypatch.context() as patch:
        lose(patch, 5.0)
        whole = Progress.step

        def stopping(self, **values):
            whole(self, **values)
            seen.append(values["step"])
            if len(seen) == at:
                press_ctrl_c()

        patch.setattr(Progress, "step", stopping)
        with pytest.raises(Interrupted, match="--resume"):
            convert(tmp_path / "parts", phases, **options)
    lose(monkeypatch, *([5.0] if at < 5 else []), 0.2, 0.2)
    convert(tmp_path / "parts", phases, resume=True, **options)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    plans = [json.loads((tmp_path / name / "summary.json").read_text())["plan"] for name in ("whole", "parts")]
    assert plans[0]["trials"] == plans[1]["trials"]


def test_too_much_lost_is_not_published_and_kept_for_a_look(tmp_path, file, monkeypatch):
    lose(monkeypatch, 2.5)
    with pytest.raises(
        CheckFailed,
        match=r"lost 2\.50 points on 597 images \(.*\), --max-drop 1 is allowed; it is in .*rejected",
    ):
        convert(tmp_path / "out", weights=file, max_drop=1.0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]
    rejected = tmp_path / "out" / "train" / "rejected"
    assert cc.load(rejected).num_classes == 10
    assert json.loads((rejected / "summary.json").read_text())["accuracy"]["measured"] is True
    lose(monkeypatch, 2.5)
    convert(tmp_path / "out", weights=file, max_drop=3.0, resume=True)  # the same training, another verdict
    assert cc.load(tmp_path / "out").num_classes == 10
    assert not rejected.exists()


def test_a_rejected_bundle_leaves_the_published_one_alone(tmp_path, file, monkeypatch):
    convert(tmp_path / "out", weights=file, steps=2)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    lose(monkeypatch, 2.5)
    with pytest.raises(CheckFailed):
        convert(tmp_path / "out", weights=file, max_drop=1.0, force=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert cc.load(tmp_path / "out").num_classes == 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": "auto"}, "--max-drop"),
        ({"max_drop": -1.0}, "negative"),
        ({"max_drop": 1.0, "data": None}, "--data"),
        ({"max_drop": 1.0, "layers": "auto", "data": None}, "--data"),
    ],
)
def test_budgets_that_mean_nothing(tmp_path, file, options, words):
    with pytest.raises(CastlingError, match=words):
        convert(tmp_path / "out", weights=file, **options)
    assert not (tmp_path / "out").exists()


def test_without_labels_a_disagreement_is_a_drop(tmp_path, file):
    data = folders(tmp_path, "flat", count=10)
    summary = convert(tmp_path / "out", weights=file, data=f"{data}/flat", layers="auto", max_drop=100.0, steps=1)
    assert summary["plan"]["measure"] == "agreement"
    assert summary["plan"]["images"] == 2


@pytest.mark.parametrize(("batch", "times"), [(80, 20), (4, 2)])
def test_accuracy_is_followed_during_the_run(tmp_path, file, batch, times):
    convert(tmp_path / "out", f"distill.batch_size={batch}", weights=file, steps=40)
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    probes = [record["probe"] for record in records if "probe" in record]
    assert len(probes) == times
    assert set(probes[0]) == {"agreement", "top1", "teacher_top1"}


@pytest.mark.parametrize(("data", "recipe"), [(None, "datafree"), ("digits", "castling")])
def test_the_recipe_where_none_is_named(tmp_path, file, data, recipe, monkeypatch):
    load = cc.Recipe.load
    named = []
    quick = ["distill.steps=1", "distill.batch_size=2"]
    monkeypatch.setattr(cc.Recipe, "load", lambda source: named.append(source) or load(source, quick))
    cc.convert("vit_t", tmp_path / "out", data=data, weights=file, image_size=(32, 32), model_args=SMALL, device="cpu")
    assert named == [recipe]
    assert load(tmp_path / "out" / "recipe.yaml").name == recipe


@pytest.fixture
def exhausted(tmp_path, file, monkeypatch):
    """A folder in which no plan stayed within a budget of one point: the best lost three."""
    with monkeypatch.context() as patch:
        lose(patch, 5.0, 3.0)
        with pytest.raises(CheckFailed, match="--resume"):
            convert(tmp_path / "out", weights=file, layers="auto", max_drop=1.0)
    return tmp_path / "out"


def test_a_larger_budget_after_all_plans_failed(exhausted, file, monkeypatch):
    with pytest.raises(CastlingError, match=r"--resume.*--force"):
        convert(exhausted, weights=file, layers="auto", max_drop=4.0)
    lose(monkeypatch, 3.0, 3.0)
    summary = convert(exhausted, weights=file, layers="auto", max_drop=4.0, resume=True)
    assert len(summary["plan"]["trials"]) == 2
    assert [layer["status"] for layer in summary["layers"]].count("kept") == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"overrides": ("distill.seed=7",)}, "distill.seed"),
        ({"steps": 9}, "distill.steps"),
        ({"data": "relations"}, "data"),
        ({"image_size": (48, 48)}, "input_size"),
    ],
)
def test_a_plan_belongs_to_its_run(exhausted, file, options, word):
    values = {"weights": file, "layers": "auto", "max_drop": 4.0, "resume": True, **options}
    with pytest.raises(CastlingError, match=word):
        convert(exhausted, *values.pop("overrides", ()), **values)


def test_a_plan_is_nothing_that_other_layers_resume_from(exhausted, file):
    with pytest.raises(CastlingError, match="nothing to resume"):
        convert(exhausted, weights=file, layers="all", resume=True)


def test_the_state_of_a_plan_that_failed_is_not_resumed(tmp_path, file, monkeypatch):
    """Killed after the plan was saved and before the state of its trial was removed."""
    whole = hybrid.search

    def search(plan, carry_out, drop, failed, console):
        def killed(plan):
            plan.save(tmp_path / "out" / "train" / "plan.json")
            raise KeyboardInterrupt

        return whole(plan, carry_out, drop, killed, console)

    with monkeypatch.context() as patch:
        lose(patch, 5.0)
        patch.setattr(hybrid, "search", search)
        with pytest.raises(Interrupted, match="--resume"):
            convert(tmp_path / "out", weights=file, layers="auto", max_drop=1.0)
    assert (tmp_path / "out" / "train" / "state").exists()
    assert (tmp_path / "out" / "train" / "aligned.safetensors").exists()
    lose(monkeypatch, 0.2, 0.2)
    summary = convert(tmp_path / "out", weights=file, layers="auto", max_drop=1.0, resume=True)
    assert [trial["drop"] for trial in summary["plan"]["trials"]] == [5.0, 0.2]
    assert summary["distill"]["first_step"] == 5  # after the layers have learned alone


def test_a_plan_whose_layers_are_lost(exhausted, file):
    (exhausted / "train" / "aligned.safetensors").write_bytes(b"")
    with pytest.raises(CastlingError, match=r"aligned\.safetensors is missing or damaged.*--force"):
        convert(exhausted, weights=file, layers="auto", max_drop=4.0, resume=True)


def test_a_plain_run_is_not_resumed_as_a_planned_one(tmp_path, file, monkeypatch):
    """It has trained on the images that the plan would set aside."""
    with monkeypatch.context() as patch:
        stop_at(patch, 2, press_ctrl_c)
        with pytest.raises(Interrupted):
            convert(tmp_path / "out", weights=file)
    with pytest.raises(CastlingError, match="planning changed"):
        convert(tmp_path / "out", weights=file, layers="auto", max_drop=1.0, resume=True)


def test_a_run_that_can_not_be_finished_leaves_no_plan(tmp_path, file):
    with pytest.raises(CastlingError, match="lower the learning rate"):
        convert(tmp_path / "out", "distill.optimizer.lr=1e20", "distill.optimizer.clip_grad=1e20",
                "distill.align.share=0", "distill.optimizer.guard=false",
                weights=file, layers="auto", max_drop=1.0)  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_generated_images_are_no_data(tmp_path, file):
    summary = convert(tmp_path / "out", weights=file, data="generated", steps=1)
    assert summary["accuracy"] == {"measured": False, "why": "aligned on generated images: no --data was given"}
    with pytest.raises(CastlingError, match="--data"):
        convert(tmp_path / "other", weights=file, data="generated", max_drop=1.0)


def test_a_budget_for_a_model_without_classes_is_in_nearest_neighbours(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **SMALL)
    summary = convert(tmp_path / "out", model=model, layers="auto", max_drop=100.0)
    assert summary["plan"]["measure"] == "nearest neighbours"
    assert "cosine distance, rank" in summary["layers"][0]["why"]
    with pytest.raises(CheckFailed, match=r"lost \d+\.\d\d points on 597 images, --max-drop 0 is allowed"):
        convert(tmp_path / "other", model=model, max_drop=0.0)


def test_features_of_a_model_with_classes(tmp_path):
    """Its classifier is left out, of the copy that is converted."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, **SMALL)
    convert(tmp_path / "out", model=model, task="features")
    assert cc.load(tmp_path / "out").num_classes == 0
    assert model.num_classes == 10
    model.reset_classifier(0)
    with pytest.raises(CastlingError, match="has no classes to classify; leave out --task"):
        convert(tmp_path / "other", model=model, task="classify")
    with pytest.raises(CastlingError, match="no task 'feature'; did you mean features"):
        convert(tmp_path / "other", model=model, task="feature")
    assert not (tmp_path / "other").exists()


def test_a_model_without_classes_is_matched_by_its_features(tmp_path):
    """What a classifier's logits are matched by would be nonsense: they are features."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **SMALL)
    summary = convert(tmp_path / "out", model=model)
    assert summary["accuracy"]["measured"] is False
    alike = summary["accuracy"]["features"]
    assert alike["images"] == 597
    assert 0.5 < alike["cosine"] <= 1
    assert 10 < alike["neighbours"] <= 100
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert set(records[-1]["losses"]) == {"total", "attention", "features"}
    assert set(records[-1]["probe"]) == {"cosine"}
    with pytest.raises(CastlingError, match="handed over in Python; name it with --teacher"):
        evaluate(tmp_path / "out", "digits")  # of features nothing is known without a teacher
    pair = tmp_path / "pair"
    pair.mkdir()
    for index in range(2):
        Image.new("RGB", (40, 40), (9 * index,) * 3).save(pair / f"{index}.png")
    with pytest.raises(DataError, match="has 2 images to compare features on; at least 3"):
        convert(tmp_path / "other", model=model, data=str(pair))
    with pytest.raises(CastlingError, match="nothing but logits"):
        convert(tmp_path / "other", "distill.loss.features=0", "distill.loss.attention=0", model=model)
    assert not (tmp_path / "other").exists()


def test_a_budget_that_is_no_number(tmp_path, file):
    with pytest.raises(CastlingError, match="--max-drop"):
        convert(tmp_path / "out", weights=file, max_drop=float("nan"))


def test_after_so_many_minutes_it_saves_and_stops(tmp_path, file):
    """At least one step is done every time, so that the same command ends at last, as if it had never stopped."""
    convert(tmp_path / "whole", weights=file, steps=3)
    line = "stopped by --max-minutes 1e-09 after step {} of 3; go on with the same command and --resume"
    for step in (1, 2):
        with pytest.raises(Interrupted) as stopped:
            convert(tmp_path / "parts", weights=file, steps=3, max_minutes=1e-9, resume=step > 1)
        assert str(stopped.value) == line.format(step)
    convert(tmp_path / "parts", weights=file, steps=3, max_minutes=1e-9, resume=True)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_minutes_that_are_enough_change_nothing(tmp_path, file):
    summary = convert(tmp_path / "out", weights=file, steps=2, max_minutes=60)
    assert summary["distill"]["steps"] == 2


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_minutes_that_are_none(tmp_path, file, minutes):
    with pytest.raises(CastlingError, match="--max-minutes is after how long to stop and has to be above zero, not"):
        convert(tmp_path / "out", weights=file, max_minutes=minutes)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_search_for_a_plan_stops_too(tmp_path, file, monkeypatch):
    """Wherever its time is over: among layers alone, or in the middle of a plan."""
    lose(monkeypatch, *[0.2] * 20)
    options = {"weights": file, "layers": "auto", "max_drop": 1.0, "steps": 5}
    stops = 0
    while stops < 10:
        try:
            convert(tmp_path / "out", "distill.align.share=0.4", max_minutes=1e-9, resume=stops > 0, **options)
        except Interrupted as stopped:
            assert "stopped by --max-minutes 1e-09" in str(stopped)
            stops += 1
        else:
            break
    assert stops == 3  # of layers alone one, of the plan two: the last step of each goes on
    convert(tmp_path / "whole", "distill.align.share=0.4", **options)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
