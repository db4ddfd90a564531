"""Peak memory of an artifact in a process of its own."""

from __future__ import annotations

import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save

from castling_convert.bench.memory import STATUS, peak_memory
from castling_convert.errors import ExportError

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="only Linux says what a process holds")


def graph(path, rows: int):
    """Holds one tensor of `rows` x 1,000 float32 numbers on its way, and a weight of a megabyte."""
    weight = torch.ones(250, 1000).numpy()
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["wide"]),
        helper.make_node("MatMul", ["wide", "column"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 250])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 1])
    made = helper.make_graph(
        nodes,
        "g",
        [x],
        [y],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(weight[:4].reshape(1000, -1)[:, :1], "column"),
        ],
    )
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.slow
def test_the_peak_grows_by_what_the_model_holds(tmp_path):
    peaks = [peak_memory("onnx", graph(tmp_path / "m.onnx", n), 1, (n, 250), "float32") for n in (1000, 51_000)]
    assert peaks[0] > 1e6
    wide = 50_000 * 1000 * 4
    assert 0.9 * wide < peaks[1] - peaks[0] < 2.5 * wide  # onnxruntime's arena may hold it twice


def test_an_artifact_that_does_not_run(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="can't be measured"):
        peak_memory("onnx", tmp_path / "m.onnx", 1, (1, 3), "float32")
