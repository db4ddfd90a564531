"""How one attention layer grows with the number of tokens: time and peak memory, castled and softmax.

    python benchmarks/layers.py      writes layers.md; about 5 minutes on two cores

A layer of DeiT-S (6 heads of 64), batch 1, random weights, on square grids of 1,025 to 16,385 tokens. The
machine should have nothing else to do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import castling_convert as cc
from castling_convert.analysis.analyze import castled_twin
from castling_convert.bench.bench import softmax_baseline_
from castling_convert.bench.cases import CASTLED, FUSED, PLAIN
from castling_convert.bench.layers import LayerLatency, Layers, write_layer
from castling_convert.bench.memory import peak_memory

TABLE = Path(__file__).with_suffix(".md")
MODEL, LAYER = "deit_small_patch16_224", "blocks.0.attn"
SIDES = (32, 45, 64, 90, 128)
RUNTIMES = ("onnx", "torch")
THREADS, SECONDS, ROUNDS, REPEATS = 2, 1.0, 5, 2


def exponent(tokens: list[int], values: list[float]) -> float:
    """The slope of log value over log tokens, by least squares."""
    return float(np.polyfit(np.log(tokens), np.log(values), 1)[0])


def layers_in(runtime: str) -> Layers:
    softmax: Any = softmax_baseline_(timm.create_model(MODEL))
    found = Layers(castled_twin(softmax, cc.Recipe.load("castling-fast")), softmax, LAYER, runtime, THREADS)
    if FUSED in found.layers:
        del found.layers[PLAIN]  # holds 6.4 GB of weights twice at 16,385 tokens, and is the slower one from 2,000 on
    return found


def peaks() -> dict[str, list[int]]:
    """Bytes in onnxruntime, by variant."""
    found: dict[str, list[int]] = {CASTLED: [], FUSED: []}
    layers = layers_in("onnx")
    with tempfile.TemporaryDirectory() as folder:
        for side, variant in ((side, variant) for side in SIDES for variant in found):
            layer, file = layers.layers[variant], Path(folder) / "layer.onnx"
            if variant == CASTLED:
                layer.grid.height = layer.grid.width = side
            x = torch.zeros(1, 1 + side**2, layers.dim)
            with torch.no_grad():
                write_layer(layer, x, file)
            peak = peak_memory("onnx", file, THREADS, tuple(x.shape), "float32")
            if peak is None:
                raise SystemExit("peak memory is measured on Linux alone")
            found[variant].append(peak)
    return found


def main() -> None:
    tokens = [1 + side**2 for side in SIDES]
    rows = ["| | " + " | ".join(f"{n:,}" for n in tokens) + " | exponent |", "|---" * (len(tokens) + 2) + "|"]

    def add(title: str, values: list[float], exponents: list[float], shown: str) -> None:
        spread = f"{np.mean(exponents):.2f} [{min(exponents):.2f}, {max(exponents):.2f}]"
        spread = spread if len(exponents) > 1 else f"{exponents[0]:.2f}"
        rows.append(f"| {title} | " + " | ".join(format(value, shown) for value in values) + f" | {spread} |")

    for runtime in RUNTIMES:
        layers = layers_in(runtime)
        print(f"measuring in {runtime} ...", flush=True)
        sweeps: list[list[LayerLatency]] = [
            [layers.measure(side, side, SECONDS, ROUNDS) for side in SIDES] for _ in range(REPEATS)
        ]
        for kind in ("castled", "softmax"):
            times = [[getattr(one, kind) for one in sweep] for sweep in sweeps]
            add(f"{runtime}, {kind}, ms", list(np.median(times, axis=0)), [exponent(tokens, t) for t in times], ".1f")
    print("measuring memory ...", flush=True)
    for variant, peak in peaks().items():
        values = [one / 1e6 for one in peak]
        add(f"onnx, {variant}, peak MB", values, [exponent(tokens, values)], ".0f")
    table = "\n".join(rows)
    TABLE.write_text(f"""# One attention layer against the number of tokens

DeiT-S, projections included, batch 1, float32, {THREADS} threads, random weights; the columns are tokens. Medians of
interleaved calls; the exponent is the slope of log time over log tokens from {tokens[0]:,} to {tokens[-1]:,}, the mean
of {REPEATS} sweeps and their range. softmax is the fastest there is in the runtime: in onnxruntime its own fused
operator, in torch the fused kernel. Memory is the peak of a process
of its own, beyond what the runtime itself takes. Made by `python benchmarks/layers.py`.

{table}
""")
    print(f"wrote {TABLE}")


if __name__ == "__main__":
    main()
