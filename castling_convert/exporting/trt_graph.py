"""The ONNX graph that both TensorRTs read: few layers in the network that their parser makes of it."""

from __future__ import annotations

from pathlib import Path

import onnx
from torch import nn

from ..artifact.options import ExportOptions
from ..artifact.runner import Exported
from . import onnx_graph
from .trt_constants import widen_constants_
from .trt_slices import split_slices_


def export(model: nn.Module, output: Path, options: ExportOptions) -> Exported:
    """As `onnx_graph.export`, with tokens before channels throughout: one product gives q, k and v, and one node takes
    them apart."""
    return onnx_graph.export(model, output, options, rewrite_, channels_first={})


def rewrite_(proto: onnx.ModelProto) -> None:
    """The same numbers in nodes that cost fewer layers."""
    split_slices_(proto)
    widen_constants_(proto)
