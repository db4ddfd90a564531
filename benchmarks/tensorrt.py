"""Softmax against castled DeiT-S in TensorRT, engine against engine, in both flavours where they are installed.

    python benchmarks/tensorrt.py             fp16 and int8, 224 to 1024 pixels, batch 1 and 16
    python benchmarks/tensorrt.py --layers    the layers alone, of all recipes and precisions at 224 pixels, batch 1
    python benchmarks/tensorrt.py --quick     one small case

Prints a table: the layers of the network as the parser made it (of them those that give whole numbers, and the casts
between floating types), bytes of the engine, seconds of export and build. Where an engine can be run, its latency too,
the two in turn, host to host, and their ratio (above 1 castled is faster). Where it can't, the table says so. Weights
are random; int8 is quantised for latency alone.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import onnx
import timm
import torch

import castling_convert as cc
from castling_convert.analysis.analyze import castled_twin
from castling_convert.artifact.options import ExportOptions
from castling_convert.artifact.runner import Runner
from castling_convert.bench.bench import softmax_baseline_
from castling_convert.bench.latency import Latency, interleave, ratio
from castling_convert.data.probe import probe_images
from castling_convert.exporting import FORMATS
from castling_convert.exporting.trt_engine import (
    EngineBuild,
    count_layers,
    gpu,
    read_graph,
    signature_in,
    version_of,
)

FLAVOURS = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}
RECIPES = ("castling", "castling-fast")
SECONDS = 5


def layers_in(flavour: str, graph: Path, options: ExportOptions) -> dict[str, int]:
    """Of the network that a flavour's parser makes of `graph`."""
    signature = signature_in(onnx.load(graph, load_external_data=False))
    return count_layers(EngineBuild(import_module(FLAVOURS[flavour]), graph, signature, options).network)


def layers_of_torchs(model: Any, precision: str) -> dict[str, int]:
    """Of the graph that `torch.onnx.export` makes by itself of timm's model at a fixed batch."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    model = copy.deepcopy(model).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        torch.onnx.export(model, (probe_images(model, 1).to(dtype),), graph, dynamo=True, verbose=False)
        read = read_graph(import_module(FLAVOURS["trt-rtx"]), graph)
        return count_layers(read.network)


def count_alone(models: dict[str, Any], precisions: tuple[str, ...]) -> None:
    """Print the layers of every model, without building anything."""
    print("| precision | model | layers | integer | casts | times softmax | times fp32 |")
    print("|---" * 7 + "|")
    totals: dict[tuple[str, str], int] = {}
    for precision in ("fp32", "fp16"):
        counts = layers_of_torchs(models["softmax"], precision)
        row = [precision, "softmax, by torch.onnx.export"] + [
            f"{counts[kind]:,}" for kind in ("all", "integer", "casts")
        ]
        print("| " + " | ".join([*row, "", ""]) + " |", flush=True)
    for precision, (name, model) in product(precisions, models.items()):
        options = ExportOptions.make(precision=precision, batch=1, verify=False, latency_only=True, onnx_only=True)
        with tempfile.TemporaryDirectory() as folder:
            graph = FORMATS["trt-rtx"].exporter.export(model, Path(folder) / "model.rtxplan", options).artifact
            counts = layers_in("trt-rtx", graph, options)
        totals[precision, name] = counts["all"]
        ratios = [f"{counts['all'] / totals[other]:.2f}" for other in ((precision, "softmax"), (precisions[0], name))]
        row = [precision, name, *(f"{counts[kind]:,}" for kind in ("all", "integer", "casts")), *ratios]
        print("| " + " | ".join(row) + " |", flush=True)


def one_case(flavour: str, models: dict[str, Any], options: ExportOptions) -> None:
    """Print a row for every model."""
    exporter = FORMATS[flavour].exporter
    rows, runs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            path = Path(folder) / f"{len(rows)}{FORMATS[flavour].suffix}"
            started = time.perf_counter()
            exporter.export(model, path, options)
            seconds = time.perf_counter() - started
            (graph,) = Path(folder).glob(f"{path.stem}.*.onnx")
            counts = layers_in(flavour, graph, options)
            rows[name] = [f"{counts[kind]:,}" for kind in ("all", "integer", "casts")]
            rows[name] += [f"{path.stat().st_size / 1e6:.1f}", f"{seconds:.0f}"]
            if exporter.cannot_run() is None:
                runs[name] = a_call(exporter.open_artifact(path), model, options)
        latency = measured(runs)
    for name, row in rows.items():
        size = f"{options.image_size[0]}²" if options.image_size else ""
        print("| " + " | ".join([flavour, options.precision, size, options.batch, name, *row, *latency(name)]) + " |")


def a_call(run: Runner, model: Any, options: ExportOptions) -> Callable[[], object]:
    """One batch through an engine, from host memory to host memory."""
    images = probe_images(model, 1, size=options.image_size).repeat(int(options.batch), 1, 1, 1)
    return partial(run.run, run.signature.inputs(images).numpy())


def measured(runs: dict[str, Callable[[], object]]) -> Callable[[str], list[str]]:
    """What there is to say of each model's latency."""
    if not runs:
        return lambda name: ["not run", ""]
    times = interleave(runs, SECONDS)
    return lambda name: [f"{Latency.of(times[name]).median:.2f}", str(ratio(times["softmax"], times[name]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case")
    parser.add_argument("--layers", action="store_true", help="count the layers alone")
    arguments = parser.parse_args()
    quick = arguments.quick
    # Python looks in this folder first, and this file has the package's name.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]
    sizes, batches, precisions = ((224,), (1,), ("fp16",)) if quick else (
        (224, 384, 512, 768, 1024), (1, 16), ("fp16", "int8")
    )  # fmt: skip
    softmax: Any = softmax_baseline_(
        timm.create_model("deit_tiny_patch16_224", depth=2) if quick else timm.create_model("deit_small_patch16_224")
    )
    torch.manual_seed(0)
    recipes = ("castling", "castling-window", "castling-fast") if arguments.layers else RECIPES
    models = {"softmax": softmax} | {name: castled_twin(softmax, cc.Recipe.load(name)) for name in recipes}
    if arguments.layers:
        count_alone(models, ("fp32", "fp16", "int8"))
        return
    here = []
    for flavour, module in FLAVOURS.items():
        reason = FORMATS[flavour].exporter.missing()
        if reason is not None:
            print(f"{flavour}: not built: it {reason}\n")
            continue
        here.append(flavour)
        cannot_run = FORMATS[flavour].exporter.cannot_run()
        where = f"run on {gpu()}" if cannot_run is None else f"built, not run: it {cannot_run}"
        print(f"{flavour}: TensorRT {version_of(import_module(module))}, {where}\n")
    print("| flavour | precision | pixels | batch | model | layers | integer | casts | MB | build s | ms | ratio |")
    print("|---" * 12 + "|")
    for flavour, precision, size, batch in product(here, precisions, sizes, batches):
        options = ExportOptions.make(
            precision=precision, batch=batch, image_size=(size, size), verify=False, latency_only=True
        )
        one_case(flavour, models, options)


if __name__ == "__main__":
    main()
