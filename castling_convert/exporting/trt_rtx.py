"""TensorRT for RTX: an engine built anywhere, also without a GPU, and compiled on the RTX GPU that first runs it.

Its parser reads the graph here, so what is said of operators and precision is what TensorRT says. An engine that is
built on a machine without a GPU that it is for was not run, and is never said to have been.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from ..artifact.options import ExportOptions
from ..artifact.runner import Exported, check
from ..artifact.signature import Signature
from ..errors import ExportError
from ..files import writing_file
from . import trt_graph
from .trt_engine import OPSET, EngineBuild, EngineModel, Profile, Sidecar, capability, gpu, signature_in

PORTABLE = "portable: Ampere and later"
"""The target where no compute capability is asked for."""
AMPERE = (8, 0)
WITHOUT = "without --compute-capability the engine runs on all that TensorRT for RTX knows from 8.0 on"


def missing() -> str | None:
    """Why engines can't be built here, and what to do. Building needs no GPU."""
    if find_spec("tensorrt_rtx") is None:
        return "needs the tensorrt-rtx package: pip install 'castling-convert[tensorrt-rtx]'"
    return None


def cannot_run() -> str | None:
    """Why engines can't be run here."""
    reason = missing()
    if reason is not None:
        return reason
    if gpu() is None:
        return "needs an NVIDIA GPU, and torch finds none"
    import tensorrt_rtx

    known = known_targets(tensorrt_rtx)
    if capability() in known or runs_on(capability(), (), known):
        return None
    return f"runs on compute capability {', '.join(known)} and newer, and {gpu()} has {capability()}"


def runs_on(here: str, targets: tuple[str, ...], known: Iterable[str]) -> bool:
    """Whether an engine for `targets` runs on a GPU of compute capability `here`. A portable one, without targets, runs
    on all from Ampere on that are `known`, which not all GPUs are (Hopper), and on newer ones."""
    if targets:
        return here in targets
    mine, *others = (tuple(map(int, text.split("."))) for text in (here, *known))
    return mine > max(others) or (mine >= AMPERE and mine in others)


def not_run(api: Any, targets: tuple[str, ...]) -> str | None:
    """Why an engine for `targets` is built here and not run."""
    if gpu() is None:
        return "no GPU here"
    if not runs_on(capability(), targets, known_targets(api)):
        return f"it is not for {gpu()}, which has compute capability {capability()}"
    return None


def export(model: nn.Module, output: Path, options: ExportOptions) -> Exported:
    """Write the engine `output`, with `output`.json and the ONNX graph beside it; with `onnx_only` the graph alone.

    Without a GPU that it is for, the `Parity` is that of the graph in onnxruntime, and the notes say so.

    Raises:
        ExportError: TensorRT for RTX is missing, or refuses the graph, its profile or a compute capability.
        CheckFailed: the engine is not in the asked precision, or it or the graph differs from the model.
        Interrupted: Ctrl-C during the build.
    """
    options = replace(options, opset=options.opset or OPSET)
    beside = output.with_suffix(".rtx.onnx")
    if options.onnx_only:
        made = trt_graph.export(model, beside, options)
        line = command_line(beside, output, signature_in(onnx.load(beside)), options)
        return replace(made, notes={**made.notes, "tensorrt_rtx": line})
    reason = missing()
    if reason is not None:
        raise ExportError(f"format trt-rtx {reason}; or add --onnx-only")
    import tensorrt_rtx

    refuse_unknown(tensorrt_rtx, options.compute_capabilities)
    with writing_file(output) as fresh:
        graph = fresh.with_name(beside.name)
        made = trt_graph.export(model, graph, options)
        sidecar = build(graph, fresh, signature_in(onnx.load(graph)), options)
        notes = {name: value for name, value in made.notes.items() if name != "nodes"}
        notes |= {"tensorrt": sidecar.tensorrt, "target": sidecar.target, "products": sidecar.products}
        parity = made.parity
        reason = not_run(tensorrt_rtx, options.compute_capabilities)
        if reason is not None:
            notes["engine"] = f"built, not run: {reason}"
            if parity is not None:
                notes["parity_of"] = f"{beside} in onnxruntime"
        elif options.verify:
            parity = check(EngineModel(tensorrt_rtx, fresh, sidecar), model, options)
        graph.replace(beside)
        sidecar.write(output)
    return Exported(output, parity, notes)


def command_line(graph: Path, output: Path, signature: Signature, options: ExportOptions) -> str:
    """The command of NVIDIA's SDK that builds the same engine."""
    words = ["tensorrt_rtx", f"--onnx={graph}", f"--saveEngine={output}"]
    words += Profile.of(signature, options).words(signature.input)
    if options.compute_capabilities:
        numbers = (target.replace(".", "") for target in options.compute_capabilities)
        words.append(f"--computeCapabilities={','.join(numbers)}")
    return " ".join([*words, "--skipInference"])


def known_targets(api: Any) -> dict[str, Any]:
    """The compute capabilities that this TensorRT for RTX builds for, such as `8.9`, and its names of them."""
    members = api.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}


def refuse_unknown(api: Any, targets: tuple[str, ...]) -> None:
    """Raise ExportError for a compute capability that engines can't be built for."""
    known = known_targets(api)
    for target in targets:
        if target not in known:
            here = f"TensorRT for RTX {api.__version__}"
            raise ExportError(f"{here} builds for compute capability {', '.join(known)}, not for {target}; {WITHOUT}")


def build(graph: Path, fresh: Path, signature: Signature, options: ExportOptions) -> Sidecar:
    """Build the engine of `graph` into `fresh`, and prove its precision: here of the network that was read, and where
    there is a GPU that it is for of the engine too."""
    import tensorrt_rtx

    making = EngineBuild(tensorrt_rtx, graph, signature, options)
    config: Any = making.config  # has what the other flavour's has not
    targets = tuple(dict.fromkeys(options.compute_capabilities))
    known = known_targets(tensorrt_rtx)
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(known[target], index)
    try:
        engine = making.build()
    except ExportError as error:
        if not targets:
            raise
        raise ExportError(f"{error}; {WITHOUT}") from None
    if not_run(tensorrt_rtx, targets) is None:
        making.prove(engine)
    fresh.write_bytes(engine)
    return making.sidecar(engine, ", ".join(targets) or PORTABLE)


def open_artifact(path: Path) -> EngineModel:
    """An engine by its path, with what stands beside it."""
    reason = cannot_run()
    if reason is not None:
        graph = path.with_suffix(".rtx.onnx")
        instead = f"; the graph it was built from can: {graph}" if graph.is_file() else ""
        raise ExportError(f"{path} can't be run here: it {reason}{instead}")
    import tensorrt_rtx

    return EngineModel(tensorrt_rtx, path, Sidecar.read(path))
