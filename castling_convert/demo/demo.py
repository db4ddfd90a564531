"""The demo: a teacher trained from scratch on embedded data, then the tool's own road from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from timm.models import save_for_hf

from .. import bundle
from ..errors import BundleError, CheckFailed
from ..exporting import export
from ..files import locked, writing
from ..pipeline.conversion import convert
from ..recipe import Recipe
from ..verification.artifact import Verification, verify
from .testbeds import TESTBEDS, train_teacher

MAX_DROP = 1.0
IMAGES = 12_800
"""To distil with: half of what a recipe takes, enough for teachers of four layers."""


def run(output: Path, data: str, seed: int, console: Console | None) -> tuple[dict[str, Any], Verification]:
    """Train, convert, export and verify; the bundle, the ONNX file and the teacher stay on disk.

    Args:
        data: the name of a testbed, `digits` or `relations`.

    Returns:
        The bundle's summary and the verification of its ONNX file on held-out images.

    Raises:
        BundleError, OutputError: nothing can be written there.
        CheckFailed: the teacher missed its floor, or the castled model is more than a point below it.
    """
    testbed = TESTBEDS[data]
    folder = output.with_name(output.name + "-teacher")
    bundle.refuse_in_the_way(output, force=True)
    _refuse_foreign_teacher(folder)
    with locked(folder):  # and so a place that can't be written is found before the teacher is trained
        teacher, top1 = train_teacher(testbed, seed, console)
        if top1 < testbed.floor:
            raise CheckFailed(f"the teacher reached {top1:.2f} % on held-out {data}, {testbed.floor} % is needed")
        with writing(folder) as fresh:
            save_for_hf(teacher, fresh, safe_serialization=True)
    recipe = Recipe.load("castling", [f"distill.seed={seed}", f"distill.images={IMAGES}", *testbed.overrides])
    if console is not None:
        console.print("castling every attention layer and distilling ...")
    summary = convert(
        f"local-dir:{folder}", output, data=data, recipe=recipe, max_drop=MAX_DROP, device="cpu", force=True,
        console=console,
    )  # fmt: skip
    artifact = export(output)
    result = verify(artifact, bundle_path=output, data=data)
    if not result.holds:
        raise CheckFailed(f"{artifact} differs from its bundle by {result.folded.max_error:.1e}")
    return summary, result


def _refuse_foreign_teacher(folder: Path) -> None:
    """A teacher of an earlier demo is replaced, nothing else."""
    if folder.exists() and not (
        folder.is_dir() and {file.name for file in folder.iterdir()} <= {"config.json", "model.safetensors"}
    ):
        raise BundleError(f"{folder} exists and is no teacher of a demo, so it is not replaced; give another --output")
