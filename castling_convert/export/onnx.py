"""ONNX: torch's dynamo exporter, the simplifier, and parity in onnxruntime before the file gets its name."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from ..attention import Layout
from ..errors import ExportError, OutputError, first_line
from ..files import writing_file
from ..version import __version__
from .options import DEFAULT_OPSET, ExportOptions
from .parity import probe_images
from .prepare import Deployable, Signature, prepare
from .runner import DIGEST, IDENTITY, PRECISION, SIGNATURE, Exported, Runner, check

SINGLE_FILE_LIMIT = 2 * 1024**3 - 2**20
CHANNELS_FIRST: dict[str, Layout] = {"fp32": "product", "int8": "transpose"}
"""How castled layers are faster in onnxruntime; its int8 kernels need the weights on the right."""


def export(
    model: nn.Module, output: Path, options: ExportOptions, rewrite_: Callable[[onnx.ModelProto], None] | None = None
) -> Exported:
    """Write `output`, an ONNX file with what `prepare.Signature` says goes in and comes out; its graph as `rewrite_`
    leaves it, where a format has one.

    Castled layers are already linear; layers kept as softmax are exported as MatMul and Softmax, which
    every runtime fuses, and not as the Attention operator, which some can't take apart.

    Raises:
        FoldError, ExportError, CheckFailed, OutputError: see `export.export`. No file is left.
    """
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name with --output")
    prepared = prepare(model, options, channels_first=CHANNELS_FIRST.get(options.precision))
    proto = to_proto(prepared, options)
    notes: dict[str, Any] = {}
    if options.precision == "int8":
        from .quantize import quantize

        proto, notes = quantize(proto, prepared, options)
    if rewrite_ is not None:
        rewrite_(proto)
    if proto.ByteSize() > SINGLE_FILE_LIMIT:
        raise ExportError(
            f"the graph has {proto.ByteSize() / 1e9:.1f} GB, ONNX files end at 2 GB; export a smaller model"
        )
    describe(proto, prepared.signature, options)
    with writing_file(output) as fresh:
        onnx.save(proto, fresh)
        parity = check(open(fresh), model, options) if options.verify else None
    nodes = dict(Counter(node.op_type for node in proto.graph.node))
    return Exported(output, parity, {"nodes": nodes, **notes})


def to_proto(prepared: Deployable, options: ExportOptions) -> onnx.ModelProto:
    """The checked, simplified graph."""
    batch = options.fixed_batch or 2
    signature = prepared.signature
    example = signature.inputs(probe_images(prepared.model, batch, size=signature.input_size[1:]))
    return trace(
        prepared, example, options, (signature.input, signature.output), (dynamic_axes(signature, options),)
    )  # fmt: skip


def trace(
    module: nn.Module, example: Tensor, options: ExportOptions, names: tuple[str, str], shapes: Any = None
) -> onnx.ModelProto:
    """The checked, simplified graph of any module of one input and one output, with their `names`."""
    with _quiet():
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


class OnnxModel(Runner):
    """An ONNX file in onnxruntime, or `content` in its place; with `threads`, one of several in a process.

    Raises:
        ExportError: the file is no ONNX file, or onnxruntime can't run it.
    """

    def __init__(
        self,
        path: Path,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
        content: bytes | None = None,
        threads: int | None = None,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
            # Threads that spin on after a call take the cores from the next session of this process.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = onnxruntime.InferenceSession(content or path, options, providers=list(providers))
        except Exception as error:
            first = first_line(error)
            why = "it has no kernel for that" if "NOT_IMPLEMENTED" in first else "damaged or no ONNX file?"
            raise ExportError(f"{path} can't be run by onnxruntime ({why}): {first}") from error
        taken = self.session.get_inputs()[0]
        metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        if SIGNATURE in metadata:
            signature = Signature.from_json(metadata[SIGNATURE])
        else:
            signature = Signature(tuple(taken.shape[1:]))
        super().__init__(signature, metadata, taken.shape[0] if isinstance(taken.shape[0], int) else None)
        self.providers: list[str] = self.session.get_providers()
        self.name = taken.name

    def run(self, values: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.name: values})[0]


def open(path: Path) -> OnnxModel:
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


def describe(proto: onnx.ModelProto, signature: Signature, options: ExportOptions) -> None:
    """Say in the file where it comes from and what it takes."""
    proto.producer_name, proto.producer_version = "castling-convert", __version__
    values = {PRECISION: options.precision, SIGNATURE: signature.to_json(), DIGEST: digest(proto)}
    if options.identity is not None:
        values[IDENTITY] = options.identity
    del proto.metadata_props[:]
    for key, value in values.items():
        proto.metadata_props.add(key=key, value=value)


def digest(proto: onnx.ModelProto) -> str:
    """SHA-256 of what is computed: the graph, and the operator sets it is written in."""
    said = hashlib.sha256(proto.graph.SerializeToString(deterministic=True))
    for opset in proto.opset_import:
        said.update(opset.SerializeToString(deterministic=True))
    return said.hexdigest()


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what the exporter notes of this machine (paths, stack traces): no runtime reads it."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress prints and deprecation warnings say nothing to a user of this tool."""
    names = ("onnxscript", "onnx_ir", "torch.onnx", "torch.onnx._internal.exporter._registration")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
