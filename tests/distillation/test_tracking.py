"""A run followed in TensorBoard: what is written there, and that it outlives publishing."""

from __future__ import annotations

import json

import pytest

import castling_convert as cc
from castling_convert.distillation import tracking
from castling_convert.distillation.tracking import TRACKERS, require_tracker
from castling_convert.errors import CastlingError, Interrupted
from tests.models import SIZE

SMALL = {key: value for key, value in SIZE.items() if key not in ("img_size", "num_classes")}


def convert(output, **options):
    recipe = cc.Recipe.load("castling", ["distill.steps=5", "distill.batch_size=4", "distill.align.share=0.4"])
    return cc.convert(
        "vit_t", output, data="digits", recipe=recipe, pretrained=False, image_size=(32, 32), num_classes=10,
        model_args=SMALL, device="cpu", **options,
    )  # fmt: skip


@pytest.fixture
def read():
    """The scalars in a folder of TensorBoard's, by name, as [(step, value)]."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard, which [track] has"
    )

    def scalars(folder):
        events = accumulators.EventAccumulator(str(folder))
        events.Reload()
        return {
            name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]
        }

    return scalars


def test_what_is_tracked_is_what_metrics_say_and_is_published(tmp_path, read):
    summary = convert(tmp_path / "out", track="tensorboard")
    found = read(tmp_path / "out" / "train" / "tensorboard")
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in found["losses/total"]] == [1, 2, 3, 4, 5]
    for (_, value), record in zip(found["losses/total"], records, strict=True):
        assert value == pytest.approx(record["losses"]["total"], rel=1e-5)
    assert {"lr", "threshold", "density/blocks.0.attn", "layer_losses/blocks.1.attn", "probe/top1"} <= found.keys()
    assert [step for step, _ in found["losses/logits"]] == [3, 4, 5]  # of the second phase
    assert any(name.startswith("train/tensorboard/events") for name in summary["sha256"])


def test_a_resumed_run_goes_on_in_the_same_curves(tmp_path, read):
    """And the same bundle comes of it, tracked or not."""
    resume = False
    while True:
        try:
            summary = convert(tmp_path / "out", track="tensorboard", max_minutes=1e-9, resume=resume)
            break
        except Interrupted:
            resume = True
    found = read(tmp_path / "out" / "train" / "tensorboard")
    assert [step for step, _ in found["losses/total"]] == [1, 2, 3, 4, 5]
    assert convert(tmp_path / "plain")["bundle_sha256"] == summary["bundle_sha256"]
    assert not (tmp_path / "plain" / "train" / "tensorboard").exists()


def test_a_run_that_starts_over_starts_its_curves_over(tmp_path, read):
    with pytest.raises(Interrupted):
        convert(tmp_path / "out", track="tensorboard", max_minutes=1e-9)
    convert(tmp_path / "out", track="tensorboard", force=True)
    assert len(read(tmp_path / "out" / "train" / "tensorboard")["losses/total"]) == 5
    assert len(list((tmp_path / "out" / "train" / "tensorboard").iterdir())) == 1


def test_without_tensorboard_it_is_one_line_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(TRACKERS, "tensorboard", lambda: False)
    with pytest.raises(CastlingError) as refused:
        convert(tmp_path / "out", track="tensorboard")
    assert str(refused.value) == "--track tensorboard needs tensorboard: pip install 'castling-convert[track]'"
    assert refused.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_known(tmp_path):
    with pytest.raises(CastlingError, match=r"--track 'tensorbord' is not known; did you mean tensorboard\?"):
        convert(tmp_path / "out", track="tensorbord")
    assert list(tmp_path.iterdir()) == []


def test_files_need_a_folder(monkeypatch):
    monkeypatch.setitem(TRACKERS, "tensorboard", lambda: True)
    with pytest.raises(CastlingError, match="give distill a workdir"):
        require_tracker("tensorboard", None)


def test_names_of_nested_numbers():
    assert tracking._flat({"losses": {"total": 1.0}, "lr": 2.0}) == {"losses/total": 1.0, "lr": 2.0}
