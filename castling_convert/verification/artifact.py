"""Verify: an artifact against its bundle, and against the trained model before folding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import bundle
from ..artifact.options import ExportOptions
from ..artifact.parity import Parity
from ..artifact.runner import IDENTITY, found, judge
from ..artifact.signature import DETECTIONS
from ..data.loaders import some_images
from ..data.preprocessing import Preprocessing
from ..data.probe import probe_images
from ..data.spec import open_data
from ..errors import ExportError
from ..exporting import format_of
from ..families import family_of, input_size_of
from .target import find_bundle

SUPPRESSED = "gives detections after non-maximum suppression, not what the model returns"
IMAGES = 64
"""Images taken from real data; generated ones are dearer and eight do."""


@dataclass(frozen=True)
class Verification:
    """`folded` and `trained` are the artifact against each; `trained` is None when the bundle has dropped
    its `train/` folder. `images` says what was looked at, `allowed` what was tolerated; `intact` is false
    when the file is not what was exported, however small the difference."""

    artifact: str
    bundle: str
    images: str
    allowed: str
    folded: Parity
    trained: Parity | None
    intact: bool = True

    @property
    def holds(self) -> bool:
        return self.intact and self.folded.holds and (self.trained is None or self.trained.holds)

    def to_dict(self) -> dict[str, Any]:
        return {
            "artifact": self.artifact,
            "bundle": self.bundle,
            "images": self.images,
            "allowed": self.allowed,
            "holds": self.holds,
            "intact": self.intact,
            "folded": self.folded.to_dict(),
            "trained": self.trained.to_dict() if self.trained else None,
        }


def verify(
    artifact: Path,
    *,
    bundle_path: Path | None = None,
    data: str | None = None,
    atol: float | None = None,
    rtol: float | None = None,
) -> Verification:
    """Compare an artifact with its bundle's folded model and with the trained student.

    Args:
        bundle_path: the bundle; found beside the artifact or under `castled/` when left out.
        data: a `--data` spec; generated images are used when left out.
        atol, rtol: as in `ExportOptions`; what the artifact's precision allows when left out.

    Raises:
        ExportError: the artifact is missing, damaged, or of a kind that can't be run here.
        BundleError: the bundle is not found, damaged, or not the artifact's own.
    """
    if not artifact.is_file():
        raise ExportError(f"artifact {artifact} not found; make it with: castling export")
    run = format_of(artifact).exporter.open_artifact(artifact)
    if run.signature.output == DETECTIONS:
        raise ExportError(f"{artifact} {SUPPRESSED}; verify one that was exported without --nms")
    tolerance = ExportOptions.make(precision=run.precision, atol=atol, rtol=rtol).tolerance
    path = find_bundle(artifact, run.metadata.get(IDENTITY), bundle_path)
    folded = bundle.load(path)
    trained = bundle.load_trained(path)
    models = [model for model in (folded, trained) if model is not None]
    size = run.signature.input_size
    if size != input_size_of(folded):
        for model in models:
            family_of(model).resize_(model, (size[1], size[2]))
    if data is None:
        images, what = probe_images(folded, 8), "8 generated images"
    else:
        opened = open_data(data, Preprocessing.of(folded), "validation")
        images = some_images(opened, IMAGES)
        what = f"{len(images)} images of {data}"
    parities = judge(found(run, models, run.signature, images), run.signature, tolerance)
    return Verification(
        artifact=str(artifact),
        bundle=str(path),
        images=what,
        allowed=str(tolerance),
        folded=parities[0],
        trained=parities[1] if trained is not None else None,
        intact=run.intact,
    )
