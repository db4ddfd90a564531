"""A run followed in another program: `--track`, by accelerate's trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available

from ..errors import OutputError, RecipeError, Wanted, did_you_mean

TRACKERS: dict[str, Callable[[], bool]] = {"tensorboard": is_tensorboard_available}
"""By accelerate's name, and whether it is installed."""

TRACKER = Wanted(str, RecipeError, "the name of a tracker, tensorboard")
"""What a verb takes as `track`."""


def require_tracker(track: str | None, workdir: Path | None) -> dict[str, Any]:
    """What accelerate is told of the tracker, which writes to a folder in `workdir`.

    Raises:
        RecipeError: no such tracker, or no folder. OutputError: it is not installed.
    """
    if track is None:
        return {}
    if track not in TRACKERS:
        raise RecipeError(
            f"--track '{track}' is not known{did_you_mean(track, TRACKERS) or ';'} use {', '.join(TRACKERS)}"
        )
    if not TRACKERS[track]():
        raise OutputError(f"--track {track} needs {track}: pip install 'castling-convert[track]'")
    if workdir is None:
        raise RecipeError(f"track='{track}' writes files; give distill a workdir for them")
    return {"log_with": track, "project_dir": str(workdir)}


def start_tracking(accelerator: Accelerator, track: str | None, first: int) -> None:
    """Begin, or go on after `first` steps: what was written of later ones is hidden."""
    if track is not None:
        accelerator.init_trackers(track, init_kwargs={track: {"purge_step": first + 1}})


@contextmanager
def tracking(accelerator: Accelerator) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """While open, a function that writes down the metrics of a step; nothing where nothing was started."""
    try:
        yield lambda step, metrics: accelerator.log(_flat(metrics), step=step)
    finally:
        for tracker in accelerator.trackers:  # not `end_training`, which would part the processes of a run
            tracker.finish()


def _flat(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers by names such as `losses/total`."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
