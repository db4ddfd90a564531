"""What the two TensorRTs share: an engine built from an ONNX graph, what stands beside it, and running it.

`tensorrt` (format trt) and `tensorrt_rtx` (format trt-rtx) are modules with the same names in them. An engine takes
its precision from the graph's own types (a strongly typed network); there are no builder flags for it.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import onnx
import torch
from rich.console import Console

from ..artifact.options import ExportOptions
from ..artifact.precision import DEFAULT
from ..artifact.runner import PRECISION, SIGNATURE, Runner
from ..artifact.signature import Signature
from ..errors import ExportError, Interrupted
from ..files import sha256, writing_file
from .trt_precision import prove_engine, prove_network

if TYPE_CHECKING:
    import tensorrt

OPSET = 20
"""Every parser from 10.12 on reads it; the norms of q and k are several nodes then, which TensorRT fuses."""


class Api(Protocol):
    """The names of a TensorRT module that are used."""

    Builder: type[tensorrt.Builder]
    BuilderFlag: type[tensorrt.BuilderFlag]
    ILogger: type[tensorrt.ILogger]
    IProgressMonitor: type[tensorrt.IProgressMonitor]
    LayerInformationFormat: type[tensorrt.LayerInformationFormat]
    NetworkDefinitionCreationFlag: type[tensorrt.NetworkDefinitionCreationFlag]
    OnnxParser: type[tensorrt.OnnxParser]
    ProfilingVerbosity: type[tensorrt.ProfilingVerbosity]
    Runtime: type[tensorrt.Runtime]

    def __hash__(self) -> int: ...


def version_of(api: Any) -> str:
    """`__version__`, which mypy does not look for in a module that has to meet a protocol."""
    return api.__version__


def gpu() -> str | None:
    """The name of the GPU that torch uses, None where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def capability() -> str:
    """The compute capability of that GPU, such as `8.9`."""
    return "{}.{}".format(*torch.cuda.get_device_capability())


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

    def words(self, name: str) -> list[str]:
        """Options of NVIDIA's command lines for the input `name`; none where its shape is fixed."""
        if self.smallest == self.largest:
            return []
        shapes = (("min", self.smallest), ("opt", self.best), ("max", self.largest))
        return [f"--{which}Shapes={name}:{'x'.join(map(str, shape))}" for which, shape in shapes]


