"""When the masks close: pure functions of the step, so a resumed run needs no stored schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..attention.masked_softmax import CLOSED
from ..recipe import SettledDistill


class Mask(NamedTuple):
    """What is left of a layer's softmax: the entries above `threshold`, times `gate`."""

    threshold: float
    gate: float

    @property
    def closed(self) -> bool:
        return self.threshold >= CLOSED or self.gate <= 0


OPEN, SHUT = Mask(0.0, 1.0), Mask(CLOSED, 0.0)


@dataclass(frozen=True)
class Schedule:
    """The phases of a run of `steps` steps for `layers` layers over sequences of some number of tokens.

    Before `open_until` every mask is open, from `closed_from` on every mask is exactly closed. In between
    a `threshold` rises geometrically from `first`, a fraction of the uniform softmax weight 1/N, so that
    a step closes about the same share of what is left at any N; a `gate` falls linearly. Layers close
    `together`, or one after the other in equal parts of the time, from the `first` on or the `last`.
    """

    steps: int
    align_until: int
    open_until: int
    closed_from: int
    first: float
    kind: str = "threshold"
    order: str = "together"
    layers: int = 1

    @classmethod
    def of(cls, config: SettledDistill, tokens: int, layers: int = 1) -> Schedule:
        mask = config.mask
        align_until = config.aligned
        rest = config.steps - align_until
        if mask.schedule == "none":
            return cls(config.steps, align_until, 0, 0, CLOSED, layers=layers)
        # However few the steps, at least one runs with every mask closed.
        closed_from = align_until + min(max(1, round(mask.closed_from * rest)), max(rest - 1, 0))
        open_until = min(align_until + round(mask.open_until * rest), closed_from)
        first = min(mask.start / tokens, CLOSED)
        return cls(
            config.steps, align_until, open_until, closed_from, first,
            kind=mask.schedule, order=mask.order, layers=layers,
        )  # fmt: skip

    def mask(self, step: int, layer: int = 0) -> Mask:
        """The mask of `layer`, counted in forward order, during `step`; both from zero."""
        begin, end = self._window(layer)
        if step >= end:
            return SHUT
        if step < begin:
            return OPEN
        share = (step - begin + 1) / (end - begin + 1)
        return Mask(0.0, 1 - share) if self.kind == "gate" else Mask(float(self.first ** (1 - share)), 1.0)

    def _window(self, layer: int) -> tuple[float, float]:
        """The steps between which `layer` closes."""
        if self.order == "together":
            return self.open_until, self.closed_from
        place = layer if self.order == "first" else self.layers - 1 - layer
        part = (self.closed_from - self.open_until) / self.layers
        return self.open_until + place * part, self.open_until + (place + 1) * part
