"""The bundle of an artifact, and an artifact or bundle that a user points to."""

from __future__ import annotations

from pathlib import Path

from .. import bundle
from ..artifact.runner import IDENTITY, Runner
from ..errors import BundleError
from ..exporting import format_of


def open_target(target: Path) -> tuple[Path, Runner | None]:
    """A bundle's path, and the artifact in its runtime where `target` is one and no bundle.

    Raises:
        ExportError: the artifact is damaged, or of a kind that can't be run here.
        BundleError: nothing there, or the artifact's bundle is not found.
    """
    if target.is_dir() or not target.suffix:
        return target, None
    if not target.is_file():
        raise BundleError(f"{target} not found; give a bundle or an exported artifact")
    runner = format_of(target).exporter.open_artifact(target)
    return find_bundle(target, runner.metadata.get(IDENTITY), None, "move it into its bundle's folder"), runner


def find_bundle(
    artifact: Path, identity: str | None, named: Path | None, remedy: str = "name it with --bundle"
) -> Path:
    """The bundle an artifact was made of, by the hash of its weights; `remedy` is what the caller's user can do where
    it is not found."""
    if named is not None:
        if identity is not None and _identity(named) != identity:
            raise BundleError(f"{artifact} was not exported from {named}: the weights' hashes differ")
        return named
    if identity is None:
        raise BundleError(f"{artifact} does not say which bundle it was made of; {remedy}")
    candidates = [
        artifact.resolve().parent,
        *sorted(p.parent for p in Path("castled").glob(f"*/{bundle.SUMMARY}")),
    ]
    for candidate in candidates:
        try:
            if (candidate / bundle.SUMMARY).is_file() and _identity(candidate) == identity:
                return candidate
        except BundleError:
            continue  # a damaged neighbour is not the one that is looked for
    raise BundleError(
        f"the bundle of {artifact} is neither beside it nor under castled/ (or was converted again since); "
        f"{remedy}, or export again"
    )


def _identity(path: Path) -> str | None:
    recorded = bundle.read_summary(path).get("sha256")
    return recorded.get(bundle.WEIGHTS) if isinstance(recorded, dict) else None
