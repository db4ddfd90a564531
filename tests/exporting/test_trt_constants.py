"""Constants with the sides of what they meet: the same numbers, and no layer of TensorRT's for each."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from castling_convert.exporting.trt_constants import widen_constants_
from castling_convert.exporting.trt_engine import listener

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
CASES = {
    "added to a value": ("Add", "x", {"b": (4,)}, {"b": (1, 1, 4)}),
    "a value added to it": ("Sub", "", {"b": (3, 1)}, {"b": (1, 3, 1)}),
    "a scalar": ("Mul", "x", {"b": ()}, {"b": (1, 1, 1)}),
    "weights": ("MatMul", "x", {"w": (4, 5)}, {"w": (1, 4, 5)}),
    "a vector, which a product takes otherwise": ("MatMul", "x", {"w": (4,)}, {"w": (4,)}),
    "of a norm": ("LayerNormalization", "x", {"g": (4,), "b": (4,)}, {"g": (1, 1, 4), "b": (1, 1, 4)}),
    "sides enough": ("Div", "x", {"b": (2, 3, 4)}, {"b": (2, 3, 4)}),
    "more than the value": ("Add", "x", {"b": (5, 1, 1, 4)}, {"b": (5, 1, 1, 4)}),
    "a list of axes": ("ReduceSum", "x", {"axes": (1,)}, {"axes": (1,)}),
}


def graph_of(operator: str, value: str, constants: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """One node on `x`, [2, 3, 4], before the constants or, where `value` is empty, behind them."""
    numbers = np.random.default_rng(1)
    tensors = [
        numpy_helper.from_array(
            np.ones(shape, np.int64) if name == "axes" else numbers.random(shape, np.float32) + 1, name
        )
        for name, shape in constants.items()
    ]  # fmt: skip
    names = ["x", *constants] if value else [*constants, "x"]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)
    taken = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(operator, names, ["y"], name="node")], "g", [given], [taken], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(proto: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


@pytest.mark.parametrize("case", CASES)
def test_a_constant_gets_the_sides_it_lacks(case):
    operator, value, constants, wide = CASES[case]
    proto = graph_of(operator, value, constants)
    before = run(proto)
    widen_constants_(proto)
    assert [tuple(tensor.dims) for tensor in proto.graph.initializer] == list(wide.values())
    np.testing.assert_array_equal(run(proto), before)


def test_one_that_meets_values_of_several_ranks_is_there_for_each():
    proto = graph_of("Add", "x", {"b": (4,)})
    proto.graph.node.append(helper.make_node("ReduceMax", ["y"], ["most"], keepdims=0))
    proto.graph.node.append(helper.make_node("Unsqueeze", ["y", "first"], ["more"]))
    proto.graph.node.append(helper.make_node("Add", ["more", "b"], ["z"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    widen_constants_(proto)
    assert {tuple(tensor.dims) for tensor in proto.graph.initializer} == {(1, 1, 4), (1, 1, 1, 4), (1,)}
    run(proto)


def test_the_parser_makes_no_layer_that_reshapes_them(rtx, parser):
    proto = graph_of("LayerNormalization", "x", {"g": (4,), "b": (4,)})
    widen_constants_(proto)
    builder = rtx.Builder(listener(rtx))
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.OnnxParser(network, listener(rtx)).parse(proto.SerializeToString())
    kinds = [network.get_layer(index).type.name for index in range(network.num_layers)]
    assert kinds == ["CONSTANT", "CONSTANT", "NORMALIZATION"]
