"""What this machine has."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .exporting import Format


def examine() -> dict[str, dict[str, str]]:
    """Versions, devices, onnxruntime providers, formats and recipes, as text under a title each."""
    import onnxruntime
    import torch

    from .bundle.versions import versions
    from .exporting import FORMATS
    from .families import FAMILIES
    from .recipe import shipped

    devices = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        devices["cuda"] = "no GPU that torch can use"
    formats = {name: _readiness(found) for name, found in FORMATS.items()}
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return {
        "versions": {**versions(), "platform": platform.platform()},
        "optional": {name: _version(name) for name in ("tensorrt", "tensorrt-rtx", "openvino", "nncf")},
        "devices": devices,
        "onnxruntime": {"providers": ", ".join(onnxruntime.get_available_providers())},
        "formats": formats,
        "families": {family.title: ", ".join(family.timm_modules) for family in FAMILIES},
        "recipes": {name: str(path) for name, path in shipped().items()},
        "disk": {
            "here": f"{shutil.disk_usage('.').free / 1e9:.1f} GB free",
            "weights cache": f"{cache} ({'there' if cache.is_dir() else 'empty'})",
        },
    }


def _readiness(format: Format) -> str:
    """Why a format can't be made here, or its precisions; and why it can't be run here, if it can only be made."""
    missing, cannot_run = format.exporter.missing(), format.exporter.cannot_run()
    if missing is not None:
        return missing
    ready = f"ready: {', '.join(format.precisions)}"
    return ready if cannot_run is None else f"{ready}; is built here and not run: it {cannot_run}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed; pip install 'castling-convert[{'openvino' if package == 'nncf' else package}]'"
