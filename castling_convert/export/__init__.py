"""Export: one file per format behind one small interface."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ..errors import ExportError, did_you_mean
from .options import ExportOptions


class Exporter(Protocol):
    """What a format's module offers."""

    def export(self, model: nn.Module, output: Path, options: ExportOptions) -> dict[str, Any]:
        """Write a checked artifact to `output`, or raise and leave nothing; returns what was measured."""
        ...


@dataclass(frozen=True)
class Format:
    """One export format: its module here, file suffix, and the precisions it can be made in."""

    name: str
    module: str
    suffix: str
    precisions: tuple[str, ...]


FORMATS = {"onnx": Format("onnx", "onnx", ".onnx", ("fp32",))}
# Named by the command line's contract, not built yet: asking for one is an error, never a fallback.
PLANNED_FORMATS = ("trt", "openvino", "torch")
PLANNED_PRECISIONS = ("fp16", "bf16", "int8")


def find_format(name: str, precision: str) -> Format:
    """The format, if it can be made in `precision`.

    Raises:
        ExportError: not available; what is available is named.
    """
    available = "; ".join(f"{f.name} in {', '.join(f.precisions)}" for f in FORMATS.values())
    if name not in FORMATS:
        if name in PLANNED_FORMATS:
            raise ExportError(f"format {name} is not available in this version; available: {available}")
        raise ExportError(f"no format '{name}'{did_you_mean(name, FORMATS) or ';'} available: {available}")
    if precision not in FORMATS[name].precisions:
        raise ExportError(f"{name} in {precision} is not available in this version; available: {available}")
    return FORMATS[name]


def export(
    model: nn.Module | str | Path,
    output: str | Path | None = None,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    **options: Any,
) -> Path:
    """Export a folded model, or a bundle by its path, and check the artifact against it.

    Args:
        model: from `fold` or `load`, or the path of a bundle.
        output: the file; inside the bundle as `model.onnx` when a bundle is given and this is left out.
        format, precision: see `FORMATS`.
        options: fields of `ExportOptions`, such as `opset=20` or `batch="1:8:16"`.

    Raises:
        ExportError: the format or an option is not available, or the model can't be exported.
        CheckFailed: the artifact does not agree with the model; no file is left.
        BundleError, OutputError: the bundle or the output is not usable.
    """
    if not isinstance(model, nn.Module):
        return export_bundle(Path(model), output, format=format, precision=precision, **options)[0]
    chosen = find_format(format, precision)
    if output is None:
        raise ExportError("give the output file: export(model, 'model.onnx')")
    _exporter(chosen).export(model, Path(output), ExportOptions.make(precision=precision, **options))
    return Path(output)


def export_bundle(
    path: Path,
    output: str | Path | None = None,
    *,
    format: str,
    precision: str,
    **options: Any,
) -> tuple[Path, dict[str, Any]]:
    """`export` of a bundle by its path; returns the file and what was measured."""
    from .. import bundle

    chosen = find_format(format, precision)
    model = bundle.load(path)
    identity = bundle.read_summary(path)["sha256"][bundle.WEIGHTS]
    target = Path(output) if output is not None else path / f"model{chosen.suffix}"
    return target, _exporter(chosen).export(
        model, target, ExportOptions.make(precision=precision, identity=identity, **options)
    )


def _exporter(chosen: Format) -> Exporter:
    return import_module(f".{chosen.module}", __name__)