@dataclass(frozen=True)
class Sidecar:
    """What an engine file can't say of itself.

    Attributes:
        tensorrt: the version it was built by, which alone can run it.
        target: the GPU, or the compute capabilities, that it is for.
        products: how many products of matrices and convolutions are in each precision.
        profile: the shapes of the input, smallest, best and largest, batch first.
        onnx_sha256, engine_sha256: of the graph it was built from, and of the engine.
        metadata: of that graph.
    """

    tensorrt: str
    target: str
    precision: str
    products: dict[str, int]
    profile: dict[str, list[int]]
    onnx_sha256: str
    engine_sha256: str
    metadata: dict[str, str]

    def write(self, path: Path) -> None:
        with writing_file(beside(path)) as fresh:
            fresh.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        try:
            return cls(**json.loads(beside(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise ExportError(
                f"{beside(path)}, which belongs to {path}, is missing or damaged; export it again"
            ) from None


def beside(path: Path) -> Path:
    """Where the sidecar of an engine is."""
    return path.with_name(path.name + ".json")


def signature_in(proto: onnx.ModelProto) -> Signature:
    """What the exporter says in the graph of its input and output."""
    return Signature.from_json({entry.key: entry.value for entry in proto.metadata_props}[SIGNATURE])


class EngineBuild:
    """A graph that was read and whose precision is proven, and the builder's `config` for it, which a flavour adds its
    own to before `build`.

    Raises:
        ExportError: TensorRT refuses the graph or the profile; in its own words.
        CheckFailed: the network that it read is not in the asked precision.
    """

    def __init__(self, api: Api, graph: Path, signature: Signature, options: ExportOptions) -> None:
        self.api, self.graph, self.precision = api, graph, options.precision
        self.proto = onnx.load(graph)
        self.log = listener(api)
        self.log.said.clear()
        self.builder, self.network, self.parser = read_graph(api, graph)
        self.products = prove_network(self.network, self.proto, options.precision)
        self.config = self.builder.create_builder_config()
        self.config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
        if options.precision == DEFAULT:
            self.config.clear_flag(api.BuilderFlag.TF32)  # ten bits of mantissa are not what fp32 parity allows
        self.profile = Profile.of(signature, options)
        if self.profile.smallest != self.profile.largest:
            shapes = self.builder.create_optimization_profile()
            shapes.set_shape(signature.input, *asdict(self.profile).values())
            if self.config.add_optimization_profile(shapes) < 0:
                raise self._refusal()
        self.monitor = _monitor(api, options.console)
        self.config.progress_monitor = self.monitor

    def build(self) -> bytes:
        """The serialised engine.

        Raises:
            ExportError: TensorRT can't build it; in its own words.
            Interrupted: Ctrl-C.
        """
        with _interrupts_noted(self.monitor):
            engine = self.builder.build_serialized_network(self.network, self.config)
        if self.monitor.cancelled:
            raise Interrupted("interrupted while TensorRT was building; nothing was written")
        if engine is None:
            raise self._refusal()
        return bytes(engine)

    def prove(self, engine: bytes) -> None:
        """Hold the engine's layers, as its inspector has them, against the graph's products. Needs the GPU.

        Raises:
            ExportError: the engine can't be read here. CheckFailed: it is not in the asked precision.
        """
        inspector = load(self.api, engine, self.graph.name).create_engine_inspector()
        layers = json.loads(inspector.get_engine_information(self.api.LayerInformationFormat.JSON))["Layers"]
        prove_engine(layers, self.proto, self.precision)

    def sidecar(self, engine: bytes, target: str) -> Sidecar:
        return Sidecar(
            tensorrt=version_of(self.api),
            target=target,
            precision=self.precision,
            products=self.products,
            profile={name: list(shape) for name, shape in asdict(self.profile).items()},
            onnx_sha256=sha256(self.graph),
            engine_sha256=hashlib.sha256(engine).hexdigest(),
            metadata={entry.key: entry.value for entry in self.proto.metadata_props},
        )

    def _refusal(self) -> ExportError:
        return ExportError(f"TensorRT can't build an engine of {self.graph.name}: {self.log.words()}")


class Read(NamedTuple):
    """A graph in a network, which lives as long as all three do: the parser keeps the weights."""

    builder: Any
    network: Any
    parser: Any


def read_graph(api: Api, graph: Path) -> Read:
    """`graph` in a new strongly typed network.

    Raises:
        ExportError: as `parse`.
    """
    builder = api.Builder(listener(api))
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, listener(api))
    parse(parser, graph)
    return Read(builder, network, parser)


def parse(parser: tensorrt.OnnxParser, graph: Path) -> None:
    """Read `graph` into the parser's network.

    Raises:
        ExportError: TensorRT refuses it; the node, and what is wrong with it, in its own words.
    """
    if parser.parse_from_file(str(graph)):
        return
    error = parser.get_error(0) if parser.num_errors else None
    if error is None:
        raise ExportError(f"TensorRT can't read {graph.name} and does not say why")
    said = f"{error.code().name} in {error.func()}: {one_line(error.desc())}"
    if error.node_name():
        said = f"{error.node_operator()} {error.node_name()}: {said}; try another --opset, or report this model"
    raise ExportError(f"TensorRT can't read {graph.name}: {said}")


def count_layers(network: tensorrt.INetworkDefinition) -> dict[str, int]:
    """The layers of a network as the parser made it: `all`, those that give whole numbers (`integer`: mostly the
    arithmetic of shapes, which the builder folds where they are fixed), and the `casts` between floating types."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    floating = [layer for layer in layers if layer.get_output(0).dtype.name not in ("INT32", "INT64")]
    casts = sum(layer.type.name == "CAST" for layer in floating)
    return {"all": len(layers), "integer": len(layers) - len(floating), "casts": casts}


def one_line(text: str) -> str:
    """TensorRT's message without what it adds on a machine without a driver, on one line."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip() and "catchCudaError" not in line)


@cache
def listener(api: Api) -> Any:
    """The logger of this process, which keeps the errors: TensorRT takes one, and ignores those that come later."""
    base: Any = api.ILogger

    class Listener(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(api.ILogger.Severity.ERROR):
                self.said.append(msg)

        def words(self) -> str:
            """The first error since the list was cleared."""
            return next(filter(None, map(one_line, self.said)), "it does not say why")

    return Listener()


def _monitor(api: Api, console: Console | None) -> Any:
    """TensorRT's progress on the console; `cancelled` ends the build at its next step."""
    base: Any = api.IProgressMonitor

    class Monitor(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.cancelled = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if console is not None and parent_phase is None:
                console.print(f"TensorRT: {phase_name} ({num_steps} steps)")

        def phase_finish(self, phase_name: str) -> None:
            """Nothing is shown for it."""

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not self.cancelled

    return Monitor()


@contextmanager
def _interrupts_noted(monitor: Any) -> Iterator[None]:
    """Ctrl-C, and what a scheduler sends, cancel the build. Raised inside a callback, as Python would do it, an
    interrupt is swallowed by TensorRT's bindings and the build goes on."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go elsewhere
        return

    def note(_signal: int, _frame: FrameType | None) -> None:
        monitor.cancelled = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def load(api: Api, engine: bytes, name: str) -> tensorrt.ICudaEngine:
    """An engine on the GPU.

    Raises:
        ExportError: TensorRT can't read it here; in its own words.
    """
    log = listener(api)
    log.said.clear()
    found = api.Runtime(log).deserialize_cuda_engine(engine)
    if found is None:
        raise ExportError(f"TensorRT can't read the engine of {name}: {log.words()}")
    return found


class EngineModel(Runner):
    """An engine on the GPU, through torch's memory.

    Raises:
        ExportError: another version of TensorRT built it, the file was changed, or TensorRT can't read it.
    """

    def __init__(self, api: Api, path: Path, sidecar: Sidecar) -> None:
        metadata = sidecar.metadata | {PRECISION: sidecar.precision}
        signature = Signature.from_json(metadata[SIGNATURE])
        smallest, largest = sidecar.profile["smallest"][0], sidecar.profile["largest"][0]
        super().__init__(signature, metadata, smallest if smallest == largest else None)
        self.smallest, self.largest = smallest, largest
        here = version_of(api)
        if here != sidecar.tensorrt:
            raise ExportError(f"{path} was built by TensorRT {sidecar.tensorrt}, here is {here}; export it again here")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sidecar.engine_sha256:
            raise ExportError(f"{path} is not the file that was written (truncated or edited); export it again")
        self.log = listener(api)
        self.engine = load(api, content, str(path))
        self.context = self.engine.create_execution_context()

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Batches larger than the profile allows are split, smaller ones filled up with the last row."""
        parts = []
        for start in range(0, len(values), self.largest):
            part = values[start : start + self.largest]
            missing = max(0, self.smallest - len(part))
            filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            parts.append(super().rows(filled)[: len(part)])
        return np.concatenate(parts)

    def run(self, values: np.ndarray) -> np.ndarray:
        stream = torch.cuda.current_stream()
        images = torch.from_numpy(np.ascontiguousarray(values)).cuda()
        if not self.context.set_input_shape(self.signature.input, tuple(images.shape)):
            raise ExportError(f"the engine takes no images {list(images.shape)}: {self.log.words()}")
        shape = self.context.get_tensor_shape(self.signature.output)
        output = torch.empty(
            [shape[axis] for axis in range(len(shape))], dtype=getattr(torch, self.signature.dtype), device="cuda"
        )
        self.context.set_tensor_address(self.signature.input, images.data_ptr())
        self.context.set_tensor_address(self.signature.output, output.data_ptr())
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise ExportError(f"TensorRT could not run the engine: {self.log.words()}")
        stream.synchronize()
        return output.float().cpu().numpy()
