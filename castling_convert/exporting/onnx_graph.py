"""ONNX: torch's dynamo exporter, the simplifier, and parity in onnxruntime before the file gets its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from ..artifact.onnx_model import OnnxModel, describe, digest
from ..artifact.options import DEFAULT_OPSET, ExportOptions
from ..artifact.prepare import Deployable, prepare
from ..artifact.quiet import quiet
from ..artifact.runner import DIGEST, PRECISION, Exported, check
from ..artifact.signature import Signature
from ..attention import ChannelsFirst
from ..data.probe import probe_images
from ..errors import ExportError, OutputError
from ..files import writing_file
from ..quantize import quantizer
from . import suppression

CHATTY = ("onnxscript", "onnx_ir", "torch.onnx", "torch.onnx._internal.exporter._registration")
"""Loggers of the exporter, which prints its progress and what it deprecates."""
QUANTIZER = "qdq"
"""What int8 is made by where nothing else is asked for."""
SINGLE_FILE_LIMIT = 2 * 1024**3 - 2**20
FIXED_BATCH = (
    "the model's own code fixes the batch at that of one example, as len(x) and int(x.shape[0]) do; write x.shape[0] "
    "there, or export with --batch N"
)
CHANNELS_FIRST: dict[str, ChannelsFirst] = {"fp32": "from_weights", "int8": "transposed"}
"""How castled layers are faster in onnxruntime; its int8 kernels need the weights on the right."""


def export(
    model: nn.Module,
    output: Path,
    options: ExportOptions,
    rewrite_: Callable[[onnx.ModelProto], None] | None = None,
    channels_first: Mapping[str, ChannelsFirst] = CHANNELS_FIRST,
) -> Exported:
    """Write `output`, an ONNX file with what `artifact.signature.Signature` says goes in and comes out; its graph as
    `rewrite_` leaves it, where a format has one. Castled layers have their channels first in the precisions that
    `channels_first` names.

    Castled layers are already linear; layers kept as softmax are exported as MatMul and Softmax, which
    every runtime fuses, and not as the Attention operator, which some can't take apart.

    Raises:
        FoldError, ExportError, CheckFailed, OutputError: see `exporting.export`. No file is left.
    """
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name with --output")
    prepared = prepare(model, options, channels_first=channels_first.get(options.precision))
    if options.nms:
        suppression.refuse(prepared)
    proto = to_proto(prepared, options)
    notes: dict[str, Any] = {}
    if options.how.quantized:
        proto, notes = quantizer(options.quantizer or QUANTIZER).quantize(proto, prepared, options)
    if rewrite_ is not None:
        rewrite_(proto)
    describe(proto, prepared.signature, options)
    with writing_file(output) as fresh:
        onnx.save(proto, fresh)
        run = open_artifact(fresh)
        parity = check(run, model, options) if options.verify else None
        if options.nms:
            kinds, end = suppression.kinds_of(proto), suppression.tail_of(prepared, proto)
            suppression.append_(proto, end)
            describe(proto, suppression.signature_with(prepared.signature), options)
            onnx.save(proto, fresh)
            if options.verify:
                suppression.check_tail(OnnxModel(output, content=end.SerializeToString()).run, kinds)
                suppression.check_whole(run, open_artifact(fresh), prepared, options)
    nodes = dict(Counter(node.op_type for node in proto.graph.node))
    return Exported(output, parity, {"nodes": nodes, **notes})


def to_proto(prepared: Deployable, options: ExportOptions) -> onnx.ModelProto:
    """The checked, simplified graph."""
    batch = options.fixed_batch or 2
    signature = prepared.signature
    images = probe_images(prepared.model, batch, size=signature.input_size[1:])
    prepared.refuse_lists(images)
    example = signature.inputs(images)
    proto = trace(
        prepared, example, options, (signature.input, signature.output), (dynamic_axes(signature, options),)
    )  # fmt: skip
    if options.dynamic and proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value:  # torch says nothing of it
        raise ExportError(FIXED_BATCH)
    return proto


def trace(
    module: nn.Module, example: Tensor, options: ExportOptions, names: tuple[str, str], shapes: Any = None
) -> onnx.ModelProto:
    """The checked, simplified graph of any module of one input and one output, with their `names`.

    Raises:
        ExportError: its weights are more than a file of ONNX holds, which the checker would say in other words.
    """
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    if size > SINGLE_FILE_LIMIT:
        raise ExportError(f"the weights are {size / 1e9:.1f} GB, ONNX files end at 2 GB; export a smaller model")
    with quiet(*CHATTY):
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=options.opset or DEFAULT_OPSET,
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=shapes,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export gave no program")
    proto = program.model_proto
    if options.simplify:
        import onnxsim

        # Parity with the model itself is checked below, on more than onnxsim's own random inputs.
        proto, _ = onnxsim.simplify(proto)
    _strip(proto)
    onnx.checker.check_model(proto)
    return proto


def _widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with every bfloat16 a float32 of the same value."""
    half, single = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    del wide.graph.value_info[:]
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    tensors = list(wide.graph.initializer)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = single
            if attribute.type == onnx.AttributeProto.TENSOR:
                tensors.append(attribute.t)
    for tensor in tensors:
        if tensor.data_type == half:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return wide


def dynamic_axes(signature: Signature, options: ExportOptions) -> dict[int, Any]:
    """What `torch.export` is told of the axes of the input."""
    axes: dict[int, Any] = {0: torch.export.Dim("batch")} if options.dynamic else {}
    for name, axis, stride, low, high in zip(
        ("height", "width"), signature.spatial, signature.stride, signature.smallest, signature.largest, strict=False
    ):
        axes[axis] = stride * torch.export.Dim(f"{name}_patches", min=low // stride, max=high // stride)
    return axes


def open_artifact(path: Path) -> OnnxModel:
    """The artifact in onnxruntime's CPU provider, for checks. That has no bfloat16: such a graph is run with
    its weights rounded to bfloat16 as they are, and its arithmetic in float32."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError):
        return OnnxModel(path)  # it says what is wrong
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    half = metadata.get(PRECISION) == "bf16"
    run = OnnxModel(path, content=_widened(proto).SerializeToString() if half else None)
    run.intact = metadata.get(DIGEST) in (None, digest(proto))
    return run


def missing() -> None:
    """onnxruntime comes with the package."""
    return None


cannot_run = missing
"""What makes an artifact runs it."""


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what the exporter notes of this machine (paths, stack traces): no runtime reads it."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
