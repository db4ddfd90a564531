"""Export: one file per format behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ..artifact.options import ExportOptions
from ..artifact.precision import DEFAULT, PRECISIONS
from ..artifact.runner import Exported, Runner
from ..errors import PATH, ExportError, ModelError, Wanted, did_you_mean, takes
from ..files import expanded


class Exporter(Protocol):
    """What a format's module offers."""

    def export(self, model: nn.Module, output: Path, options: ExportOptions) -> Exported:
        """Write a checked artifact to `output`, or raise and leave nothing."""
        ...

    open_artifact: Callable[[Path], Runner]
    """An artifact in its runtime."""

    def missing(self) -> str | None:
        """Why artifacts can't be made here, and the command that helps; None where they can."""
        ...

    cannot_run: Callable[[], str | None]
    """Why they can't be run here, in the same words where that is the same."""


@dataclass(frozen=True)
class Format:
    """One export format: its module, with a dot before it where it is one of this package, its file suffix, and the
    precisions it can be made in."""

    name: str
    module: str
    suffix: str
    precisions: tuple[str, ...]

    @property
    def exporter(self) -> Exporter:
        return import_module(self.module, __name__)


_ALL = (
    Format("onnx", ".onnx_graph", ".onnx", tuple(PRECISIONS)),
    Format("openvino", ".openvino_ir", ".xml", ("fp32", "fp16", "int8")),
    Format("torch", ".torch_program", ".pt2", ("fp32", "fp16", "bf16")),
    Format("trt", ".trt", ".plan", tuple(PRECISIONS)),
    Format("trt-rtx", ".trt_rtx", ".rtxplan", tuple(PRECISIONS)),
)
FORMATS = {found.name: found for found in _ALL}
WITH_SUPPRESSION = ("onnx", "openvino")
"""Formats that a detector's non-maximum suppression can be a part of."""


def find_format(name: str, precision: str) -> Format:
    """The format, if it can be made in `precision`.

    Raises:
        ExportError: not available; what is available is named.
    """
    available = "; ".join(f"{f.name} in {', '.join(f.precisions)}" for f in FORMATS.values())
    if name not in FORMATS:
        raise ExportError(f"no format '{name}'{did_you_mean(name, FORMATS) or ';'} available: {available}")
    if precision not in FORMATS[name].precisions:
        raise ExportError(f"{name} can't be made in '{precision}'; available: {available}")
    return FORMATS[name]


def format_of(artifact: Path) -> Format:
    """The format of an artifact, by its suffix.

    Raises:
        ExportError: no format has that suffix.
    """
    for found in FORMATS.values():
        if artifact.suffix == found.suffix:
            return found
    known = ", ".join(found.suffix for found in FORMATS.values())
    raise ExportError(f"{artifact} is no artifact: its name ends in none of {known}")


_WORD = Wanted(str, ExportError, "a word")


@takes(
    model=Wanted((nn.Module, *PATH), ModelError, "a model from fold() or load(), or the folder of a bundle"),
    output=Wanted(PATH, ExportError, "the path of a file"),
    format=_WORD,
    precision=_WORD,
)
def export(
    model: nn.Module | str | Path,
    output: str | Path | None = None,
    *,
    format: str = "onnx",
    precision: str = DEFAULT,
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
        return export_bundle(Path(model), output, format=format, precision=precision, **options).artifact
    chosen = find_format(format, precision)
    if output is None:
        raise ExportError("give the output file: export(model, 'model.onnx')")
    made = _make_options(chosen, precision=precision, **options)
    return chosen.exporter.export(model, _target(output, chosen), made).artifact


def export_bundle(
    path: Path,
    output: str | Path | None = None,
    *,
    format: str,
    precision: str,
    **options: Any,
) -> Exported:
    """`export` of a bundle by its path. The file is `model.onnx`, `model.fp16.onnx` and so on in the bundle
    when `output` is left out."""
    from .. import bundle

    chosen, path = find_format(format, precision), expanded(path)
    made = _make_options(chosen, precision=precision, **options)
    name = "model" if precision == DEFAULT else f"model.{precision}"
    target = _target(path / f"{name}{chosen.suffix}" if output is None else output, chosen)
    model = bundle.load(path)
    identity = bundle.read_summary(path)["sha256"][bundle.WEIGHTS]
    return chosen.exporter.export(model, target, replace(made, identity=identity))


def _target(output: str | Path, chosen: Format) -> Path:
    """Where to write; ExportError for a name by which nothing here would find the format again."""
    target = expanded(output)
    if target.suffix != chosen.suffix and not target.is_dir():  # a folder is refused by the exporter
        raise ExportError(f"files of --format {chosen.name} end in {chosen.suffix}, not as {target.name} does")
    return target


def _make_options(chosen: Format, **options: Any) -> ExportOptions:
    made = ExportOptions.make(**options)
    if made.compute_capabilities and chosen.name != "trt-rtx":
        raise ExportError(
            f"a compute capability is for --format trt-rtx, not for {chosen.name}; leave out --compute-capability"
        )
    if made.nms and chosen.name not in WITH_SUPPRESSION:
        raise ExportError(
            f"--nms is for --format {' and '.join(WITH_SUPPRESSION)}, not for {chosen.name}; leave out --nms"
        )
    if made.calibration is not None and not made.how.quantized:
        raise ExportError(f"calibration images are for int8, not for {made.precision}; leave out --calibration")
    if made.onnx_only and not chosen.name.startswith("trt"):
        raise ExportError(f"--onnx-only is for --format trt and trt-rtx, not for {chosen.name}; leave it out")
    if chosen.name == "torch" and (made.opset is not None or not made.simplify):
        raise ExportError("a file of torch has no ONNX graph; leave out --opset and --no-simplify")
    if chosen.name == "openvino" and made.io == "same":
        raise ExportError("OpenVINO's files take and give float32; leave out --io same")
    return made
