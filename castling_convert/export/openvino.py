"""OpenVINO: IR (.xml and .bin) from the ONNX graph, with float32 or float16 weights or in int8 by NNCF."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..distill.data import GENERATED
from ..errors import ExportError, OutputError
from ..files import writing_file
from . import onnx as onnx_format
from .options import ExportOptions
from .parity import noise
from .prepare import Deployable, Signature, prepare
from .quantize import NO_CALIBRATION, TARGET_NOISE, calibration_batches, calibration_images
from .runner import DIGEST, IDENTITY, JUDGED_IMAGES, PRECISION, SIGNATURE, Exported, Runner, check, expected, last_line


def missing() -> str | None:
    """Why OpenVINO files can't be made or run here, and what to do."""
    absent = [name for name in ("openvino", "nncf") if find_spec(name) is None]
    return f"needs {' and '.join(absent)}: pip install 'castling-convert[openvino]'" if absent else None


cannot_run = missing
"""What makes an artifact runs it."""


def export(model: nn.Module, output: Path, options: ExportOptions) -> Exported:
    """Write `output`, an .xml file, and its .bin beside it.

    `fp16` is float16 weights: the arithmetic is what the device does best. `int8` is NNCF's default
    scheme for transformers, calibrated on the same images as for ONNX.

    Raises:
        FoldError, ExportError, CheckFailed, OutputError: see `export.export`. No file is left.
    """
    reason = missing()
    if reason is not None:
        raise ExportError(f"format openvino {reason}")
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name with --output")
    openvino: Any = import_module("openvino")  # this module has its name
    single = replace(options, precision="fp32", opset=options.opset or OPSET)
    prepared = prepare(model, single)
    proto = onnx_format.to_proto(prepared, single)
    graph = openvino.Core().read_model(proto.SerializeToString())
    notes: dict[str, Any] = {}
    if options.precision == "int8":
        graph = _quantize(graph, prepared, options)
        if options.calibration in (None, GENERATED):
            notes["warning"] = NO_CALIBRATION
    metadata = {PRECISION: options.precision, SIGNATURE: prepared.signature.to_json()}
    if options.identity is not None:
        metadata[IDENTITY] = options.identity
    _name(graph)
    for key, value in metadata.items():
        graph.set_rt_info(value, key.split("."))
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "model.xml"
        openvino.save_model(graph, fresh, compress_to_fp16=options.precision == "fp16")
        graph.set_rt_info(digest(fresh), DIGEST.split("."))
        openvino.save_model(graph, fresh, compress_to_fp16=options.precision == "fp16")
        parity = check(open(fresh), model, options) if options.verify else None
        # Both are whole before one of them gets its name.
        with writing_file(output) as graph_file, writing_file(output.with_suffix(".bin")) as weights_file:
            shutil.copyfile(fresh, graph_file)
            shutil.copyfile(fresh.with_suffix(".bin"), weights_file)
    counts: dict[str, int] = {}
    for node in graph.get_ops():
        counts[node.get_type_name()] = counts.get(node.get_type_name(), 0) + 1
    return Exported(output, parity, {"nodes": counts, **notes})


OPSET = 20
"""OpenVINO's ONNX reader knows no RMSNormalization; it finds the pattern and fuses it itself."""


