"""Slices as splits: of a Slice TensorRT's parser makes 27 layers, 26 of them arithmetic of shapes, of a Split one for
each part."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def split_slices_(proto: onnx.ModelProto) -> None:
    """Put a Split in the place of every Slice of `proto` whose bounds and sides are fixed, and whose steps are one."""
    sides = _sides(proto)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        cuts = _cuts(node, constants, sides.get(node.input[0], [])) if node.op_type == "Slice" else []
        source = node.input[0] if cuts else ""
        for place, (axis, parts, kept) in enumerate(cuts, start=1):
            stem = f"{node.output[0]}_{place}"
            names = [f"{stem}_{index}" for index in range(len(parts))]
            names[kept] = node.output[0] if place == len(cuts) else names[kept]
            proto.graph.initializer.append(numpy_helper.from_array(np.array(parts, np.int64), f"{stem}_sizes"))
            nodes.append(
                helper.make_node("Split", [source, f"{stem}_sizes"], names, name=f"{node.name}_{place}", axis=axis)
            )
            source = names[kept]
        if not cuts:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _sides(proto: onnx.ModelProto) -> dict[str, list[int | None]]:
    """The shape of every value, None for what is not fixed."""
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.input)}
    return {
        name: [side.dim_value if side.HasField("dim_value") else None for side in shape]
        for name, shape in shapes.items()
    }


def _cuts(
    node: onnx.NodeProto, constants: dict[str, np.ndarray], sides: list[int | None]
) -> list[tuple[int, list[int], int]]:
    """For each axis that `node` slices: the axis, the sizes of its parts, and which of them is kept. Nothing where one
    of them is not fixed."""
    if not sides or any(name not in constants for name in node.input[1:]):
        return []
    starts, ends, *rest = (constants[name] for name in node.input[1:])
    axes = rest[0] if rest else np.arange(len(starts))
    if any((steps != 1).any() for steps in rest[1:]):
        return []
    cuts = []
    for start, end, axis in zip(starts, ends, axes, strict=True):
        side = sides[int(axis)]
        if side is None:
            return []
        first, last, _ = slice(int(start), int(end)).indices(side)
        parts = [first, last - first, side - last]
        if parts[1] < 1:
            return []
        cuts.append((int(axis), [part for part in parts if part], int(first > 0)))
    return cuts
