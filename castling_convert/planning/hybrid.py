"""Hybrid conversion: castle as many blocks as a budget in accuracy allows, keep the rest as softmax.

Blocks are castled in the order of their sensitivity, the least needed first. Whether a plan meets the
budget is found out by carrying it out: first with every block castled, then with the most sensitive one
kept, then two, until the drop on images set aside for this is within the budget. The first that meets it
keeps the fewest, and its student is the result. Most conversions end after the first trial. The first phase, every
layer alone, is the same for all plans and done once; a trial is the second phase, from there. The images
are half of the validation part, which neither the teacher nor a student was trained on; what is reported
in the end is measured on the other half. Where there is no such part, they are a fifth of the training
part, and the teacher, which may know them, is hard to keep up with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from ..castling import Castling, LayerRecord
from ..data.spec import ImageData
from ..errors import BundleError, CheckFailed, DataError
from ..files import writing_file
from .sensitivity import Sensitivity

PLANNING_IMAGES = 2000
ROUNDING = 1e-6
"""Points: a drop is a difference of shares, and one that is the budget may come out a little above it."""


def exceeds(drop: float, allowed: float) -> bool:
    """Whether more points are lost than are allowed."""
    return not drop <= allowed + ROUNDING


@dataclass(frozen=True)
class Trial:
    """One plan carried out: the blocks it kept as softmax, and its drop in points on the planning images."""

    kept: list[int]
    drop: float


@dataclass
class Plan:
    """What `layers=auto` decided and why; stands in the bundle's summary.

    Attributes:
        max_drop: the budget in points. images: how many were set aside for planning.
        measure: what a drop is counted in, see `Task.lost_in`. unit: of the sensitivities' divergences.
        fingerprint: of the run it belongs to, so that no other one goes on with it.
    """

    max_drop: float
    images: int
    measure: str
    sensitivity: list[Sensitivity]
    trials: list[Trial] = field(default_factory=list)
    fingerprint: dict[str, Any] = field(default_factory=dict)
    unit: str = "nats"

    @property
    def order(self) -> list[int]:
        """The blocks, the one that needs its softmax most first."""
        return [entry.block for entry in sorted(self.sensitivity, key=lambda entry: -entry.divergence)]

    @property
    def allowed(self) -> float:
        """The drop that a plan may have: the budget, or one image where the budget is finer than that."""
        return max(self.max_drop, 100 / self.images)

    def next_kept(self) -> list[int]:
        """The blocks to keep as softmax in the next trial: the fewest that are not known to lose too much.

        Raises:
            CheckFailed: every plan that castles something was tried.
        """
        drops = {tuple(trial.kept): trial.drop for trial in self.trials}
        for count in range(len(self.order)):
            kept = sorted(self.order[:count])
            if not exceeds(drops.get(tuple(kept), 0.0), self.allowed):
                return kept
        raise CheckFailed(
            f"no plan stays within --max-drop {self.max_drop:g}: the best lost {min(drops.values()):.2f} points on the "
            f"{self.images} planning images; allow more and add --resume, or train longer with --steps and --force"
        )

    def record(self, kept: list[int], drop: float) -> None:
        """Add a trial; one of the same blocks, of a run that was resumed, is replaced."""
        self.trials = [trial for trial in self.trials if trial.kept != kept] + [Trial(kept, drop)]

    def layers(self, kept: Iterable[int]) -> str:
        """The blocks to castle, in the form that `castle(layers=...)` takes."""
        return ",".join(str(entry.block) for entry in self.sensitivity if entry.block not in kept)

    def explain(self, castling: Castling, dear: Mapping[str, str]) -> Castling:
        """The account of the layers, with the plan's reasons; `dear` are layers that it did not look at, see
        `not_paying`."""
        rank = {name: (place, entry) for place, block in enumerate(self.order, 1)
                for entry in self.sensitivity if entry.block == block for name in entry.layers}  # fmt: skip
        records = []
        for record in castling.layers:
            if record.name in rank:
                place, entry = rank[record.name]
                why = f"layers=auto: sensitivity {entry.divergence:.3g} {self.unit}, rank {place} of {len(self.order)}"
                record = LayerRecord(record.name, record.status, why)
            elif record.name in dear:
                why = f"layers=auto: castling makes it no cheaper, {dear[record.name]}"
                record = LayerRecord(record.name, record.status, why)
            records.append(record)
        return replace(castling, layers=records)

    def to_dict(self) -> dict[str, Any]:
        """For the summary, which says what the run was in its own words."""
        return {key: value for key, value in asdict(self).items() if key != "fingerprint"}

    def save(self, path: Path) -> None:
        with writing_file(path) as fresh:
            fresh.write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """The plan of an interrupted run.

        Raises:
            BundleError: it is missing or damaged.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            sensitivity = [Sensitivity(**entry) for entry in values.pop("sensitivity")]
            trials = [Trial(**trial) for trial in values.pop("trials")]
            return cls(sensitivity=sensitivity, trials=trials, **values)
        except (OSError, ValueError, KeyError, TypeError):
            raise BundleError(f"{path} is missing or damaged; start over with --force") from None


Outcome = TypeVar("Outcome")


def search(
    plan: Plan,
    carry_out: Callable[[str], Outcome],
    drop: Callable[[Outcome], tuple[float, str]],
    failed: Callable[[Plan], None],
    console: Console | None = None,
) -> Outcome:
    """Carry out plans until one stays within the budget; every trial is recorded in `plan`.

    Args:
        carry_out: castles and distils the blocks it is given (as `castle(layers=...)` takes them).
        drop: the points an outcome lost on the planning images, and the same in words.
        failed: called with the plan after each trial that lost too much.

    Raises:
        CheckFailed: no plan stays within the budget.
    """
    while True:
        kept = plan.next_kept()
        if console is not None:
            console.print(f"layers=auto: distilling, softmax kept in {_blocks(kept)}")
        outcome = carry_out(plan.layers(kept))
        lost, said = drop(outcome)
        plan.record(kept, lost)
        if console is not None:
            console.print(f"layers=auto: {said}")
        if not exceeds(lost, plan.allowed):
            return outcome
        failed(plan)


def _blocks(kept: list[int]) -> str:
    return "no block" if not kept else f"block{'s' if len(kept) > 1 else ''} {', '.join(map(str, kept))}"


def set_aside(data: ImageData, share: float) -> tuple[list[int], list[int]]:
    """Indices of the images that stay, and of those to plan with: `share` of all, PLANNING_IMAGES at most.

    Raises:
        DataError: a stream, whose images can't be set aside, or too few images.
    """
    if data.streamed:
        raise DataError(
            "layers=auto sets images aside for planning, and a streamed data set can't be parted; "
            "give a folder of images, or block numbers such as --layers 0-7"
        )
    count = min(PLANNING_IMAGES, int(share * len(data)))
    if count < 1:
        raise DataError(
            f"layers=auto needs at least {math.ceil(1 / share)} images to set some aside for planning; "
            "give more, or block numbers such as --layers 0-7"
        )
    order = np.random.default_rng(0).permutation(len(data))
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())
