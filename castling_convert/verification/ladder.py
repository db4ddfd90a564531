"""The ladder: trained -> folded -> every artifact of a bundle, each against the first.

Every rung is the same model in another form; where the errors jump is where something was lost.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import bundle
from ..artifact.options import ExportOptions
from ..artifact.parity import Comparison, Parity
from ..artifact.precision import DEFAULT, PRECISIONS
from ..artifact.runner import IDENTITY, found, judge
from ..artifact.signature import DETECTIONS
from ..data.loaders import some_batches
from ..data.preprocessing import Preprocessing
from ..data.probe import probe_images
from ..data.spec import open_data
from ..exporting import FORMATS, format_of
from ..families import input_size_of
from ..files import writing_file
from ..tasks import Task, task_of
from ..tasks.base import PLACES_AT_ONCE
from .artifact import SUPPRESSED

FILE = "verify.json"
IMAGES = 256


@dataclass(frozen=True)
class Rung:
    """`parity` is against the top of the ladder, None for the top itself or where the artifact can't be run
    here, which `note` then says; `top1` is in percent, None without labels."""

    name: str
    precision: str
    allowed: str | None = None
    parity: Parity | None = None
    top1: float | None = None
    note: str = ""
    intact: bool = True

    @property
    def holds(self) -> bool:
        return self.intact and (self.parity is None or self.parity.holds)


@dataclass(frozen=True)
class Ladder:
    """The rungs from the top down, on what `images` says; `judged_by` is what their `top1` counts."""

    bundle: str
    images: str
    judged_by: str
    rungs: list[Rung]

    @property
    def holds(self) -> bool:
        return all(rung.holds for rung in self.rungs)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}


def artifacts_of(path: Path) -> list[Path]:
    """The artifacts in a bundle, by precision and name."""
    suffixes = {found.suffix for found in FORMATS.values()}
    found = [file for file in sorted(path.iterdir()) if file.suffix in suffixes]
    return sorted(found, key=lambda file: next((i for i, p in enumerate(PRECISIONS) if f".{p}." in file.name), 0))


def ladder(
    path: Path,
    data: str | None = None,
    limit: int = IMAGES,
    *,
    atol: float | None = None,
    rtol: float | None = None,
) -> Ladder:
    """Compare everything a bundle holds, in runtimes that are here, and store the result in it.

    Args:
        data: a `--data` spec; eight generated images when left out. limit: how many images of it.
        atol, rtol: as in `ExportOptions`; what each precision allows when left out.

    Raises:
        BundleError: no bundle there, or a damaged one.
        ExportError: an artifact is damaged, or is not of this bundle.
        DataError: the data can't be read.
    """
    from .target import find_bundle

    folded, trained = bundle.load(path), bundle.load_trained(path)
    task = task_of(folded)
    labels: Tensor | None = None
    if data is None:
        images, what = probe_images(folded, 8), "8 generated images"
    else:
        opened = open_data(data, Preprocessing.of(folded), "validation")
        opened, _ = task.usable(opened, folded)
        batches = some_batches(opened, limit)
        images = torch.cat([x for x, _ in batches])
        labels = torch.cat([y for _, y in batches]) if opened.classes is not None else None
        what = f"{len(images)} images of {data}"
    top = trained if trained is not None else folded

    @torch.no_grad()  # and not in a generator, which would leave it on between two outputs
    def outputs(model: torch.nn.Module, some: Tensor) -> Tensor:
        joined: Tensor = task.joined([task.run(model, part) for part in some.split(PLACES_AT_ONCE)])
        return joined

    def outputs_of(model: torch.nn.Module) -> Iterator[Tensor]:
        return (outputs(model, some) for some in images.split(PLACES_AT_ONCE if task.reads_maps else len(images)))

    top_right, folded_right = _Right(task, labels), _Right(task, labels)
    tops = map(top_right.see, outputs_of(top))
    tolerance = ExportOptions.make(atol=atol, rtol=rtol).tolerance
    if trained is None:
        collections.deque(tops, maxlen=0)
        rungs = [Rung("folded", DEFAULT, top1=top_right.share)]
    else:
        comparison = Comparison(tolerance, task)
        for given, wanted in zip(map(folded_right.see, outputs_of(folded)), tops, strict=True):
            comparison.add(given, wanted)
        rungs = [
            Rung("trained", DEFAULT, top1=top_right.share),
            Rung("folded", DEFAULT, str(tolerance), comparison.parity(), folded_right.share),
        ]
    for artifact in artifacts_of(path):
        exporter = format_of(artifact).exporter
        reason = exporter.cannot_run()
        if reason is not None:
            rungs.append(Rung(artifact.name, "", note=f"not run: {reason}"))
            continue
        run = exporter.open_artifact(artifact)
        find_bundle(artifact, run.metadata.get(IDENTITY), path)
        if run.signature.output == DETECTIONS:
            rungs.append(Rung(artifact.name, run.precision, note=f"not run: it {SUPPRESSED}"))
            continue
        tolerance = ExportOptions.make(precision=run.precision, atol=atol, rtol=rtol).tolerance
        if run.signature.input_size != input_size_of(folded):
            rungs.append(Rung(artifact.name, run.precision, note="not run: for another image size"))
            continue
        right = _Right(task, labels)
        both = ((right.see(given), wanted) for given, wanted in found(run, [top], run.signature, images))
        (parity,) = judge(both, run.signature, tolerance)
        rungs.append(
            Rung(
                name=artifact.name,
                precision=run.precision,
                allowed=str(tolerance),
                parity=parity,
                top1=right.share,
                note="" if run.intact else "changed since it was exported",
                intact=run.intact,
            )
        )
    whole = Ladder(str(path), what, task.judged_by, rungs)
    with writing_file(path / FILE) as fresh:
        fresh.write_text(json.dumps(whole.to_dict(), indent=2))
    return whole


class _Right:
    """How many percent of what a model says of images, batch by batch in the order of their labels, is right."""

    def __init__(self, task: Task, labels: Tensor | None) -> None:
        self.task, self.labels, self.seen, self.judged, self.total = task, labels, 0, 0, 0.0

    def see(self, outputs: Tensor) -> Tensor:
        """The outputs themselves."""
        if self.labels is not None:
            correct = self.task.correct(outputs, self.labels[self.seen : self.seen + len(outputs)])
            if correct is not None:
                self.total += correct * len(outputs)
                self.judged += len(outputs)
        self.seen += len(outputs)
        return outputs

    @property
    def share(self) -> float | None:
        """The mean over the images of the batches whose labels say something; None where there is none."""
        return self.total / self.judged if self.judged else None
