"""Slices as splits: the same numbers, and one node for those that take a value apart."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from castling_convert.exporting.trt_slices import split_slices_


def sliced(bounds: dict[str, list[int]], shape: tuple[int | str, ...]) -> onnx.ModelProto:
    """A graph of one Slice of an input of `shape`, twice over, so that its output has a name that is used."""
    tensors = [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in bounds.items()]
    nodes = [helper.make_node("Slice", ["x", *bounds], ["part"], name="cut"), helper.make_node("Neg", ["part"], ["y"])]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    taken = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))
    graph = helper.make_graph(nodes, "graph", [given], [taken], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize(
    ("bounds", "splits"),
    [
        ({"starts": [1], "ends": [2**62], "axes": [1]}, 1),
        ({"starts": [0], "ends": [3], "axes": [1]}, 1),
        ({"starts": [2], "ends": [-1], "axes": [-1], "steps": [1]}, 1),
        ({"starts": [-4, 1], "ends": [-1, 4], "axes": [1, 2]}, 2),
        ({"starts": [0], "ends": [9], "axes": [1]}, 1),
        ({"starts": [0, 1, 2], "ends": [2, 4, 5]}, 0),  # the batch is not fixed
        ({"starts": [0], "ends": [6], "axes": [1], "steps": [2]}, 0),
        ({"starts": [3], "ends": [3], "axes": [1]}, 0),
    ],
)
def test_a_split_keeps_what_the_slice_keeps(bounds, splits):
    x = np.arange(2 * 6 * 5, dtype=np.float32).reshape(2, 6, 5)
    proto = sliced(bounds, ("batch", 6, 5))
    (expected,) = run(proto, x)
    split_slices_(proto)
    operators = [node.op_type for node in proto.graph.node]
    assert operators == [*["Split"] * splits, *["Slice"] * (not splits), "Neg"]
    np.testing.assert_array_equal(run(proto, x)[0], expected)


@pytest.mark.parametrize(
    ("bounds", "parts"),
    [
        ([(0, 2), (2, 4), (4, 6)], [3]),
        ([(4, 6), (0, 2), (2, 4)], [3]),  # in any order
        ([(0, 1), (3, 5)], [4]),  # with what lies between and behind
        ([(0, 3), (2, 6)], [2, 2]),  # overlapping: two Splits
        ([(0, 3), (0, 3)], [2, 2]),
    ],
)
def test_slices_that_take_a_value_apart_are_one_split(bounds, parts):
    x = np.arange(2 * 6 * 5, dtype=np.float32).reshape(2, 6, 5)
    nodes, tensors, expected = [], [numpy_helper.from_array(np.array([1]), "axes")], []
    for index, (first, last) in enumerate(bounds):
        names = [f"first_{index}", f"last_{index}"]
        tensors += [numpy_helper.from_array(np.array([v]), n) for v, n in zip((first, last), names, strict=True)]
        nodes.append(helper.make_node("Slice", ["x", *names, "axes"], [f"part_{index}"], name=f"cut_{index}"))
        expected.append(x[:, first:last])
    taken = [
        helper.make_tensor_value_info(f"part_{index}", TensorProto.FLOAT, [2, None, 5]) for index in range(len(bounds))
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6, 5])
    graph = helper.make_graph(nodes, "graph", [given], taken, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    split_slices_(proto)
    assert [len(node.output) for node in proto.graph.node] == parts
    for found, wanted in zip(run(proto, x), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_bounds_that_are_computed_stay():
    proto = sliced({"starts": [1], "ends": [3], "axes": [1]}, (2, 6, 5))
    proto.graph.input.append(helper.make_tensor_value_info("ends", TensorProto.INT64, [1]))
    del proto.graph.initializer[1]
    before = proto.SerializeToString()
    split_slices_(proto)
    assert proto.SerializeToString() == before
