"""TensorRT: a strongly typed engine from the ONNX graph, checked operator by operator before it is built.

It is built on the kind of GPU that it is for, by TensorRT 10.12 to 11.x. What was really built is read back from the
engine inspector. Engines for RTX GPUs that are built anywhere: `trt_rtx`.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import onnx
from torch import nn

from ..artifact.caches import timing_cache
from ..artifact.options import ExportOptions
from ..artifact.runner import Exported, check
from ..artifact.signature import Signature
from ..errors import ExportError
from ..files import writing_file
from . import trt_graph
from .trt_engine import OPSET, EngineBuild, EngineModel, Profile, Sidecar, gpu, signature_in
from .trt_operators import refused

OLDEST = (10, 12)
WORKSPACE_BYTES = 4 * 2**30
ELSEWHERE = (
    "; or add --onnx-only and build the engine on the GPU machine with the trtexec line it prints; "
    "for RTX GPUs --format trt-rtx builds one without a GPU"
)


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


cannot_run = missing
"""What builds an engine runs it."""


def export(model: nn.Module, output: Path, options: ExportOptions) -> Exported:
    """Write the engine `output`, with `output`.json and the ONNX graph beside it; with `onnx_only` the graph alone.

    Raises:
        ExportError: TensorRT or a GPU is missing, its parser would refuse a node, or the build failed.
        CheckFailed: the engine is not in the asked precision, or differs from the model.
        Interrupted: Ctrl-C during the build.
    """
    options = replace(options, opset=options.opset or OPSET)
    reason = missing()
    if reason is not None and not options.onnx_only:
        raise ExportError(f"format trt {reason}{ELSEWHERE}")
    beside = output.with_suffix(".trt.onnx")
    if options.onnx_only:
        with writing_file(beside) as graph:
            made = _graph(model, graph, options)
            line = trtexec_line(beside, output, signature_in(onnx.load(graph)), options)
        return replace(made, artifact=beside, notes={**made.notes, "trtexec": line})
    import tensorrt

    with writing_file(output) as fresh:
        graph = fresh.with_name(beside.name)
        made = _graph(model, graph, options)
        signature = signature_in(onnx.load(graph))
        sidecar = build(graph, fresh, timing_cache(output), signature, options)
        parity = check(EngineModel(tensorrt, fresh, sidecar), model, options) if options.verify else None
        graph.replace(beside)
        sidecar.write(output)
    line = trtexec_line(beside, output, signature, options)
    notes = {name: value for name, value in made.notes.items() if name != "nodes"}
    return Exported(output, parity, {**notes, "trtexec": line, "tensorrt": sidecar.tensorrt, "gpu": sidecar.target,
                                     "products": sidecar.products})  # fmt: skip


def _graph(model: nn.Module, graph: Path, options: ExportOptions) -> Exported:
    """Export `graph`, and hold it against the table of TensorRT's operators."""
    made = trt_graph.export(model, graph, options)
    complaints = list(refused(onnx.load(graph)))
    if complaints:
        raise ExportError(
            f"TensorRT would refuse {len(complaints)} node{'s' if len(complaints) > 1 else ''}: {complaints[0]}; "
            "export another opset with --opset, or report this model"
        )
    return made


def trtexec_line(graph: Path, output: Path, signature: Signature, options: ExportOptions) -> str:
    """The command that builds the same engine on a machine with TensorRT."""
    words = ["trtexec", f"--onnx={graph}", "--stronglyTyped", f"--saveEngine={output}",
             f"--timingCacheFile={timing_cache(output)}", *Profile.of(signature, options).words(signature.input),
             f"--memPoolSize=workspace:{WORKSPACE_BYTES // 2**20}", "--profilingVerbosity=detailed",
             f"--exportLayerInfo={output.with_suffix('.layers.json')}", "--skipInference"]  # fmt: skip
    return " ".join(words)


def build(graph: Path, fresh: Path, timings: Path, signature: Signature, options: ExportOptions) -> Sidecar:
    """Build the engine of `graph` into `fresh`, and prove its precision; `timings` are kept for the next build."""
    import tensorrt as trt

    making = EngineBuild(trt, graph, signature, options)
    making.config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    cache = making.config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
    if cache is None or not making.config.set_timing_cache(cache, ignore_mismatch=False):  # of another GPU or version
        making.config.set_timing_cache(making.config.create_timing_cache(b""), ignore_mismatch=False)
    engine = making.build()
    kept = making.config.get_timing_cache()
    if kept is not None:
        with writing_file(timings) as file:
            file.write_bytes(bytes(kept.serialize()))
    making.prove(engine)
    fresh.write_bytes(engine)
    return making.sidecar(engine, gpu() or "")


def open_artifact(path: Path) -> EngineModel:
    """An engine by its path, with what stands beside it."""
    reason = cannot_run()
    if reason is not None:
        raise ExportError(f"{path} can't be run here: it {reason}")
    import tensorrt

    sidecar = Sidecar.read(path)
    if gpu() != sidecar.target:
        raise ExportError(
            f"{path} was built for {sidecar.target}, here is {gpu()}; build it here with castling export --format trt"
        )
    return EngineModel(tensorrt, path, sidecar)
