"""What TensorRT's ONNX parser takes: every node of a graph is held against its operator table.

The table, `trt_operators.tsv`, is that of the TensorRT 11.1 parser (onnx/onnx-tensorrt,
docs/operators.md). Of its restrictions those are checked that a vision transformer's graph can meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import onnx
from onnx import TensorProto

OPSETS = range(9, 25)
_TYPES = {
    TensorProto.FLOAT: "FP32", TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16", TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64", TensorProto.BOOL: "BOOL", TensorProto.INT8: "INT8", TensorProto.UINT8: "UINT8",
    TensorProto.DOUBLE: "FP32",  # cast by the parser
}  # fmt: skip


@dataclass(frozen=True)
class Operator:
    """One row: the types it takes, and its restrictions in words; `supported` is false where it is refused."""

    supported: bool
    types: frozenset[str]
    restrictions: str


@cache
def operators() -> dict[str, Operator]:
    rows = {}
    for line in files(__package__).joinpath("trt_operators.tsv").read_text(encoding="utf-8").splitlines():
        if line.startswith(("#", "op\t")):
            continue
        name, supported, types, restrictions = (*line.split("\t"), "", "")[:4]
        rows[name] = Operator(supported == "Y", frozenset(filter(None, types.split(","))), restrictions)
    return rows


class Graph:
    """A model's graph with what the checks ask for: constants and types."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(proto).graph
        self.nodes = graph.node
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.constants[node.output[0]] = attribute.t
        self.types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        self.types |= {name: tensor.data_type for name, tensor in self.constants.items()}


Restriction = Callable[[onnx.NodeProto, Graph], bool]


def _constant(index: int) -> Restriction:
    """Input `index`, where it is given, has to be known when the engine is built."""
    return lambda node, graph: len(node.input) <= index or not node.input[index] or node.input[index] in graph.constants


def _attribute(node: onnx.NodeProto, name: str, default: bytes) -> bytes:
    return next((attribute.s for attribute in node.attribute if attribute.name == name), default)


def _zero(index: int) -> Restriction:
    def holds(node: onnx.NodeProto, graph: Graph) -> bool:
        if len(node.input) <= index or not node.input[index]:
            return True
        tensor = graph.constants.get(node.input[index])
        return tensor is not None and not onnx.numpy_helper.to_array(tensor).any()

    return holds


RESTRICTIONS: dict[str, tuple[Restriction, ...]] = {
    "CumSum": (_constant(1),),
    "DequantizeLinear": (_zero(2),),
    "LayerNormalization": (lambda node, _: not any(node.output[1:]),),
    "OneHot": (_constant(1),),
    "QuantizeLinear": (_zero(2),),
    "Resize": (
        lambda node, _: _attribute(node, "mode", b"nearest") in (b"nearest", b"linear"),
        lambda node, _: not any(a.name == "antialias" and a.i for a in node.attribute),
    ),
    "Squeeze": (_constant(1),),
    "Unsqueeze": (_constant(1),),
    **dict.fromkeys((f"Reduce{kind}" for kind in (
        "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")), (_constant(1),)),
}  # fmt: skip
"""The table's restrictions as functions that say whether a node meets them."""

TAKEN = {"Shape": {"UINT8"}}
"""Types that the documentation leaves out and the parser takes, as that of TensorRT for RTX 1.7 shows."""


def refused(proto: onnx.ModelProto) -> Iterator[str]:
    """One sentence for every node that TensorRT's parser would refuse; none for a graph it takes."""
    for opset in proto.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            yield f"operators of the domain {opset.domain}"
        elif opset.version not in OPSETS:
            yield f"opset {opset.version}: {OPSETS[0]} to {OPSETS[-1]} are read"
    graph = Graph(proto)
    for node in graph.nodes:
        what = f"{node.op_type} {node.name}"
        row = operators().get(node.op_type)
        if row is None or not row.supported or node.domain not in ("", "ai.onnx"):
            yield f"{what}: no such operator in TensorRT's parser"
            continue
        if not all(holds(node, graph) for holds in RESTRICTIONS.get(node.op_type, ())):
            yield f"{what}: {row.restrictions}"
        taken = node.input[:1]
        types = {_TYPES.get(graph.types[name], str(graph.types[name])) for name in taken if graph.types.get(name)}
        for found in sorted(types - row.types - TAKEN.get(node.op_type, set())):
            yield f"{what}: takes {', '.join(sorted(row.types))}, not {found}"
