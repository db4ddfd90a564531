"""What can be chosen about an export."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..errors import ExportError, did_you_mean

MIN_OPSET, DEFAULT_OPSET, MAX_OPSET = 18, 23, 24
"""torch's exporter starts at 18; at 23 a normalisation is one node; TensorRT's parser ends at 24."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of all formats.

    Attributes:
        batch: `dynamic`, a fixed number such as `1`, or `MIN:OPT:MAX` (dynamic, and checked at the ends).
        image_size: (height, width); position embeddings are resized for it. The model's own when None.
        opset: of the ONNX graph.
        simplify: run the simplifier.
        verify: check parity; without it the artifact is not known to be right.
        atol, rtol: parity holds when |artifact - model| <= atol + rtol·|model| on every logit.
        identity: SHA-256 of the bundle's weights, kept in the artifact so that `verify` finds its bundle.
    """

    precision: str = "fp32"
    batch: str = "dynamic"
    image_size: tuple[int, int] | None = None
    opset: int = DEFAULT_OPSET
    simplify: bool = True
    verify: bool = True
    atol: float = 1e-4
    rtol: float = 0.0
    identity: str | None = None

    @classmethod
    def make(cls, **values: Any) -> ExportOptions:
        """As the constructor, with one clear line for what is not valid."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ExportError(f"export has no option '{name}'{did_you_mean(name, known)}")
        options = cls(**values | {"batch": str(values.get("batch", cls.batch))})
        if not MIN_OPSET <= options.opset <= MAX_OPSET:
            raise ExportError(f"opset {options.opset} is not within {MIN_OPSET}..{MAX_OPSET}")
        if not (options.atol >= 0 and options.rtol >= 0):
            raise ExportError("atol and rtol must be numbers from zero up")
        options.batch_sizes()
        return options

    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that parity is checked at; one only when the batch is fixed."""
        if self.batch == "dynamic":
            return (1, 3)
        parts = self.batch.split(":")
        if len(parts) not in (1, 3) or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ExportError(f"batch '{self.batch}' is neither a number nor MIN:OPT:MAX, such as 1:8:16")
        sizes = tuple(int(part) for part in parts)
        if list(sizes) != sorted(sizes):
            raise ExportError(f"batch '{self.batch}': MIN <= OPT <= MAX is needed")
        return tuple(dict.fromkeys(sizes))

    @property
    def dynamic(self) -> bool:
        return self.batch == "dynamic" or ":" in self.batch