def _quantize(graph: Any, prepared: Deployable, options: ExportOptions) -> Any:
    """The graph in int8; NNCF puts the layers that hurt most back to float until the noise on calibration
    images is within TARGET_NOISE."""
    with _quiet():
        import nncf

        batches = calibration_batches(calibration_images(prepared, options), options)
        signature = prepared.signature
        scheme: dict[str, Any] = {
            "ignored_scope": nncf.IgnoredScope(names=_left_float(graph)),
            "subset_size": len(batches),
            "preset": nncf.QuantizationPreset.PERFORMANCE,
            "model_type": nncf.ModelType.TRANSFORMER,
        }
        if options.latency_only:
            return nncf.quantize(
                graph, nncf.Dataset(batches, lambda images: signature.inputs(images).numpy()), **scheme
            )
        samples = [(signature.inputs(images), expected(prepared.model, signature, images)) for images in batches]

        def given(sample: tuple[Tensor, Tensor]) -> np.ndarray:
            return sample[0].numpy()

        def score(run: Any, chosen: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, list[float]]:
            """Minus the noise on all that NNCF chose, and on each."""
            pairs = [(torch.from_numpy(run(given(sample))[0].copy()), sample[1]) for sample in chosen]
            outputs, references = (torch.cat(column) for column in zip(*pairs, strict=True))
            return -noise(outputs, references), [-noise(*pair) for pair in pairs]

        judged = samples[:: max(1, len(samples) // JUDGED_IMAGES)]
        return nncf.quantize_with_accuracy_control(
            graph,
            nncf.Dataset(samples, given),
            nncf.Dataset(judged, given),
            score,
            max_drop=TARGET_NOISE,
            **scheme,
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=len(judged)
            ),
        )


def _left_float(graph: Any) -> list[str]:
    """Names of what gains nothing in int8: the products of two activations and those of prefix tokens, being small,
    and the depthwise convolutions, which OpenVINO computes in float and would only round the input of."""
    return [
        node.get_friendly_name()
        for node in graph.get_ops()
        if (node.get_type_name() == "MatMul" and not _is_weight(node.input_value(1).get_node()))
        or (node.get_type_name() == "MatMul" and len(node.input_value(1).get_partial_shape()) > 2)
        or node.get_type_name() == "GroupConvolution"
    ]


def _is_weight(node: Any) -> bool:
    return node.get_type_name() == "Constant" or (
        node.get_input_size() > 0
        and all(_is_weight(node.input_value(index).get_node()) for index in range(node.get_input_size()))
    )


def _name(graph: Any) -> None:
    """Names that OpenVINO counts up through a process, by the node's place in the graph instead."""
    for index, node in enumerate(graph.get_ordered_ops()):
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()) and kind not in ("Parameter", "Result"):
            node.set_friendly_name(f"{kind}_{index}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without NNCF's progress bars and notes, and torch's on the CUDA compiler that NNCF makes it look for."""
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def hints(precision: str, threads: int | None) -> dict[str, Any]:
    """What OpenVINO is told when it compiles: float32 stays float32, which it would not on all processors."""
    told: dict[str, Any] = {} if precision == "int8" else {"INFERENCE_PRECISION_HINT": "f32"}
    return told if threads is None else told | {"INFERENCE_NUM_THREADS": threads}


class IrModel(Runner):
    """An IR file on a device of OpenVINO, computing in float32 where the file does."""

    def __init__(self, path: Path, device: str = "CPU", threads: int | None = None) -> None:
        refuse_other_models(path)
        openvino: Any = import_module("openvino")
        core = openvino.Core()
        try:
            graph = core.read_model(path)
            metadata = {
                key: graph.get_rt_info(where).astype(str)
                for key in (PRECISION, SIGNATURE, IDENTITY, DIGEST)
                if graph.has_rt_info(where := key.split("."))
            }
            signature = Signature.from_json(metadata[SIGNATURE])
            self.compiled = core.compile_model(graph, device, hints(metadata[PRECISION], threads))
        except Exception as error:  # noqa: BLE001 - OpenVINO raises RuntimeError for everything
            raise ExportError(
                f"{path} can't be run by OpenVINO (damaged, or its .bin is missing?): {last_line(error)}"
            ) from None
        shape = graph.input(0).partial_shape
        super().__init__(signature, metadata, None if shape[0].is_dynamic else shape[0].get_length())

    def run(self, values: np.ndarray) -> np.ndarray:
        return self.compiled(values)[0].copy()


def refuse_other_models(path: Path) -> None:
    """Raise ExportError for a file that does not begin as OpenVINO's own do: it would try its readers of other
    frameworks' models on it, one after the other, and each complains by itself."""
    try:
        with path.open("rb") as file:
            beginning = file.read(1000)
    except OSError as error:
        raise ExportError(f"{path} can't be read: {error.strerror}") from None
    if b"<net " not in beginning:
        raise ExportError(f"{path} is no model of OpenVINO's; make one with: castling export --format openvino")


def open(path: Path) -> IrModel:
    """The model on the CPU."""
    reason = missing()
    if reason is not None:
        raise ExportError(f"{path} can't be run here: OpenVINO {reason}")
    run = IrModel(path)
    run.intact = run.metadata.get(DIGEST) in (None, digest(path))
    return run


def digest(path: Path) -> str:
    """SHA-256 of the weights, which are in the .bin beside `path`."""
    return hashlib.sha256(path.with_suffix(".bin").read_bytes()).hexdigest()
