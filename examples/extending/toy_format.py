"""An export format from outside the package, with its runtime: one file and one line in a registry.

`torchscript`: what torch called a program before `torch.export`, and still runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from castling_convert.artifact.options import ExportOptions
from castling_convert.artifact.prepare import prepare
from castling_convert.artifact.runner import PRECISION, SIGNATURE, Exported, Runner, check
from castling_convert.artifact.signature import Signature
from castling_convert.data.probe import probe_images
from castling_convert.errors import ExportError
from castling_convert.exporting import FORMATS, Format
from castling_convert.files import writing_file


class ScriptModel(Runner):
    """A TorchScript file in torch."""

    def __init__(self, path: Path) -> None:
        extra = {"metadata": ""}
        try:
            self.module = torch.jit.load(path, _extra_files=extra)
        except RuntimeError:
            raise ExportError(f"{path} is damaged or no TorchScript file") from None
        metadata = json.loads(extra["metadata"])
        super().__init__(Signature.from_json(metadata[SIGNATURE]), metadata, None)

    @torch.no_grad()
    def run(self, values: np.ndarray) -> np.ndarray:
        return self.module(torch.from_numpy(values)).numpy()


def export(model: nn.Module, output: Path, options: ExportOptions) -> Exported:
    prepared = prepare(model, options)
    images = probe_images(prepared.model, 2, size=prepared.signature.input_size[1:])
    traced = torch.jit.trace(prepared, prepared.signature.inputs(images), check_trace=False)
    metadata = {PRECISION: options.precision, SIGNATURE: prepared.signature.to_json()}
    with writing_file(output) as fresh:
        torch.jit.save(traced, fresh, _extra_files={"metadata": json.dumps(metadata)})
        parity = check(ScriptModel(fresh), model, options) if options.verify else None
    return Exported(output, parity)


def open_artifact(path: Path) -> ScriptModel:
    return ScriptModel(path)


def missing() -> None:
    return None


cannot_run = missing

FORMATS["torchscript"] = Format("torchscript", __name__, ".ts", ("fp32",))
