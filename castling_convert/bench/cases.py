"""What is measured, and what was found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .latency import Latency, Ratio

CASTLED, PLAIN, FUSED = "castled", "softmax", "softmax, fused attention"


@dataclass(frozen=True)
class Case:
    """What is measured. `image_size` is (height, width)."""

    runtime: str
    precision: str
    image_size: tuple[int, int]
    batch: int

    def __str__(self) -> str:
        height, width = self.image_size
        return f"{self.runtime} {self.precision}, {height}x{width}, batch {self.batch}"


@dataclass(frozen=True)
class Result:
    """One case: latency of every variant, which softmax variant is the fastest, and castled against it.

    `others` are the ratios of what else was measured in the same run, over castled.
    `memory` is the peak in bytes that opening and running each takes, see `memory.peak_memory`; empty where
    it was not measured.
    """

    case: Case
    tokens: int
    threads: int
    latency: dict[str, Latency]
    baseline: str
    ratio: Ratio
    memory: dict[str, int] = field(default_factory=dict)
    others: dict[str, Ratio] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
