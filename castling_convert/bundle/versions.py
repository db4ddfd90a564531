"""What made a bundle."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from ..version import __version__


def versions() -> dict[str, str]:
    """What made a bundle."""
    packages = ("torch", "timm", "onnx", "onnxruntime", "onnxscript", "onnxsim", "accelerate", "safetensors")
    return {"castling-convert": __version__, "python": platform.python_version()} | {p: version_of(p) for p in packages}


def version_of(package: str) -> str:
    """The installed version of a package, or of another that brings the same module, as onnxruntime-gpu does."""
    try:
        return version(package)
    except PackageNotFoundError:
        others = packages_distributions().get(package, [])
        return f"{version(others[0])} ({others[0]})" if others else "not installed"
