"""A model repository for NVIDIA's Triton Inference Server around an artifact.

    DIR/NAME/config.pbtxt
    DIR/NAME/1/model.onnx        (or model.plan; or model.xml and model.bin)

`config.pbtxt` is a `ModelConfig` message in protobuf's text format; field names are those of
triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..artifact.runner import Exported, Runner
from ..errors import ExportError, OutputError
from ..files import writing, writing_file
from . import format_of

BACKENDS = {".onnx": "onnxruntime", ".plan": "tensorrt", ".xml": "openvino"}
TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}
LARGEST_BATCH = 16
CONFIG = "config.pbtxt"


def refuse_suffix(suffix: str) -> None:
    """Raise ExportError for a kind of artifact that Triton has no backend for."""
    if suffix not in BACKENDS:
        raise ExportError(f"Triton has no backend for {suffix} files; export one of {', '.join(BACKENDS)}")


def serve(made: Exported, bundle_path: Path, folder: Path, batch: str) -> Path:
    """A repository in `folder` for what was just exported of a bundle, named as the bundle's folder."""
    run = format_of(made.artifact).exporter.open_artifact(made.artifact)
    largest = int(batch.rsplit(":", 1)[-1]) if ":" in batch else None
    taken = np.uint8 if run.signature.input == "pixels" else run.signature.dtype
    best, smallest = (
        run.rows(np.zeros((1, *run.signature.shape(size)), taken)).shape[1:] for size in (None, run.signature.smallest)
    )
    given = [side if side == other else -1 for side, other in zip(best, smallest, strict=True)]
    return write_repository(made.artifact, run, given, folder, bundle_path.resolve().name, largest)


def write_repository(
    artifact: Path, run: Runner, given: Sequence[int], folder: Path, name: str, largest: int | None
) -> Path:
    """Write `folder`/`name` around a copy of `artifact`; returns it.

    Args:
        run: the artifact in its runtime, for what it takes and gives: numbers of the shape `given` for an image, with
            -1 for a side that changes with the image's.
        largest: the largest batch a dynamic artifact is served with; LARGEST_BATCH when left out.

    Raises:
        ExportError: a kind of artifact that Triton has no backend for.
        OutputError: the folder can't be written.
    """
    refuse_suffix(artifact.suffix)
    target = refuse_target(folder, name)
    backend = BACKENDS[artifact.suffix]
    with writing_file(target / CONFIG) as fresh:  # first: by it a target that was left half-written is known again
        fresh.write_text(config(run, given, name, backend, largest), encoding="utf-8")
    with writing(target / "1") as version:
        for file in (artifact, artifact.with_suffix(".bin")):
            if file == artifact or (backend == "openvino" and file.is_file()):
                shutil.copyfile(file, version / f"model{file.suffix}")
    return target


def refuse_target(folder: Path, name: str) -> Path:
    """`folder`/`name`; OutputError where something else than a model of Triton's is there, such as a bundle. Of such a
    model, version 1 and the configuration are replaced and other versions stay."""
    if folder.is_file():
        raise OutputError(f"{folder} is a file; give --triton a folder")
    target = folder / name
    if target.exists() and not (target / CONFIG).is_file() and (target.is_file() or any(target.iterdir())):
        raise OutputError(f"{target} is there and is no model of Triton's; give --triton another folder")
    return target


def config(run: Runner, given: Sequence[int], name: str, backend: str, largest: int | None) -> str:
    """The text of `config.pbtxt`. The batch dimension is Triton's own where the artifact is dynamic."""
    signature = run.signature
    image = list(signature.shape((-1, -1) if signature.stride else None))
    taken = "uint8" if signature.input == "pixels" else signature.dtype
    fixed = run.batch is not None
    batch = [run.batch] if fixed else []
    lines = [
        f"name: {json.dumps(name)}",
        f"backend: {json.dumps(backend)}",
        f"max_batch_size: {0 if fixed else largest or LARGEST_BATCH}",
        *_tensor("input", signature.input, taken, [*batch, *image]),
        *_tensor("output", signature.output, signature.dtype, [*batch, *given]),
    ]
    if not fixed:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _tensor(kind: str, name: str, dtype: str, dims: list[int | None]) -> list[str]:
    return [
        f"{kind} [",
        "  {",
        f"    name: {json.dumps(name)}",
        f"    data_type: {TYPES[dtype]}",
        f"    dims: [ {', '.join(map(str, dims))} ]",
        "  }",
        "]",
    ]
