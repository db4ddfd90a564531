"""A method of quantisation from outside the package: one file and one line in a registry.

`rounded`: the weights of an ONNX graph rounded to 255 levels a row, in place, and kept as float: the error of int8
without its speed.

    cc.export(model, "model.onnx", precision="int8", quantizer="rounded")
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from castling_convert.artifact.options import ExportOptions
from castling_convert.artifact.prepare import Deployable
from castling_convert.quantize import QUANTIZERS


def quantize(
    graph: onnx.ModelProto, prepared: Deployable, options: ExportOptions
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    rounded = 0
    for tensor in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim == 2 and values.dtype == np.float32:
            step = np.abs(values).max(axis=1, keepdims=True).clip(1e-12) / 127
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.round(values / step) * step, tensor.name))
            rounded += 1
    return graph, {"quantized": rounded}


QUANTIZERS["rounded"] = __name__
