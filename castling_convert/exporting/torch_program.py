"""torch: a `torch.export` program in a .pt2 file, which torch loads without this package or timm."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._dynamo.exc import UserError

from ..artifact.options import ExportOptions
from ..artifact.prepare import prepare
from ..artifact.quiet import quiet
from ..artifact.runner import DIGEST, IDENTITY, PRECISION, SIGNATURE, Exported, Runner, check
from ..artifact.signature import Signature
from ..attention import FoldedAttention
from ..data.probe import probe_images
from ..errors import ExportError, OutputError, first_line
from ..files import writing_file
from .onnx_graph import FIXED_BATCH, dynamic_axes
from .torch_trust import trusted

METADATA = "castling.json"


def missing() -> None:
    """torch comes with the package."""
    return None


cannot_run = missing
"""What makes an artifact runs it."""


def export(model: nn.Module, output: Path, options: ExportOptions) -> Exported:
    """Write `output`, a .pt2 file.

    Raises:
        FoldError, ExportError, CheckFailed, OutputError: see `exporting.export`. No file is left.
    """
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name with --output")
    windowed = any(isinstance(module, FoldedAttention) and module.config.window for module in model.modules())
    if windowed and options.image_range is not None:
        # torch makes it a condition of the program whether windows fill the grid, and whether there is but one.
        raise ExportError(
            "a .pt2 file for any size can't have attention windows; give one --image-size, or --format onnx"
        )
    prepared = prepare(model, options, fused=True)
    batch = options.fixed_batch or 2
    images = probe_images(prepared.model, batch, size=prepared.signature.input_size[1:])
    prepared.refuse_lists(images)
    example = prepared.signature.inputs(images)
    shapes = (dynamic_axes(prepared.signature, options),)
    try:
        with torch.no_grad():
            program = torch.export.export(prepared, (example,), dynamic_shapes=shapes)
    except UserError:
        raise ExportError(FIXED_BATCH) from None
    metadata: dict[str, Any] = {
        PRECISION: options.precision, SIGNATURE: prepared.signature.to_json(), "batch": options.fixed_batch,
    }  # fmt: skip
    if options.identity is not None:
        metadata[IDENTITY] = options.identity
    with writing_file(output) as fresh:
        for _ in range(2):  # the second time with the digest of the first
            buffer = io.BytesIO()  # torch puts the name of a file into its content
            torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
            metadata[DIGEST] = digest(buffer)
        fresh.write_bytes(buffer.getvalue())
        parity = check(open_artifact(fresh), model, options) if options.verify else None
    return Exported(output, parity, {"nodes": _count(program)})


def _count(program: torch.export.ExportedProgram) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            name = str(getattr(node.target, "__name__", node.target))
            counts[name] = counts.get(name, 0) + 1
    return counts


class ProgramModel(Runner):
    """A .pt2 file on the CPU, or on `device`."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        archive = trusted(path)
        self.digest = digest(path)
        files = {METADATA: ""}
        try:
            with quiet("torch.export"):  # it prints the tracebacks of what it raises
                program = torch.export.load(archive, extra_files=files)
            metadata = json.loads(files[METADATA])
            signature = Signature.from_json(metadata[SIGNATURE])
        except Exception as error:  # noqa: BLE001 - torch names no errors for this
            first = first_line(error)
            raise ExportError(f"{path} is no .pt2 file of castling export, or is damaged: {first}") from None
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        super().__init__(signature, metadata, metadata.get("batch"))
        self.module, self.device = program.module(), device

    @torch.no_grad()
    def run(self, values: np.ndarray) -> np.ndarray:
        return self.module(torch.from_numpy(values).to(self.device)).float().cpu().numpy()


def open_artifact(path: Path) -> ProgramModel:
    """The program on the CPU."""
    run = ProgramModel(path)
    run.intact = run.metadata.get(DIGEST) in (None, run.digest)
    return run


def digest(file: Any) -> str:
    """SHA-256 of everything in the archive but the metadata."""
    said = hashlib.sha256()
    with zipfile.ZipFile(file) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith((METADATA, "serialization_id")):  # that is torch's own hash, of all the rest
                said.update(name.encode() + archive.read(name))
    return said.hexdigest()
