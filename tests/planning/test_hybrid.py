"""Which blocks stay softmax, and why."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from castling_convert.data.spec import ImageData
from castling_convert.errors import BundleError, CheckFailed, DataError
from castling_convert.planning.hybrid import Plan, Trial, exceeds, search, set_aside
from castling_convert.planning.sensitivity import Sensitivity

DIVERGENCES = [0.5, 3.0, 0.01, 0.2]


def plan(max_drop: float = 1.0, images: int = 100) -> Plan:
    sensitivity = [Sensitivity(block, [f"blocks.{block}.attn"], value, 90.0) for block, value in enumerate(DIVERGENCES)]
    return Plan(max_drop, images, "top-1", sensitivity)


def searched(found: Plan, drops: dict[str, float]) -> tuple[str, list[str]]:
    """The outcome, which is what was castled, and everything that was tried before it."""
    failures: list[str] = []
    outcome = search(found, lambda layers: layers, lambda layers: (drops[layers], ""),
                     lambda state: failures.append(state.layers(state.trials[-1].kept)))  # fmt: skip
    return outcome, failures


def test_everything_is_castled_where_the_budget_allows_it():
    found = plan()
    assert searched(found, {"0,1,2,3": 1.0}) == ("0,1,2,3", [])
    assert found.trials == [Trial([], 1.0)]


def test_the_most_sensitive_blocks_are_kept_one_by_one():
    found = plan()
    drops = {"0,1,2,3": 9.0, "0,2,3": 4.0, "2,3": 0.5}
    assert searched(found, drops) == ("2,3", ["0,1,2,3", "0,2,3"])
    assert found.trials == [Trial([], 9.0), Trial([1], 4.0), Trial([0, 1], 0.5)]


def test_a_budget_finer_than_one_planning_image_is_one_image():
    """On 100 images the least that can be lost is one point."""
    assert plan(0.2).allowed == 1.0
    assert plan(3.0).allowed == 3.0
    assert searched(plan(0.2), {"0,1,2,3": 1.0}) == ("0,1,2,3", [])
    assert searched(plan(0.2), {"0,1,2,3": 2.0, "0,2,3": 0.0}) == ("0,2,3", ["0,1,2,3"])


def test_no_plan_within_the_budget():
    found = plan(0.1, images=10_000)
    with pytest.raises(CheckFailed, match=r"--max-drop 0\.1: the best lost 0\.30 points"):
        searched(found, {"0,1,2,3": 9.0, "0,2,3": 0.3, "2,3": 0.5, "2": 0.4})
    assert [trial.kept for trial in found.trials] == [[], [1], [0, 1], [0, 1, 3]]


def test_a_larger_budget_takes_the_fewest_blocks_that_meet_it():
    """Of what was tried with a smaller one; its student is gone, so it is carried out again."""
    found = plan(0.1, images=10_000)
    with pytest.raises(CheckFailed):
        searched(found, {"0,1,2,3": 9.0, "0,2,3": 0.3, "2,3": 0.2, "2": 0.4})
    found.max_drop = 0.3
    assert searched(found, {"0,2,3": 0.3}) == ("0,2,3", [])
    assert [trial.kept for trial in found.trials] == [[], [0, 1], [0, 1, 3], [1]]


def test_a_search_goes_on_where_it_stopped(tmp_path):
    found = plan()
    found.trials.append(Trial([], 9.0))
    found.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == found
    assert searched(again, {"0,2,3": 0.0}) == ("0,2,3", [])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"max_drop": 1}'])
def test_a_damaged_plan(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(BundleError, match=r"plan\.json is missing or damaged; .*--force"):
        Plan.load(tmp_path / "plan.json")


def test_a_drop_that_is_the_budget_is_allowed():
    """A difference of two shares of 180 images, in percent, comes out a little above 100/180 for most of them."""
    lost = [100 * right / 180 - 100 * (right - 1) / 180 for right in range(126, 181)]
    assert max(lost) > 100 / 180
    assert not any(exceeds(drop, 100 / 180) for drop in lost)
    assert exceeds(100 / 180 + 1e-5, 100 / 180)
    assert exceeds(float("nan"), 100.0)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_planning_images_are_others(share):
    data = ImageData("numbers", TensorDataset(torch.arange(50)), 10, held_out=True)
    rest, planning = set_aside(data, share)
    assert len(planning) == 50 * share
    assert sorted(rest + planning) == list(range(50))
    large = ImageData("numbers", TensorDataset(torch.arange(50_000)), 10, held_out=True)
    assert len(set_aside(large, share)[1]) == 2000


def test_what_can_not_be_set_aside():
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(3)

    stream = ImageData("hfds/x", Stream(), None, held_out=False)
    with pytest.raises(DataError, match="streamed"):
        set_aside(stream, 0.2)
    few = ImageData("few", TensorDataset(torch.arange(4)), None, held_out=False)
    with pytest.raises(DataError, match="at least 5 images"):
        set_aside(few, 0.2)
