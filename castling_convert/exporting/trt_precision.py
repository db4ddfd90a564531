"""The proof that TensorRT has the precision that was asked for: of the network it read, and of the engine.

An fp32 graph asked for as fp16 builds an fp32 engine without any error. So every product of matrices and every
convolution of the ONNX graph is looked up in what TensorRT made of it, by the name of its node.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from ..errors import CheckFailed

if TYPE_CHECKING:
    from tensorrt import ILayer, INetworkDefinition, ITensor

_WORDS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_READ = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
"""TensorRT's `DataType` of the operands."""
_INSPECTED = {
    "fp32": r"\b(Float|FP32)\b",
    "fp16": r"\b(Half|FP16)\b",
    "bf16": r"\b(BFloat16|BF16)\b",
    "int8": r"\bInt8\b",
}
"""How the engine inspector writes them: TensorRT 10 has both spellings."""
_NAMED = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
"""What a layer's metadata says of the nodes it was made of."""


def products_of(graph: onnx.ModelProto) -> dict[str, str]:
    """Every product of matrices or convolution of `graph`, by its node's name, and the precision it is meant to have:
    that of an operand in half precision, and int8 where an operand is dequantised, even if the other one is not."""
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    makers = {name: node.op_type for node in inferred.node for name in node.output}
    found = {}
    for node in inferred.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        words = {_WORDS.get(types.get(name, 0), "an unknown type") for name in node.input[:2]}
        if any(makers.get(name) == "DequantizeLinear" for name in node.input[:2]):
            words = {"int8"}
        found[node.name] = " and ".join(sorted(words - {"fp32"})) or "fp32"
    return found


def products_read(network: INetworkDefinition) -> dict[str, str]:
    """The same of the network that TensorRT's parser made, where both operands and the result count, and int8 is what
    has both operands dequantised from int8."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    found = {}
    for layer in layers:
        if layer.type.name not in ("MATRIX_MULTIPLY", "CONVOLUTION"):
            continue
        operands = [tensor for index in range(layer.num_inputs) if (tensor := layer.get_input(index)) is not None]
        dequantized = [_dequantized(tensor, makers) for tensor in operands[:2]]
        if all(dequantized):
            word = "int8"
        elif any(dequantized):
            word = "int8 on one side alone"
        else:
            types = {tensor.dtype.name for tensor in (*operands, layer.get_output(0))}
            word = " and ".join(sorted(_READ.get(name, name) for name in types))
        for name in _NAMED.findall(layer.metadata) or [layer.name]:
            found[name] = word
    return found


def _dequantized(tensor: ITensor, makers: dict[str, ILayer]) -> bool:
    """Whether a tensor comes out of int8, by way of reshapes at most."""
    maker = makers.get(tensor.name)
    while maker is not None and maker.type.name == "SHUFFLE":
        maker = makers.get(maker.get_input(0).name)
    return maker is not None and maker.type.name == "DEQUANTIZE" and maker.get_input(0).dtype.name == "INT8"


def prove_network(network: INetworkDefinition, graph: onnx.ModelProto, precision: str) -> dict[str, int]:
    """How many products of `graph` are in each precision, in the network that was read of it.

    Raises:
        CheckFailed: one is in another precision there than in the graph, or none is in the asked one.
    """
    meant, read = products_of(graph), products_read(network)
    for name in sorted({*meant, *read}):
        if meant.get(name) != read.get(name):
            raise CheckFailed(
                f"{name} is meant to be in {meant.get(name, 'no precision')} and TensorRT reads it in "
                f"{read.get(name, 'none')}; no engine was written"
            )
    counts = Counter(meant.values())
    if precision not in counts:
        have = ", ".join(f"{count} in {word}" for word, count in sorted(counts.items())) or "none at all"
        raise CheckFailed(f"no product of matrices is in {precision} ({have}); no engine was written")
    return dict(counts)


def prove_engine(layers: list[dict[str, Any]], graph: onnx.ModelProto, precision: str) -> None:
    """Raise CheckFailed unless every layer of an engine that holds a product of the asked precision has that type.

    Args:
        layers: what the engine inspector says of them. They name the nodes of `graph` that they were made of; products
            in another precision, the float32 islands, are not asked about.
    """
    asked = {name for name, meant in products_of(graph).items() if meant == precision}
    seen: set[str] = set()
    for layer in layers:
        named = asked.intersection(_NAMED.findall(layer.get("Metadata", "")))
        types = {entry.get("Format/Datatype", "") for entry in (*layer["Inputs"], *layer["Outputs"])}
        if named and not any(re.search(_INSPECTED[precision], found) for found in types):
            raise CheckFailed(
                f"TensorRT built {', '.join(sorted(named))} in {', '.join(sorted(types))}, not in {precision}; "
                "no engine was written"
            )
        seen |= named
    if not seen:
        raise CheckFailed(
            f"the engine inspector names no matrix product in {precision}, so its precision is not proven; "
            "no engine was written"
        )
