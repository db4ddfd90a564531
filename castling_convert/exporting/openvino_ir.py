"""OpenVINO: IR (.xml and .bin) from the ONNX graph, with float32 or float16 weights or in int8 by NNCF."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..artifact.options import ExportOptions
from ..artifact.precision import DEFAULT, PRECISIONS
from ..artifact.prepare import prepare
from ..artifact.runner import DIGEST, IDENTITY, PRECISION, SIGNATURE, Exported, Runner, check, last_line
from ..artifact.signature import Signature
from ..errors import ExportError, OutputError
from ..files import writing_file
from ..quantize import quantizer
from . import onnx_graph, suppression


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
        FoldError, ExportError, CheckFailed, OutputError: see `exporting.export`. No file is left.
    """
    reason = missing()
    if reason is not None:
        raise ExportError(f"format openvino {reason}")
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name with --output")
    openvino: Any = import_module("openvino")  # this module has its name
    single = replace(options, precision=DEFAULT, opset=options.opset or OPSET)
    prepared = prepare(model, single)
    if options.nms:
        suppression.refuse(prepared)
    proto = onnx_graph.to_proto(prepared, single)
    core = openvino.Core()
    graph = core.read_model(proto.SerializeToString())
    notes: dict[str, Any] = {}
    if options.how.quantized:
        graph, notes = quantizer(options.quantizer or QUANTIZER).quantize(graph, prepared, options)
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "model.xml"
        _save(graph, prepared.signature, options, fresh)
        run = open_artifact(fresh)
        parity = check(run, model, options) if options.verify else None
        if options.nms:
            fresh = Path(folder) / "detections.xml"
            end = suppression.tail_of(prepared, proto)
            graph = _behind(graph, core.read_model(end.SerializeToString()))
            _save(graph, suppression.signature_with(prepared.signature), options, fresh)
            if options.verify:
                alone = core.compile_model(core.read_model(end.SerializeToString()), "CPU", hints(DEFAULT, None))
                suppression.check_tail(lambda raw: alone(raw)[0], suppression.kinds_of(proto))
                suppression.check_whole(run, open_artifact(fresh), prepared, options)
        # Both are whole before one of them gets its name.
        with writing_file(output) as graph_file, writing_file(output.with_suffix(".bin")) as weights_file:
            shutil.copyfile(fresh, graph_file)
            shutil.copyfile(fresh.with_suffix(".bin"), weights_file)
    counts: dict[str, int] = {}
    for node in graph.get_ops():
        counts[node.get_type_name()] = counts.get(node.get_type_name(), 0) + 1
    return Exported(output, parity, {"nodes": counts, **notes})


def _save(graph: Any, signature: Signature, options: ExportOptions, path: Path) -> None:
    """Write `graph` with what there is to say of it."""
    openvino: Any = import_module("openvino")
    metadata = {PRECISION: options.precision, SIGNATURE: signature.to_json()}
    if options.identity is not None:
        metadata[IDENTITY] = options.identity
    _name(graph)
    for key, value in metadata.items():
        graph.set_rt_info(value, key.split("."))
    openvino.save_model(graph, path, compress_to_fp16=options.precision == "fp16")
    graph.set_rt_info(digest(path), DIGEST.split("."))
    openvino.save_model(graph, path, compress_to_fp16=options.precision == "fp16")


def _behind(graph: Any, end: Any) -> Any:
    """One graph of `graph` and of `end`, which takes its output."""
    source = graph.get_results()[0].input_value(0)
    for target in end.get_parameters()[0].output(0).get_target_inputs():
        target.replace_source_output(source)
    return import_module("openvino").Model(end.get_results(), graph.get_parameters(), graph.get_friendly_name())


QUANTIZER = "nncf"
"""What int8 is made by where nothing else is asked for."""
OPSET = 20
"""OpenVINO's ONNX reader knows no RMSNormalization; it finds the pattern and fuses it itself."""


def _name(graph: Any) -> None:
    """Names that OpenVINO counts up through a process, by the node's place in the graph instead."""
    for index, node in enumerate(graph.get_ordered_ops()):
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()) and kind not in ("Parameter", "Result"):
            node.set_friendly_name(f"{kind}_{index}")


def hints(precision: str, threads: int | None) -> dict[str, Any]:
    """What OpenVINO is told when it compiles: float32 stays float32, which it would not on all processors."""
    settings: dict[str, Any] = {} if PRECISIONS[precision].quantized else {"INFERENCE_PRECISION_HINT": "f32"}
    return settings if threads is None else settings | {"INFERENCE_NUM_THREADS": threads}


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


def open_artifact(path: Path) -> IrModel:
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
