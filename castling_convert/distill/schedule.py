"""When the masks close: pure functions of the step, so a resumed run needs no stored schedule."""

from __future__ import annotations

from dataclasses import dataclass

from ..attention.masked_softmax import CLOSED
from ..recipe import DistillConfig


@dataclass(frozen=True)
class Schedule:
    """The phases of a run of `steps` steps over sequences of `tokens` tokens.

    Before `open_until` every mask is open: threshold zero. From `closed_from` on every mask is closed:
    threshold exactly one. In between it rises geometrically from `first`, a fraction of the uniform
    softmax weight 1/N, so that a step closes about the same share of what is left at any N.
    """

    steps: int
    align_until: int
    open_until: int
    closed_from: int
    first: float

    @classmethod
    def of(cls, config: DistillConfig, tokens: int) -> Schedule:
        mask = config.mask
        align_until = min(round(config.align * config.steps), config.steps - 1)
        if mask.schedule == "none":
            return cls(config.steps, align_until, 0, 0, CLOSED)
        # However few the steps, at least one runs with every mask closed.
        closed_from = min(max(1, round(mask.closed_from * config.steps)), max(config.steps - 1, 0))
        open_until = min(round(mask.open_until * config.steps), closed_from)
        return cls(config.steps, align_until, open_until, closed_from, min(mask.start / tokens, CLOSED))

    def threshold(self, step: int) -> float:
        """The mask threshold during `step` (from zero); exactly 1.0 once closed."""
        if step >= self.closed_from:
            return CLOSED
        if step < self.open_until:
            return 0.0
        share = (step - self.open_until + 1) / (self.closed_from - self.open_until + 1)
        return float(self.first ** (1 - share))
