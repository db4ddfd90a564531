"""A bundle read as what anybody may have written: its files, their hashes, its `config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..files import sha256
from .config import check_config, check_structure
from .layout import CONFIG, FORMAT, REJECTED, STATE, SUMMARY, WEIGHTS


def check(path: Path) -> dict[str, Any]:
    """Check a bundle against its own record, hashes included, and return its `config.json`.

    Raises:
        BundleError: as `load`.
    """
    config = read_config(path)
    recorded = read_summary(path).get("sha256")
    if not isinstance(recorded, dict) or WEIGHTS not in recorded or CONFIG not in recorded:
        raise BundleError(f"{path / SUMMARY} records no hashes; convert again with --force")
    for name in (CONFIG, WEIGHTS):
        file = path / name
        if not file.is_file():
            raise BundleError(f"{path} is damaged: {name} is missing; convert again with --force, or copy it again")
        if sha256(file) != recorded[name]:
            raise BundleError(
                f"{path} is damaged: {name} is not the file that was written (truncated or edited); "
                "copy the bundle again, or convert again with --force"
            )
    check_structure(config, path / CONFIG, (path / WEIGHTS).stat().st_size)
    return config


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a bundle; BundleError with what is the matter."""
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}; make one with: castling convert --model NAME --output {path}")
    if not (path / CONFIG).is_file():
        if (path / REJECTED).is_dir():
            raise BundleError(f"{path} was not published, it lost more than --max-drop; see {path / REJECTED}")
        if (path / STATE).is_dir():
            raise BundleError(f"{path} holds an unfinished conversion; finish it with castling convert ... --resume")
        raise BundleError(f"{path} is no bundle: it has no {CONFIG}")
    config = read_json(path / CONFIG)
    section = config.get("castling")
    if not isinstance(section, dict):
        raise BundleError(
            f"{path} is a plain timm model, not a bundle; castle it: castling convert --model local-dir:{path}"
        )
    if not isinstance(section.get("format"), int):
        raise BundleError(f"{path / CONFIG} is damaged: castling.format is no number; copy the bundle again")
    if section["format"] > FORMAT:
        raise BundleError(
            f"{path} was made by castling-convert {section.get('made_by')}; "
            "upgrade with: pip install -U castling-convert"
        )
    check_config(config, path / CONFIG)
    return config


def read_summary(path: Path) -> dict[str, Any]:
    """`summary.json` of a bundle."""
    if not (path / SUMMARY).is_file():
        raise BundleError(f"{path} is damaged: {SUMMARY} is missing; convert again with --force")
    return read_json(path / SUMMARY)


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise BundleError(f"{path} is damaged: it is not JSON; copy the bundle again") from None
    if not isinstance(values, dict):
        raise BundleError(f"{path} is damaged: it is not a JSON object; copy the bundle again")
    return values
