"""TensorRT: a strongly typed engine from the ONNX graph, checked operator by operator before it is built.

The precision is that of the graph's own types; there are no builder flags for it (TensorRT 11 dropped
them). What was really built is read back from the engine inspector. Works with TensorRT 10.12 to 11.x.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console
from torch import nn

from ..errors import CheckFailed, ExportError, Interrupted
from ..files import writing_file
from . import onnx as onnx_format
from .options import ExportOptions
from .prepare import Signature
from .runner import PRECISION, SIGNATURE, Exported, Runner, check
from .trt_operators import refused

OLDEST = (10, 12)
TRT_OPSET = 20
"""Every parser from 10.12 on reads it; the norms of q and k are several nodes then, which TensorRT fuses."""
WORKSPACE_BYTES = 4 * 2**30
ONNX_ONLY = "; or add --onnx-only and build the engine on the GPU machine with the trtexec line it prints"


def missing() -> str | None:
    """Why engines can't be built or run here, and what to do."""
    if find_spec("tensorrt") is None:
        return "needs the tensorrt package and an NVIDIA GPU: pip install 'castling-convert[tensorrt]'"
    import tensorrt

    if tuple(int(part) for part in tensorrt.__version__.split(".")[:2]) < OLDEST:
        return (
            f"tensorrt {tensorrt.__version__} is too old, 10.12 is needed: pip install -U 'castling-convert[tensorrt]'"
        )
    if gpu() is None:
        return "tensorrt is installed, and torch finds no NVIDIA GPU: see nvidia-smi"
    return None


