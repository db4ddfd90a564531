"""What can be chosen about an export."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from rich.console import Console

from ..errors import ExportError, did_you_mean
from .parity import Tolerance
from .precision import DEFAULT, PRECISIONS, Precision

MIN_OPSET, DEFAULT_OPSET, MAX_OPSET = 18, 23, 24
"""torch's exporter starts at 18; at 23 a normalisation is one node; TensorRT's parser ends at 24."""


@dataclass(frozen=True, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
class ExportOptions:
    """Options of all formats.

    Attributes:
        batch: `dynamic`, a fixed number such as `1`, or `MIN:OPT:MAX` (dynamic, and checked at the ends).
        io: `fp32`, or `same` for inputs and outputs in float16 of an fp16 artifact.
        preprocess: uint8 [B, H, W, C] in and probabilities out; normalisation and softmax are in the artifact.
        calibration: a `--data` spec of the images that int8 ranges are taken from.
        quantizer: the method that int8 is made by, a name in `quantize.QUANTIZERS`; the format's own when left out.
        image_size: (height, width); position embeddings are resized for it. The model's own when None.
        image_range: the smallest and the largest (height, width) of an artifact that takes any size between
            them, `image_size` being the one it is made best for. Sides are multiples of the patch.
        opset: of the ONNX graph; the format's own when left out.
        onnx_only: for `trt` and `trt-rtx`, write the checked ONNX graph and not the engine.
        compute_capabilities: of the GPUs that an engine of `trt-rtx` is for, such as `8.9`; all from Ampere on when
            left out.
        nms: for `onnx` and `openvino`, put the non-maximum suppression of a detector behind its boxes.
        console: where progress goes; silent when left out.
        simplify: run the simplifier.
        verify: check parity; without it the artifact is not known to be right.
        atol, rtol: parity holds when |artifact - model| <= atol + rtol·|model| on every logit; what the
            precision allows when left out.
        latency_only: int8 by a few generated images, every layer quantised: as fast as int8 gets, accuracy unknown.
        identity: SHA-256 of the bundle's weights, kept in the artifact so that `verify` finds its bundle.
    """

    precision: str = DEFAULT
    batch: str = "dynamic"
    io: str = "fp32"
    preprocess: bool = False
    calibration: str | None = None
    quantizer: str | None = None
    image_size: tuple[int, int] | None = None
    image_range: tuple[tuple[int, int], tuple[int, int]] | None = None
    opset: int | None = None
    onnx_only: bool = False
    compute_capabilities: tuple[str, ...] = ()
    nms: bool = False
    console: Console | None = None
    simplify: bool = True
    verify: bool = True
    atol: float | None = None
    rtol: float | None = None
    latency_only: bool = False
    identity: str | None = None

    @classmethod
    def make(cls, **values: Any) -> ExportOptions:
        """As the constructor, with one clear line for what is not valid."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ExportError(f"export has no option '{name}'{did_you_mean(name, known)}")
        size = values.get("image_size")
        square = {"image_size": (size, size)} if isinstance(size, int) else {}
        try:
            options = cls(**values | {"batch": str(values.get("batch", cls.batch))} | square)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key, wanted = str(first["loc"][0]), first["msg"].removeprefix("Input should be ")
            wanted = "of more values" if first["type"] == "missing" else wanted
            raise ExportError(f"{key} should be {wanted}, not {values[key]!r}") from None
        if options.opset is not None and not MIN_OPSET <= options.opset <= MAX_OPSET:
            raise ExportError(f"opset {options.opset} is not within {MIN_OPSET}..{MAX_OPSET}")
        if options.io not in ("fp32", "same"):
            raise ExportError(f"io is fp32 or same, not '{options.io}'")
        if options.io == "same" and options.precision == "bf16":
            raise ExportError("bf16 artifacts take and give float32: numpy has no bfloat16; leave out --io same")
        if not all(value is None or value >= 0 for value in (options.atol, options.rtol)):
            raise ExportError("atol and rtol must be numbers from zero up")
        for target in options.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", target):
                raise ExportError(f"a compute capability is written X.Y, such as 8.9, not '{target}'")
        if options.latency_only and (options.verify or options.calibration is not None):
            raise ExportError("latency_only has no accuracy to verify and no use for calibration images")
        options.batch_sizes()
        if options.image_range is not None:
            low, high = options.image_range
            best = options.image_size or high
            if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)) or low == high:
                raise ExportError(f"image sizes {low}, {best}, {high} are not MIN <= OPT <= MAX with MIN < MAX")
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

    def other_sizes(self) -> tuple[tuple[int, int], ...]:
        """Beside the best one, the image sizes that parity is checked at; the last is the widest there is."""
        if self.image_range is None:
            return ()
        low, high = self.image_range
        return tuple(dict.fromkeys((low, high, (low[0], high[1]))))

    @property
    def how(self) -> Precision:
        """What the precision asked for means."""
        return PRECISIONS[self.precision]

    @property
    def tolerance(self) -> Tolerance:
        """What parity is held against."""
        asked = {key: value for key in ("atol", "rtol") if (value := getattr(self, key)) is not None}
        return replace(self.how.tolerance, **asked, noise=None) if asked else self.how.tolerance

    @property
    def fixed_batch(self) -> int | None:
        """The only batch that the artifact takes; None when any will do."""
        return None if self.dynamic else self.batch_sizes()[0]

    @property
    def dynamic(self) -> bool:
        return self.batch == "dynamic" or ":" in self.batch
