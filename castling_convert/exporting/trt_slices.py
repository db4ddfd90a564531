"""Slices as splits: of a Slice TensorRT's parser makes 27 layers, 26 of them arithmetic of shapes, of a Split one for
each part. Slices that take one value apart become one Split."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Cut(NamedTuple):
    """`first` to `last` along an axis of length `side`."""

    axis: int
    side: int
    first: int
    last: int


def split_slices_(proto: onnx.ModelProto) -> None:
    """Put a Split in the place of every Slice of `proto` whose bounds and sides are fixed, and whose steps are one."""
    sides = _sides(proto)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    cuts = {
        node.output[0]: _cuts(node, constants, sides.get(node.input[0], []))
        for node in proto.graph.node if node.op_type == "Slice"
    }  # fmt: skip
    together = _together(proto, cuts)
    nodes: list[onnx.NodeProto] = []

    def split(source: str, parts: dict[Cut, str], stem: str) -> None:
        """Append the Split of `source` that has `parts` by their names, and what lies between them by names of its
        own."""
        axis, side, *_ = next(iter(parts))
        bounds = sorted({0, side, *(bound for cut in parts for bound in cut[2:])})
        pieces = [Cut(axis, side, *piece) for piece in pairwise(bounds)]
        sizes = np.array([piece.last - piece.first for piece in pieces], np.int64)
        proto.graph.initializer.append(numpy_helper.from_array(sizes, f"{stem}_sizes"))
        names = [parts.get(piece, f"{stem}_{index}") for index, piece in enumerate(pieces)]
        nodes.append(helper.make_node("Split", [source, f"{stem}_sizes"], names, name=f"{stem}_split", axis=axis))

    for node in proto.graph.node:
        output = node.output[0]
        if not cuts.get(output):
            nodes.append(node)
        elif output in together:
            if (parts := together[output]) is not None:
                split(node.input[0], parts, output)
        else:
            source = node.input[0]
            for place, cut in enumerate(cuts[output], start=1):
                stem = f"{output}_{place}"
                name = output if place == len(cuts[output]) else f"{stem}_kept"
                split(source, {cut: name}, stem)
                source = name
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _together(proto: onnx.ModelProto, cuts: dict[str, list[Cut]]) -> dict[str, dict[Cut, str] | None]:
    """By the output of the first of several Slices that one Split can do: their parts and outputs; None by those of the
    others."""
    groups: dict[tuple[str, int], list[tuple[Cut, str]]] = {}
    for node in proto.graph.node:
        if len(found := cuts.get(node.output[0], [])) == 1:
            groups.setdefault((node.input[0], found[0].axis), []).append((found[0], node.output[0]))
    leaders: dict[str, dict[Cut, str] | None] = {}
    for group in groups.values():
        ordered = sorted(cut for cut, _ in group)
        apart = all(before.last <= after.first for before, after in pairwise(ordered))
        if len(group) > 1 and apart:
            (_, leader), *others = group
            leaders |= {leader: dict(group), **{output: None for _, output in others}}
    return leaders


def _sides(proto: onnx.ModelProto) -> dict[str, list[int | None]]:
    """The shape of every value, None for what is not fixed."""
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.input)}
    return {
        name: [side.dim_value if side.HasField("dim_value") else None for side in shape]
        for name, shape in shapes.items()
    }


def _cuts(node: onnx.NodeProto, constants: dict[str, np.ndarray], sides: list[int | None]) -> list[Cut]:
    """What `node` keeps of each axis that it slices; nothing where one of them is not fixed."""
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
        if last <= first:
            return []
        cuts.append(Cut(int(axis) % len(sides), side, first, last))
    return cuts
