"""The resumable state of a run: accelerate's checkpoint in a folder that appears whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..errors import BundleError
from ..files import writing


class TrainState:
    """Saves to `workdir/state`: model, optimiser, schedule, random states, and the step."""

    def __init__(self, accelerator: Accelerator, workdir: Path | None, fingerprint: dict[str, Any]) -> None:
        self.accelerator = accelerator
        self.folder = workdir / "state" if workdir else None
        self.fingerprint = fingerprint

    def save(self, step: int) -> None:
        """Save after `step` steps; the former state stays until the new one is complete."""
        if self.folder is None:
            return
        with writing(self.folder) as fresh:
            self.accelerator.save_state(str(fresh))
            record = {"step": step, "fingerprint": self.fingerprint}
            (fresh / "run.json").write_text(json.dumps(record))

    def load(self) -> int:
        """Load and return the number of steps done.

        Raises:
            BundleError: no state there, damaged, or of a different recipe.
        """
        if self.folder is None or saved_step(self.folder) is None:
            raise BundleError("nothing to resume: no saved state there; start without --resume")
        record = _read(self.folder / "run.json")
        refuse_changes(record["fingerprint"], self.fingerprint)
        try:
            self.accelerator.load_state(str(self.folder))
        except Exception as error:  # noqa: BLE001 - whatever accelerate meets in a damaged folder
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BundleError(
                f"the saved state in {self.folder} is damaged ({first}); start over with --force"
            ) from None
        return int(record["step"])


def saved_step(folder: Path) -> int | None:
    """The step a saved state stands at, None when there is no state.

    Raises:
        BundleError: the record of the state is damaged.
    """
    record = folder / "run.json"
    return int(_read(record)["step"]) if record.is_file() else None


def saved_fingerprint(folder: Path) -> dict[str, Any]:
    """The fingerprint of a saved state; BundleError when its record is damaged."""
    return _read(folder / "run.json")["fingerprint"]


def refuse_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise BundleError when a run can't go on, because what its fingerprint says has changed."""
    changed = _changed(old, new)
    if changed:
        raise BundleError(
            f"can't resume with another recipe: {', '.join(changed)} changed; "
            "resume with the options of the first run, or start over with --force"
        )


def _read(record: Path) -> dict[str, Any]:
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        return {"step": int(values["step"]), "fingerprint": dict(values["fingerprint"])}
    except (ValueError, KeyError, TypeError):
        raise BundleError(f"the saved state in {record.parent} is damaged; start over with --force") from None


def _changed(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key in new.keys() | old.keys():
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += _changed(a, b, f"{prefix}{key}.")
        elif a != b:
            keys.append(f"{prefix}{key}")
    return sorted(keys)
