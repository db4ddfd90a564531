"""One attention layer by itself, softmax against castled, in a runtime and at any number of tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..artifact.options import ExportOptions
from ..artifact.prepare import prepare
from ..data.probe import probe_images
from ..distillation.losses import tap
from ..families import family_of
from .bench import baseline_of, variants
from .cases import CASTLED
from .latency import interleave
from .plot import crossover
from .runtimes import torch_threads

SIDES = (5, 7, 10, 14, 20, 28, 40, 56)
"""Of the square grids at which the break-even is looked for."""
CLEAR = 1.1
"""A ratio that, found at two lengths in a row, says that castling is ahead from there on."""


@dataclass(frozen=True)
class LayerLatency:
    """Milliseconds of one layer on one image, medians; `softmax` is the faster of its variants."""

    tokens: int
    softmax: float
    castled: float

    @property
    def ratio(self) -> float:
        return self.softmax / self.castled


@dataclass(frozen=True)
class BreakEven:
    """From how many `tokens` on a castled layer is faster; None where that is outside what was tried."""

    runtime: str
    num_heads: int
    head_dim: int
    tokens: float | None
    tried: list[LayerLatency]

    def __str__(self) -> str:
        first, last = self.tried[0], self.tried[-1]
        what = f"a layer of {self.num_heads} heads of {self.head_dim}"
        if self.tokens is not None:
            return f"{what} is faster castled from about {self.tokens:.0f} tokens on"
        if last.ratio < 1:
            return f"{what} is not faster castled at the longest length tried, {last.tokens} tokens"
        return f"{what} is faster castled at every length tried, from {first.tokens} tokens on"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Layers:
    """A layer of a model in all its variants as a runtime is given them, float32.

    Args:
        folded, softmax: the castled model and the one it was made of.
        name: of the layer in both, such as `blocks.0.attn`.
    """

    def __init__(self, folded: nn.Module, softmax: nn.Module, name: str, runtime: str, threads: int | None) -> None:
        from ..exporting.onnx_graph import CHANNELS_FIRST

        self.runtime, self.threads, self.name = runtime, threads, name
        layer = next(layer for layer in family_of(softmax).layers(softmax) if layer.name == name)
        self.prefix, self.dim = layer.prefix, layer.dim
        self.tokens, self.grid = layer.tokens, layer.grid
        self.models = {
            variant: prepare(
                model,
                ExportOptions(),
                fused=runtime == "torch",
                channels_first=CHANNELS_FIRST["fp32"] if runtime == "onnx" else None,
            ).model
            for variant, model in variants(folded, softmax, runtime).items()
        }
        self.layers: dict[str, Any] = {variant: model.get_submodule(name) for variant, model in self.models.items()}

    @property
    def any_length(self) -> bool:
        """Whether the layer can be given any grid of patches, and is not called in a way of its own."""
        return self.layers[CASTLED].reader is None

    def as_called(self, seconds: float, rounds: int) -> LayerLatency:
        """As the model calls it for one image."""
        if self.any_length:
            return self.measure(*self.grid, seconds, rounds)
        alone, x = {}, torch.empty(0)
        for variant, model in self.models.items():
            with tap(model, [self.name]) as seen, torch.no_grad():
                model(probe_images(model, 1))
            (x, *others), more = seen.inputs[self.name]
            alone[variant] = Alone(self.layers[variant], others, more)
        return self._timed(alone, x, self.tokens, seconds, rounds)

    def measure(self, height: int, width: int, seconds: float, rounds: int) -> LayerLatency:
        """On a grid of patches of that size."""
        castled = self.layers[CASTLED]
        castled.grid.height, castled.grid.width = height, width
        tokens = self.prefix + height * width
        x = torch.randn(1, tokens, self.dim, generator=torch.Generator().manual_seed(0))
        return self._timed(self.layers, x, tokens, seconds, rounds)

    def _timed(self, layers: dict[str, Any], x: torch.Tensor, tokens: int, seconds: float, rounds: int) -> LayerLatency:
        with tempfile.TemporaryDirectory() as folder, torch_threads(self.threads) as used, torch.no_grad():
            runs = {
                name: runnable(self.runtime, layer, x, used, Path(folder) / f"{index}.onnx")
                for index, (name, layer) in enumerate(layers.items())
            }
            times = interleave(runs, seconds, rounds)
        medians = {name: 1e3 * float(torch.tensor(values).median()) for name, values in times.items()}
        return LayerLatency(tokens, medians[baseline_of(medians)], medians[CASTLED])

    def break_even(self, seconds: float, rounds: int) -> BreakEven:
        """Longer and longer sequences, until castling is clearly ahead."""
        tried: list[LayerLatency] = []
        for side in SIDES:
            tried.append(self.measure(side, side, seconds, rounds))
            if len(tried) > 1 and all(one.ratio > CLEAR for one in tried[-2:]):
                break
        at = crossover([one.tokens for one in tried], [one.ratio for one in tried])
        layer = self.layers[CASTLED]
        return BreakEven(self.runtime, layer.num_heads, layer.head_dim, at, tried)


class Alone(nn.Module):
    """A layer as a module of one input and one output: all else that it is called with is fixed."""

    def __init__(self, layer: nn.Module, others: Sequence[Any], more: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer, self.others, self.more = layer, tuple(others), dict(more)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(x, *self.others, **self.more)
        return out[0] if isinstance(out, tuple) else out


def runnable(runtime: str, layer: nn.Module, x: torch.Tensor, threads: int, file: Path) -> Callable[[], object]:
    """`layer` on the tokens x, [B, N, C]; for onnxruntime and OpenVINO as a graph, which `file` is for."""
    if runtime == "torch":
        return partial(torch.no_grad()(layer), x)
    from ..exporting import onnx_graph, openvino_ir

    if runtime == "onnx":
        write_layer(layer, x, file)
        return partial(onnx_graph.OnnxModel(file, threads=threads).run, x.numpy())
    proto = onnx_graph.trace(layer, x, ExportOptions(opset=openvino_ir.OPSET), ("tokens", "out"))
    core: Any = import_module("openvino").Core()
    graph = core.read_model(proto.SerializeToString())
    return partial(core.compile_model(graph, "CPU", openvino_ir.hints("fp32", threads)), x.numpy())


def write_layer(layer: nn.Module, x: torch.Tensor, file: Path) -> None:
    """`layer` as an ONNX file for tokens of the shape of x, [B, N, C]."""
    import onnx

    from ..exporting.onnx_graph import trace

    onnx.save(trace(layer, x, ExportOptions(), ("tokens", "out")), file)
