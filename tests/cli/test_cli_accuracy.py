"""Budgets in accuracy, sensitivity and the report, as a user sees them."""

from __future__ import annotations

import json
import re

import pytest

DIGITS = ("--data", "digits", "--steps", "2", "-o", "out")


@pytest.fixture
def convert(castling, tiny):
    return lambda *arguments: castling("convert", *tiny, *DIGITS, *arguments)


def test_a_budget_that_is_kept_and_how_sure_the_loss_is(convert, castling, here):
    shown = convert("--max-drop", 100).done().out
    assert (here / "out" / "config.json").is_file()
    accuracy = json.loads((here / "out" / "summary.json").read_text())["accuracy"]
    lost, error = accuracy["teacher"]["top1"] - accuracy["castled"]["top1"], accuracy["castled"]["standard_error"]
    assert re.search(rf"points lost .* {lost:.2f}, give or take {error:.2f} ", shown)
    shown = castling("evaluate", "out", "--data", "digits").done().out
    assert "standard error of the difference" in shown
    assert f"{error:.2f} points" in shown
    assert "points" in castling("evaluate", "out", "--data", "generated", "--limit", 64).done().out  # of agreement


def test_a_budget_that_is_not_kept_exits_1_and_publishes_nothing(convert, castling, here, monkeypatch):
    monkeypatch.setattr("castling_convert.tasks.Classify.lost", lambda *_: 7.0)
    convert("--max-drop", 0.5).failed(1, "lost 7.00 points on 597 images", "--max-drop 0.5", "out/train/rejected")
    assert not (here / "out" / "config.json").exists()
    castling("evaluate", "out/train/rejected", "--data", "digits").done()
    castling("export", "out", "--format", "onnx").failed(2, "not published", "out/train/rejected")


def test_auto_says_what_it_found(convert, here):
    result = convert("--layers", "auto", "--max-drop", 100).done()
    shown = " ".join((result.err + result.out).split())
    assert "layers=auto: distilling, softmax kept in no block" in shown
    assert re.search(r"layers=auto: (lost|gained) \d+\.\d\d points on 298 planning images", shown)
    assert json.loads((here / "out" / "summary.json").read_text())["plan"]["trials"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layers", "auto"), ["--layers auto", "--max-drop"]),
        (("--max-drop", "-1"), ["--max-drop", "negative"]),
        (("--max-drop", "some"), ["--max-drop", "some"]),
        (("--layers", "automatic"), ["automatic"]),
    ],
)
def test_budgets_that_mean_nothing(convert, arguments, words):
    convert(*arguments).refused(*words)


def test_a_budget_without_data(castling, tiny):
    castling("convert", *tiny, "--max-drop", 1, "-o", "out").refused("--max-drop", "--data")


def test_without_data_another_recipe_is_taken(castling, tiny, here):
    result = castling("convert", *tiny, "--steps", 1, "-o", "out").done()
    assert "accuracy is unmeasured" in result.out
    assert "recipe datafree" in " ".join(result.out.split())
    assert "name: datafree" in (here / "out" / "recipe.yaml").read_text()
    castling("convert", *tiny, "--steps", 1, "--recipe", "castling", "-o", "other").done()
    assert "name: castling" in (here / "other" / "recipe.yaml").read_text()


def test_inspect_sensitivity(castling, tiny):
    model = [word for word in tiny[:-4] if word != "--device"]
    shown = castling("inspect", *model, "--sensitivity", "--data", "digits").done().out
    assert "divergence, nats" in shown
    assert "256 images (digits)" in " ".join(shown.split())
    values = json.loads(castling("inspect", *model, "--sensitivity", "--json").done().out)
    assert all(layer["divergence"] >= 0 and 0 <= layer["agreement"] <= 100 for layer in values["layers"])
    castling("inspect", *model, "--data", "digits").refused("--sensitivity")
    castling("inspect", *model, "--sensitivity", "--data", "nowhere").refused("nowhere")


def test_report(convert, castling, here, monkeypatch):
    monkeypatch.setattr("castling_convert.analysis.report.LATENCY_SIZES", (1, 2))  # the third is as the second
    convert("--layers", "auto", "--max-drop", 100, "--steps", 5).done()
    out = castling("report", "out").done().out
    assert "out/report.html" in out
    page = (here / "out" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page), "self-contained: nothing is loaded from elsewhere"
    for words in ("top-1 (299 held out)", "Which layers to castle", "points lost on 298 planning images",
                  "blocks.1.attn", "folding error", "<h2>Latency</h2>", "onnxruntime, float32", "64x64"):  # fmt: skip
        assert words in page
    assert page.count("data:image/jpeg;base64,") == 12
    assert re.search(r"validation images the two models disagree about \d+", page)
    summary = json.loads((here / "out" / "summary.json").read_text())
    for words in ('class="verdict"', "<h2>By class</h2>", summary["bundle_sha256"], "prefers-color-scheme", "viewport"):
        assert words in page
    castling("report", "out", "--no-latency", "--no-images").done()
    page = (here / "out" / "report.html").read_text()
    assert "<h2>Latency</h2>" not in page
    assert "data:image" not in page
    castling("report", "nowhere").refused("nowhere")
