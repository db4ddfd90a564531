"""What every format has in common: an artifact that was made, and one that can be run and checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.loaders import some_images
from ..data.preprocessing import Preprocessing
from ..data.probe import probe_images
from ..data.spec import open_data
from ..dense.boxes import by_image
from ..errors import CheckFailed
from ..tasks import Task, task_of, task_of_output
from ..tasks.base import PLACES_AT_ONCE
from .options import ExportOptions
from .parity import Comparison, Parity, Tolerance
from .precision import DEFAULT
from .prepare import Deployable, prepare
from .signature import DETECTIONS, Signature

IDENTITY, PRECISION, SIGNATURE = "castling.bundle", "castling.precision", "castling.signature"
DIGEST = "castling.sha256"
"""Keys of an artifact's metadata. The digest is that of its content beside the metadata."""
JUDGED_IMAGES, JUDGED_IMAGES_OF_PLACES = 32, 8
"""How many images the noise of int8 is measured on; the second, where a model says something of every place in them."""


@dataclass(frozen=True)
class Exported:
    """An artifact, the worst `Parity` found over the batch sizes checked (None when not checked), and what
    else there is to say of it, by name."""

    artifact: Path
    parity: Parity | None
    notes: dict[str, Any] = field(default_factory=dict)


class Runner(ABC):
    """An artifact in its runtime.

    Attributes:
        signature: what it takes and gives.
        metadata: of the artifact; see the keys above.
        batch: the one it was built for, None when any will do.
        intact: false when the content is not what was exported; each format's `open_artifact` looks.
    """

    intact = True

    def __init__(self, signature: Signature, metadata: dict[str, str], batch: int | None) -> None:
        self.signature, self.metadata, self.batch = signature, metadata, batch

    @abstractmethod
    def run(self, values: np.ndarray) -> np.ndarray:
        """One call of the runtime, with exactly the batch it was built for, if it was built for one."""

    @property
    def precision(self) -> str:
        return self.metadata.get(PRECISION, DEFAULT)

    def __call__(self, images: Tensor) -> Any:
        """Normalised images [B, C, H, W] to the artifact's output, [B, classes], float32; `detections` image by image,
        as `dense.boxes.by_image` has them."""
        rows = torch.from_numpy(self.rows(self.signature.inputs(images.detach().cpu()).numpy())).float()
        return by_image(rows, len(images)) if self.signature.output == DETECTIONS else rows

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Any number of rows of what the artifact takes; a fixed batch is filled up with the last row."""
        if self.batch is None:
            return self.run(values)
        rows = []
        for start in range(0, len(values), self.batch):
            part = values[start : start + self.batch]
            padded = np.concatenate([part, np.repeat(part[-1:], self.batch - len(part), axis=0)])
            rows.append(self.signature.rows(self.run(padded), start, len(part)))
        return np.concatenate(rows)


@torch.no_grad()
def expected(model: nn.Module, signature: Signature, images: Tensor) -> Tensor:
    """What the float32 model gives for what the artifact is given."""
    reference = Deployable(model, replace(signature, dtype="float32")).eval()
    return reference(reference.signature.inputs(images))


def found(
    run: Callable[[Tensor], Any],
    models: Sequence[nn.Module],
    signature: Signature,
    images: Tensor,
    batch: int = PLACES_AT_ONCE,
) -> Iterator[tuple[Tensor, ...]]:
    """What an artifact with this `signature` gives for images [N, C, H, W], `batch` in a call, and what is `expected`
    by each of `models`: of all images at once, or of few where a model says something of every place in them."""
    task = task_of_output(signature.output)
    for some in images.split(max(batch, PLACES_AT_ONCE) if task.reads_maps else len(images)):
        outputs = task.joined([run(part) for part in some.split(batch)])
        parts = some.split(PLACES_AT_ONCE)
        yield outputs, *(task.joined([expected(model, signature, part) for part in parts]) for model in models)


def judged_images(task: Task) -> int:
    """How many images the noise of int8 is measured on."""
    return JUDGED_IMAGES_OF_PLACES if task.reads_maps else JUDGED_IMAGES


def judge(batches: Iterable[tuple[Tensor, ...]], signature: Signature, tolerance: Tolerance) -> list[Parity]:
    """Hold what an artifact gave against what was `expected` by each model, [B, classes], as in `found`: always by
    logits, for between probabilities that are all near zero a wrong model differs by little."""
    comparisons: list[Comparison] = []
    for outputs, *wanted in batches:
        comparisons = comparisons or [Comparison(tolerance, task_of_output(signature.output)) for _ in wanted]
        for comparison, expectation in zip(comparisons, wanted, strict=True):
            comparison.add(signature.logits(outputs), signature.logits(expectation))
    return [comparison.parity() for comparison in comparisons]


def check(run: Runner, model: nn.Module, options: ExportOptions) -> Parity:
    """Compare an artifact with the float32 model at every batch size asked for, and at the ends of a dynamic
    image size: on generated images, or for int8 on those of the calibration spec's validation part.

    Raises:
        CheckFailed: some logit is off by more than the tolerance, or the runtime fails.
    """
    tolerance, batches, best = options.tolerance, options.batch_sizes(), options.image_size
    parities = []
    for size in (best, *options.other_sizes()):
        reference = prepare(model, ExportOptions(image_size=size)).model
        for batch in batches if size == best else batches[:1]:
            images = _images(reference, options, batch)
            batches_of = found(partial(_run, run), [reference], run.signature, images, batch)
            parities += judge(batches_of, run.signature, tolerance)
    worst = max(parities, key=lambda parity: (not parity.holds, parity.max_error))
    if not worst.holds:
        what = "" if options.precision == DEFAULT else f" in {options.precision}"
        raise CheckFailed(
            f"the exported graph{what} differs from the model: max error {worst.max_error:.1e} on the logits, "
            f"noise {worst.noise:.1%} of their spread, allowed {tolerance}; no file was written "
            "(raise --atol only if you can accept that)"
        )
    return worst


def _run(run: Runner, images: Tensor) -> Tensor:
    try:
        outputs: Tensor = run(images)
    except Exception as error:
        raise CheckFailed(
            f"the exported graph can't be run on images of shape {list(images.shape)}: {last_line(error)}; no file was "
            "written"
        ) from error
    return outputs


def last_line(error: Exception) -> str:
    """What a runtime says is wrong; the lines before say where in its own code."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _images(model: nn.Module, options: ExportOptions, batch: int) -> Tensor:
    if not options.how.quantized:
        return probe_images(model, batch)
    count = judged_images(task_of(model))
    if options.calibration is None:
        return probe_images(model, count)
    return some_images(open_data(options.calibration, Preprocessing.of(model), "validation"), count)
