"""Constants with as many sides as what they meet: TensorRT's parser reshapes each other one by a layer."""

from __future__ import annotations

import onnx

BROADCAST = ("Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "LayerNormalization")
"""Operators that take constants of fewer sides."""


def widen_constants_(proto: onnx.ModelProto) -> None:
    """Give every constant of `proto` that is added, multiplied and the like sides of one before its own, as many as
    broadcasting would."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    made: dict[str, onnx.TensorProto] = {}
    for node in proto.graph.node:
        if node.op_type not in BROADCAST:
            continue
        rank = max(len(constants[name].dims) if name in constants else ranks.get(name, 0) for name in node.input)
        for index, name in enumerate(node.input):
            missing = rank - len(constants[name].dims) if name in constants else 0
            if missing <= 0 or (node.op_type == "MatMul" and len(constants[name].dims) < 2):
                continue
            wide = f"{name}_{rank}d"
            if wide not in made:
                made[wide] = onnx.TensorProto()
                made[wide].CopyFrom(constants[name])
                made[wide].name = wide
                made[wide].dims[:] = [*[1] * missing, *constants[name].dims]
            node.input[index] = wide
    used = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for name, tensor in (constants | made).items() if name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