def gpu() -> str | None:
    """The name of the GPU that torch uses, None where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def export(model: nn.Module, output: Path, options: ExportOptions) -> Exported:
    """Write the engine `output` with `output`.json beside it, or with `onnx_only` the ONNX graph for it.

    Raises:
        ExportError: TensorRT or a GPU is missing, its parser would refuse a node, or the build failed.
        CheckFailed: the engine is not in the asked precision, or differs from the model.
        Interrupted: Ctrl-C during the build.
    """
    options = replace(options, opset=options.opset or TRT_OPSET)
    reason = missing()
    if reason is not None and not options.onnx_only:
        raise ExportError(f"format trt {reason}{ONNX_ONLY}")
    graph = output.with_suffix(".trt.onnx")
    made = onnx_format.export(model, graph, options)
    proto = onnx.load(graph)
    complaints = list(refused(proto))
    if complaints:
        graph.unlink()
        raise ExportError(
            f"TensorRT would refuse {len(complaints)} node{'s' if len(complaints) > 1 else ''}: {complaints[0]}; "
            "export another opset with --opset, or report this model"
        )
    signature = Signature.from_json({entry.key: entry.value for entry in proto.metadata_props}[SIGNATURE])
    line = trtexec_line(graph, output, signature, options)
    if options.onnx_only:
        return replace(made, notes={**made.notes, "trtexec": line})
    with writing_file(output) as fresh:
        sidecar = build(graph, fresh, signature, options)
        parity = check(EngineModel(fresh, sidecar), model, options) if options.verify else None
    output.with_name(output.name + ".json").write_text(json.dumps(sidecar.to_dict(), indent=2))
    return Exported(output, parity, {"trtexec": line, "tensorrt": sidecar.tensorrt, "gpu": sidecar.gpu})


@dataclass(frozen=True)
class Profile:
    """The shapes of the input, batch first, that an engine is built for."""

    smallest: tuple[int, ...]
    best: tuple[int, ...]
    largest: tuple[int, ...]

    @classmethod
    def of(cls, signature: Signature, options: ExportOptions) -> Profile:
        sizes = (1, 8, 16) if options.batch == "dynamic" else options.batch_sizes()
        smallest, largest = (signature.shape(size or None) for size in (signature.smallest, signature.largest))
        return cls((sizes[0], *smallest), (sizes[len(sizes) // 2], *signature.shape()), (sizes[-1], *largest))


def trtexec_line(graph: Path, output: Path, signature: Signature, options: ExportOptions) -> str:
    """The command that builds the same engine on a machine with TensorRT."""
    profile = Profile.of(signature, options)
    words = ["trtexec", f"--onnx={graph}", "--stronglyTyped", f"--saveEngine={output}",
             f"--timingCacheFile={timing_cache(output)}"]  # fmt: skip
    if profile.smallest != profile.largest:
        for name, shape in (("min", profile.smallest), ("opt", profile.best), ("max", profile.largest)):
            words.append(f"--{name}Shapes={signature.input}:{'x'.join(map(str, shape))}")
    words += [f"--memPoolSize=workspace:{WORKSPACE_BYTES // 2**20}", "--profilingVerbosity=detailed",
              f"--exportLayerInfo={output.with_suffix('.layers.json')}", "--skipInference"]  # fmt: skip
    return " ".join(words)


def timing_cache(output: Path) -> Path:
    return output.with_suffix(".timing")


@dataclass(frozen=True)
class Sidecar:
    """What an engine file can't say of itself. An engine runs with its TensorRT and kind of GPU alone."""

    tensorrt: str
    gpu: str
    precision: str
    profile: dict[str, list[int]]
    onnx_sha256: str
    engine_sha256: str
    metadata: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def build(graph: Path, fresh: Path, signature: Signature, options: ExportOptions) -> Sidecar:
    """Parse `graph`, build the engine into `fresh`, and prove its precision."""
    import tensorrt as trt

    logger = trt.Logger(trt.ILogger.Severity.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise ExportError(f"TensorRT can't read {graph}: {'; '.join(errors) or 'it does not say why'}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of mantissa are not what fp32 parity allows
    profile = Profile.of(signature, options)
    if profile.smallest != profile.largest:
        shapes = builder.create_optimization_profile()
        shapes.set_shape(signature.input, profile.smallest, profile.best, profile.largest)
        config.add_optimization_profile(shapes)
    kept = timing_cache(graph)
    cache = config.create_timing_cache(kept.read_bytes() if kept.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    monitor = _monitor(options.console)
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if monitor.cancelled:
        raise Interrupted("interrupted while TensorRT was building; nothing was written")
    if engine is None:
        raise ExportError(f"TensorRT could not build an engine of {graph}; its own messages are above")
    content = bytes(engine)
    with writing_file(kept) as file:
        file.write_bytes(bytes(config.get_timing_cache().serialize()))
    proto = onnx.load(graph, load_external_data=False)
    prove_precision(trt.Runtime(logger).deserialize_cuda_engine(content), proto, options.precision)
    fresh.write_bytes(content)
    metadata = {p.key: p.value for p in proto.metadata_props}
    return Sidecar(
        trt.__version__,
        gpu() or "",
        options.precision,
        {name: list(getattr(profile, name)) for name in ("smallest", "best", "largest")},
        hashlib.sha256(graph.read_bytes()).hexdigest(),
        hashlib.sha256(content).hexdigest(),
        metadata,
    )


_TYPE_WORDS = {
    "fp32": r"\b(Float|FP32)\b",
    "fp16": r"\b(Half|FP16)\b",
    "bf16": r"\b(BFloat16|BF16)\b",
    "int8": r"\bInt8\b",
}
"""How the engine inspector writes them: TensorRT 10 has both spellings."""


def prove_precision(engine: Any, graph: onnx.ModelProto, precision: str) -> None:
    """Raise CheckFailed unless every layer that holds a product of the asked type really has that type.

    An fp32 graph asked for as fp16 builds an fp32 engine without any error; only the inspector tells. Its
    layers name the ONNX nodes they were made of; those of the float32 islands are not asked about.
    """
    import tensorrt as trt

    inspector = engine.create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
    asked, seen = products_in(graph, precision), set()
    for layer in layers:
        named = asked.intersection(re.findall(r"\[ONNX Layer: ([^\]]+)\]", layer.get("Metadata", "")))
        types = {entry.get("Format/Datatype", "") for entry in (*layer["Inputs"], *layer["Outputs"])}
        if named and not any(re.search(_TYPE_WORDS[precision], found) for found in types):
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


def products_in(graph: onnx.ModelProto, precision: str) -> set[str]:
    """Names of the nodes that multiply matrices in that type; for int8 those fed by a DequantizeLinear."""
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    values = (*inferred.value_info, *inferred.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    dequantized = {out for node in inferred.node if node.op_type == "DequantizeLinear" for out in node.output}
    wanted = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    products = [node for node in inferred.node if node.op_type in ("MatMul", "Gemm")]
    if precision == "int8":
        return {node.name for node in products if node.input[0] in dequantized}
    return {node.name for node in products if types.get(node.output[0]) == wanted[precision]}


def _monitor(console: Console | None) -> Any:
    """TensorRT's progress on the console; Ctrl-C cancels the build at its next step."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if console is not None and parent_phase is None:
                console.print(f"TensorRT: {phase_name} ({num_steps} steps)")

        def phase_finish(self, phase_name: str) -> None:
            """Nothing is shown for it."""

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                return not self.cancelled
            except KeyboardInterrupt:
                self.cancelled = True
                return False

    return Monitor()


class EngineModel(Runner):
    """An engine on the GPU, through torch's memory."""

    def __init__(self, path: Path, sidecar: Sidecar) -> None:
        import tensorrt as trt

        metadata = sidecar.metadata | {PRECISION: sidecar.precision}
        signature = Signature.from_json(metadata[SIGNATURE])
        smallest, largest = sidecar.profile["smallest"][0], sidecar.profile["largest"][0]
        super().__init__(signature, metadata, smallest if smallest == largest else None)
        self.smallest, self.largest = smallest, largest
        if trt.__version__ != sidecar.tensorrt or gpu() != sidecar.gpu:
            raise ExportError(
                f"{path} was built by TensorRT {sidecar.tensorrt} for {sidecar.gpu}, here are {trt.__version__} and "
                f"{gpu()}; build it here with castling export --format trt"
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sidecar.engine_sha256:
            raise ExportError(f"{path} is not the file that was written (truncated or edited); export it again")
        self.engine = trt.Runtime(trt.Logger(trt.ILogger.Severity.WARNING)).deserialize_cuda_engine(content)
        if self.engine is None:
            raise ExportError(f"TensorRT can't read {path}; export it again")
        self.context = self.engine.create_execution_context()

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Batches larger than the profile allows are split."""
        parts = [super(EngineModel, self).rows(values[start : start + self.largest])
                 for start in range(0, len(values), self.largest)]  # fmt: skip
        return np.concatenate(parts)

    def run(self, values: np.ndarray) -> np.ndarray:
        stream = torch.cuda.current_stream()
        given = torch.from_numpy(np.ascontiguousarray(values)).cuda()
        self.context.set_input_shape(self.signature.input, tuple(given.shape))
        shape = tuple(self.context.get_tensor_shape(self.signature.output))
        output = torch.empty(shape, dtype=getattr(torch, self.signature.dtype), device="cuda")
        self.context.set_tensor_address(self.signature.input, given.data_ptr())
        self.context.set_tensor_address(self.signature.output, output.data_ptr())
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise ExportError("TensorRT could not run the engine; its own messages are above")
        stream.synchronize()
        return output.float().cpu().numpy()


def open(path: Path) -> EngineModel:
    """An engine by its path, with what stands beside it."""
    reason = missing()
    if reason is not None:
        raise ExportError(f"{path} can't be run here: it {reason}")
    beside = path.with_name(path.name + ".json")
    try:
        return EngineModel(path, Sidecar(**json.loads(beside.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError):
        raise ExportError(f"{beside}, which belongs to {path}, is missing or damaged; export it again") from None
