"""ONNX: torch's dynamo exporter, the simplifier, and parity in onnxruntime before the file gets its name."""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ..attention import CastledAttention
from ..errors import CheckFailed, ExportError, FoldError, OutputError
from ..files import writing_file
from ..version import __version__
from .options import ExportOptions
from .parity import Parity, compare, probe_images

INPUT, OUTPUT = "images", "logits"
SINGLE_FILE_LIMIT = 2 * 1024**3 - 2**20


def export(model: nn.Module, output: Path, options: ExportOptions) -> dict[str, Any]:
    """Write `output`, an ONNX file with input `images` [B, C, H, W] and output `logits` [B, classes].

    Castled layers are already linear; layers kept as softmax are exported as MatMul and Softmax, which
    every runtime fuses, and not as the Attention operator, which some can't take apart.

    Returns:
        `parity`: the largest `Parity` over the batch sizes checked, or None; `nodes`: count by operator.

    Raises:
        FoldError, ExportError, CheckFailed, OutputError: see `export.export`. No file is left.
    """
    if any(isinstance(module, CastledAttention) for module in model.modules()):
        raise FoldError("the model still has its training branches; fold() it before exporting")
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name with --output")
    model = prepare(model, options)
    proto = to_proto(model, options)
    if proto.ByteSize() > SINGLE_FILE_LIMIT:
        raise ExportError(
            f"the graph has {proto.ByteSize() / 1e9:.1f} GB, ONNX files end at 2 GB; export a smaller model"
        )
    _describe(proto, options)
    with writing_file(output) as fresh:
        onnx.save(proto, fresh)
        parity = check(fresh, model, options) if options.verify else None
    return {"parity": parity, "nodes": dict(Counter(node.op_type for node in proto.graph.node))}


def prepare(model: nn.Module, options: ExportOptions) -> nn.Module:
    """A float32 copy on the CPU at the asked image size, softmax layers in their plain form."""
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    if options.image_size is not None:
        try:
            model.set_input_size(img_size=options.image_size)  # type: ignore[operator]
        except (AssertionError, ValueError, RuntimeError) as error:
            height, width = options.image_size
            raise ExportError(f"the model can't take {height}x{width} images: {error}") from None
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    return model


def to_proto(model: nn.Module, options: ExportOptions) -> onnx.ModelProto:
    """The checked, simplified graph."""
    batch = 2 if options.dynamic else options.batch_sizes()[0]
    example = probe_images(model, batch)
    shapes = ({0: torch.export.Dim("batch")},) if options.dynamic else None
    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=options.opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
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


def check(path: Path, model: nn.Module, options: ExportOptions) -> Parity:
    """Run the file in onnxruntime beside `model` and compare the logits.

    Raises:
        CheckFailed: some logit is off by more than the tolerance.
    """
    run = OnnxModel(path)
    worst: Parity | None = None
    for batch in options.batch_sizes():
        images = probe_images(model, batch)
        with torch.no_grad():
            expected = model(images)
        parity = compare(run(images), expected, options.atol, options.rtol)
        worst = parity if worst is None or parity.max_error > worst.max_error else worst
    assert worst is not None
    if not worst.holds:
        raise CheckFailed(
            f"the exported graph differs from the model: max error {worst.max_error:.1e} on the logits, allowed "
            f"{options.atol:.0e} + {options.rtol:.0e}*|logit|; no file was written "
            "(raise --atol only if you can accept that)"
        )
    return worst


class OnnxModel:
    """An ONNX file in onnxruntime's CPU provider: images [B, C, H, W] in, logits [B, classes] out.

    Raises:
        ExportError: the file is no ONNX file, or onnxruntime can't run it.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise ExportError(f"{path} can't be run by onnxruntime (damaged or no ONNX file?): {first}") from error
        self.input = self.session.get_inputs()[0]
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    @property
    def input_size(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        return tuple(self.input.shape[1:])

    def __call__(self, images: Tensor) -> Tensor:
        values = images.detach().cpu().numpy().astype(np.float32)
        fixed = self.input.shape[0]
        if not isinstance(fixed, int):
            return torch.from_numpy(self.session.run(None, {self.input.name: values})[0])
        # A fixed batch is filled up with the last image, and the extra rows are dropped.
        rows = []
        for start in range(0, len(values), fixed):
            part = values[start : start + fixed]
            padded = np.concatenate([part, np.repeat(part[-1:], fixed - len(part), axis=0)])
            rows.append(self.session.run(None, {self.input.name: padded})[0][: len(part)])
        return torch.from_numpy(np.concatenate(rows))


def _describe(proto: onnx.ModelProto, options: ExportOptions) -> None:
    proto.producer_name, proto.producer_version = "castling-convert", __version__
    values = {"castling.precision": options.precision}
    if options.identity is not None:
        values["castling.bundle"] = options.identity
    del proto.metadata_props[:]
    for key, value in values.items():
        proto.metadata_props.add(key=key, value=value)


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
