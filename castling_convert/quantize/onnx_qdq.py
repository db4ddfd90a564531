"""int8: QDQ nodes around the linear layers, by static calibration on images.

Symmetric int8 with zero points of zero on activations and weights, weights per channel, biases in float and
apart from the product: what onnxruntime and TensorRT both run in int8. Only layers with weights are
quantised; the small products inside attention stay float, and so do the convolutions, a small share of the
work. Layers that int8 hurts most are found by quantising each alone, and left in float, as few as keep the
noise within its target.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, TensorsData, quantize_static
from onnxruntime.quantization.calibrate import save_tensors_data
from torch import Tensor

from ..artifact.onnx_model import OnnxModel, describe
from ..artifact.options import ExportOptions
from ..artifact.parity import Tolerance, compare
from ..artifact.prepare import Deployable
from ..artifact.runner import Runner, expected, judged_images
from ..artifact.signature import Signature
from ..data.spec import GENERATED
from ..errors import CheckFailed
from .calibration import NO_CALIBRATION, RANKED_BY, TARGET_NOISE, calibration_batches, calibration_images, say_search


def quantize(
    proto: onnx.ModelProto, prepared: Deployable, options: ExportOptions
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The float32 graph `proto` of `prepared` with its linear layers in int8.

    Returns:
        The graph, and notes: `quantized` and `float` layers, `noise` on the calibration images, and a
        `warning` when they were generated.

    Raises:
        ExportError: fewer than FEWEST_IMAGES calibration images.
        CheckFailed: the noise stays above its target until nothing is left to quantise.
        DataError: they can't be read.
    """
    signature, notes = prepared.signature, {}
    proto = split_gemm(proto)
    images = calibration_images(prepared, options)
    if options.calibration in (None, GENERATED):
        notes["warning"] = NO_CALIBRATION
    nodes = linear_nodes(proto)
    with tempfile.TemporaryDirectory() as folder:
        quantizer = _Quantizer(proto, signature, calibration_batches(images, options), Path(folder))
        if options.latency_only:
            return quantizer.proto(nodes), {"quantized": len(nodes), **notes}
        judged = images[:: max(1, len(images) // judged_images(prepared.task))]
        reference = expected(prepared.model, signature, judged)

        def noise(chosen: Iterable[str], by: int | None = None) -> float:
            found = quantizer.model(chosen)(judged[:by])
            return compare(found, reference[:by], Tolerance(noise=1.0), prepared.task).noise

        in_float: list[str] = []
        found = noise(nodes)
        if found > TARGET_NOISE:
            say_search(options, found)
            alone = {name: noise([name], RANKED_BY) for name in nodes}
            order = sorted(nodes, key=lambda name: -alone[name])
            for count in _growing(len(order) - 1):
                in_float = order[:count]
                found = noise(set(nodes) - set(in_float))
                if found <= TARGET_NOISE:
                    break
            else:
                raise CheckFailed(
                    f"int8 moves the logits by {found:.0%} of their spread with one layer alone quantised; no file was "
                    "written; export in fp16, or give images of the model's own kind with --calibration"
                )
        quantized = quantizer.proto([name for name in nodes if name not in in_float])
    return quantized, {"quantized": len(nodes) - len(in_float), "float": sorted(in_float), "noise": found, **notes}


def split_gemm(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with every Gemm by a weight matrix as MatMul and a subtraction of minus its bias.

    onnxruntime multiplies a quantised MatMul in int8. A Gemm whose bias is float, as TensorRT wants it, it would
    run in float, and MatMul and Add it would first make a Gemm of.
    """
    split = onnx.ModelProto()
    split.CopyFrom(proto)
    tensors = {tensor.name: tensor for tensor in split.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in split.graph.node:
        node.name = node.output[0]  # unique, as the names that say what is quantised have to be
        values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = all(
            values.get(name, default) == default for name, default in (("alpha", 1), ("beta", 1), ("transA", 0))
        )
        if node.op_type != "Gemm" or not plain or any(name not in tensors for name in node.input[1:]):
            nodes.append(node)
            continue
        weight, *biases = (onnx.numpy_helper.to_array(tensors[name]) for name in node.input[1:])
        made = {f"{node.name}_weight": weight.T.copy() if values.get("transB") else weight}
        product = f"{node.output[0]}_product" if biases else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], f"{node.name}_weight"], [product], node.name))
        for bias in biases:
            minus = f"{node.name}_minus_bias"
            made[minus] = -bias
            nodes.append(onnx.helper.make_node("Sub", [product, minus], node.output, minus))
        split.graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in made.items())
    del split.graph.node[:]
    split.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    used_tensors = [tensor for tensor in split.graph.initializer if tensor.name in used]
    del split.graph.initializer[:]
    split.graph.initializer.extend(used_tensors)
    onnx.checker.check_model(split)
    return split


def linear_nodes(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes that multiply by a weight matrix."""
    constants = {tensor.name for tensor in proto.graph.initializer if len(tensor.dims) == 2}
    return [node.name for node in proto.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]


def _growing(most: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... up to `most`."""
    count = 1
    while count < most:
        yield count
        count += max(1, count // 3)
    yield most


class _Quantizer:
    """Quantises any choice of layers with ranges that are measured once."""

    def __init__(self, proto: onnx.ModelProto, signature: Signature, batches: list[Tensor], folder: Path) -> None:
        self.source, self.signature, self.batches, self.folder = proto, signature, batches, folder
        save_tensors_data(self.ranges(), folder / "ranges.json")

    def proto(self, chosen: Iterable[str]) -> onnx.ModelProto:
        fresh = self.folder / "int8.onnx"
        source = onnx.ModelProto()
        source.CopyFrom(self.source)
        logging.disable(logging.WARNING)  # it advises preprocessing, which simplifying was
        try:
            quantize_static(
                source,
                fresh,
                None,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm"],
                nodes_to_quantize=list(chosen),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=self.folder / "ranges.json",
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                },
            )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(fresh)

    def model(self, chosen: Iterable[str]) -> Runner:
        proto = self.proto(chosen)
        describe(proto, self.signature, ExportOptions(precision="int8"))
        path = self.folder / "judged.onnx"
        onnx.save(proto, path)
        return OnnxModel(path)

    def ranges(self) -> TensorsData:
        """Least and greatest value of what goes into each linear layer.

        onnxruntime's own calibrator also keeps those of softmax's N x N weights, all layers' at once.
        """
        watched = onnx.ModelProto()
        watched.CopyFrom(self.source)
        linear = set(linear_nodes(watched))
        names = sorted({node.input[0] for node in watched.graph.node if node.name in linear})
        for name in names:
            for operator in ("ReduceMin", "ReduceMax"):
                output = f"{name}_{operator}"
                watched.graph.node.append(onnx.helper.make_node(operator, [name], [output], keepdims=0))
                watched.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, []))
        path = self.folder / "watched.onnx"
        onnx.save(watched, path)
        session = OnnxModel(path).session
        outputs = [output.name for output in watched.graph.output][-2 * len(names) :]
        values = np.array(
            [
                session.run(outputs, {self.signature.input: self.signature.inputs(images).numpy()})
                for images in self.batches
            ]
        )  # images, tensors and their two ends
        low, high = values[:, 0::2].min(0), values[:, 1::2].max(0)
        pairs = {name: (low[index], high[index]) for index, name in enumerate(names)}
        return TensorsData(CalibrationMethod.MinMax, pairs)
