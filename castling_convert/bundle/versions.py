"""What made a bundle."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from ..version import __version__


def versions() -> dict[str, str]:
    """What made a bundle."""
    packages = (
        "torch", "timm", "onnx", "onnxruntime", "onnxscript", "onnxsim", "accelerate", "safetensors", "transformers",
    )  # fmt: skip
    return {"castling-convert": __version__, "python": platform.python_version()} | {p: version_of(p) for p in packages}


def version_of(package: str) -> str:
    """The installed version of a package, or of another that brings the same module, as onnxruntime-gpu does."""
    try:
        return version(package)
    except PackageNotFoundError:
        others = packages_distributions().get(package, [])
        return f"{version(others[0])} ({others[0]})" if others else "not installed"


def origin() -> dict[str, Any]:
    """Where a bundle was made: on what, by which command, and from which commit of this package; None for what can't
    be known."""
    environment = {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
    return {"environment": environment, "command": command(), "commit": commit()}


def command() -> str | None:
    """The command line of this process, as it would be typed again."""
    if not sys.argv or not sys.argv[0]:
        return None
    name = Path(sys.argv[0]).name
    return shlex.join(["castling" if name in ("castling", "__main__.py") else name, *sys.argv[1:]])


def commit(root: Path = Path(__file__).parents[2]) -> str | None:
    """The git commit of this package where it is a checkout, with `-dirty` behind it where files of it were changed."""
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # it writes nothing
    try:
        done = subprocess.run(git, env=environment, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
