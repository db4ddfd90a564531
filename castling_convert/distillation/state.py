"""The resumable state of a run: accelerate's checkpoint in a folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from accelerate.utils import set_seed
from torch import nn

from ..errors import BundleError, RecipeError, first_line
from ..files import sha256, writing
from ..recipe import Recipe
from . import processes

FREE = {"distill.checkpoint_every", "distill.checkpoint_minutes", "data.workers"}
"""What of a recipe may change when a run is resumed: the weights are the same."""


class TrainState:
    """Saves to `workdir/state`: model, optimiser, schedule, random states, and the step.

    Of several processes the first one writes it, with the random states of all, and all of them read it: a folder that
    they all see. A run may be resumed by another number of processes.
    """

    def __init__(self, accelerator: Accelerator, workdir: Path | None, fingerprint: dict[str, Any]) -> None:
        self.accelerator = accelerator
        self.folder = workdir / "state" if workdir else None
        self.fingerprint = fingerprint

    def save(self, step: int) -> None:
        """Save after `step` steps; the former state stays until the new one is complete."""
        if self.folder is None:
            return
        _, *others = processes.collected(_random_state() if processes.count() > 1 else b"")
        processes.on_first(lambda: self._write(step, others))

    def _write(self, step: int, others: list[bytes]) -> None:
        assert self.folder is not None
        with writing(self.folder) as fresh:
            self.accelerator.save_state(str(fresh))
            for number, random_state in enumerate(others, start=1):
                _random_file(fresh, number).write_bytes(random_state)
            record = {"step": step, "fingerprint": self.fingerprint, "sha256": _hashes(fresh)}
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
        found = _hashes(self.folder)
        for name, digest in record["sha256"].items():  # accelerate itself goes on without its random states
            if found.get(name) != digest:
                raise BundleError(f"{self.folder / name} is missing or damaged; start over with --force")
        try:
            self.accelerator.load_state(str(self.folder))
            if not processes.is_first():
                self._load_random_state(int(record["step"]))
        except Exception as error:  # noqa: BLE001 - whatever accelerate meets in a damaged folder
            where, why = f"the saved state in {self.folder}", first_line(error)
            if record["sha256"]:
                raise BundleError(
                    f"{where} is as it was written and can't be loaded here ({why}); resume on the machine and with "
                    "the versions that wrote it, or start over with --force"
                ) from None
            raise BundleError(f"{where} is damaged ({why}); start over with --force") from None
        return int(record["step"])

    def _load_random_state(self, step: int) -> None:
        """Of a process beyond the first; a fresh one where as many were not there before."""
        assert self.folder is not None
        number = processes.index()
        if _random_file(self.folder, number).is_file():
            load_accelerator_state(str(self.folder), [], [], [], [], number)
        else:
            seeds = (self.fingerprint["distill"]["seed"], number, step)
            set_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))


def _random_file(folder: Path, number: int) -> Path:
    """Where accelerate keeps the random state of a process."""
    return folder / f"random_states_{number}.pkl"


def _random_state() -> bytes:
    """Of this process, as accelerate writes it."""
    with tempfile.TemporaryDirectory() as folder:
        save_accelerator_state(folder, [], [], [], [], 0, 0)
        return _random_file(Path(folder), 0).read_bytes()


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


def fingerprint(recipe: Recipe, teacher: nn.Module, identity: dict[str, Any] | None) -> dict[str, Any]:
    """What may not change between an interrupted run and the one that resumes it.

    `identity` is what the caller adds; its `data`, a spec, becomes the `spec` of the recipe's section of that name.
    """
    values = recipe.model_dump(mode="json", include={"attention", "distill", "data"})
    identity = dict(identity or {})
    values["data"]["spec"] = identity.pop("data", None)
    values |= {"teacher_weights": weights_sha256(teacher)} | identity
    try:
        return json.loads(json.dumps(values))  # as it is read again: tuples are lists there
    except TypeError as error:
        raise RecipeError(f"identity= takes what JSON can hold: {first_line(error)}") from None


def weights_sha256(model: nn.Module) -> str:
    """Of the names and the bytes of all its weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def refuse_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise BundleError when a run can't go on, because what its fingerprint says has changed."""
    changed = _changed(_of_today(old, new), new)
    if changed:
        raise BundleError(
            f"can't resume another run: {', '.join(changed)} changed; "
            "resume with the options of the first run, or start over with --force"
        )


def _of_today(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint of any version; what an older one did not write down is taken as it is now: version 0.1 of `data`
    the spec alone, and none knew `distill.images`."""
    data = old.get("data")
    data = {**new["data"], **(data if isinstance(data, dict) else {"spec": data})}
    began = old.get("distill")
    distill = {"images": new["distill"]["images"], **(began if isinstance(began, dict) else {})}
    known = {"teacher_weights": new["teacher_weights"], "images": new.get("images")}
    return {**known, **old, "data": data, "distill": distill}


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir() if path.is_file()}


def _read(record: Path) -> dict[str, Any]:
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        return {
            "step": int(values["step"]),
            "fingerprint": dict(values["fingerprint"]),
            "sha256": dict(values.get("sha256", {})),  # version 0.1 wrote none
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(f"the saved state in {record.parent} is damaged; start over with --force") from None


def _changed(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key in new.keys() | old.keys():
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += _changed(a, b, f"{prefix}{key}.")
        elif a != b and f"{prefix}{key}" not in FREE:
            keys.append(f"{prefix}{key}")
    return sorted(keys)
