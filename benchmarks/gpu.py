"""Latency of castled against softmax DeiT-S in torch on a GPU, in float16.

    python benchmarks/gpu.py             224 to 2048 pixels, eager, and compiled at 1024; then gpu.md
    python benchmarks/gpu.py --quick     two small cases on a shallow model, printed

Batches come to the GPU beforehand and every model is one CUDA graph, so that neither copies nor launches are measured.
The softmax model runs torch's fused attention (FlashAttention). Compiled, every block is,
by `torch.compile`. Weights are random, all models of a case are measured in turn, in one process. The GPU should have
nothing else to do. About three minutes.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

import castling_convert as cc
from castling_convert.analysis.analyze import castled_twin
from castling_convert.bench.bench import softmax_baseline_
from castling_convert.bench.latency import Latency, interleave, ratio

TABLE = Path(__file__).parent / "gpu.md"
RECIPES = ("castling", "castling-window", "castling-fast")
CASES = (
    *(("eager", size, batch) for batch, sizes in ((1, (224, 512, 1024, 1536, 2048)), (16, (224, 512, 1024)))
      for size in sizes),
    ("compiled", 1024, 1), ("compiled", 1024, 16), ("compiled", 512, 16),
)  # fmt: skip
SECONDS = 1.5


def as_graph(model: Any, images: Tensor) -> Callable[[], None]:
    """A call of `model` on `images` as one CUDA graph; returns when it is over."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is chosen or compiled at the first call is not captured
            model(images)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(images)

    def call(_alive: object = (model, images)) -> None:  # the graph reads their memory
        graph.replay()
        torch.cuda.synchronize()

    return call


@torch.inference_mode()
def one_case(models: dict[str, Any], how: str, size: int, batch: int, seconds: float) -> list[str]:
    """A row of the table."""
    images = torch.randn(batch, 3, size, size, device="cuda", dtype=torch.float16)
    calls = {}
    for name, model in models.items():
        resized = copy.deepcopy(model)
        resized.set_input_size((size, size))
        resized = resized.to("cuda", torch.float16)
        if how == "compiled":
            torch.compiler.reset()  # or the limit of versions of one function is reached
            for block in resized.blocks:
                block.compile(dynamic=False)
        calls[name] = as_graph(resized, images)
    times = interleave(calls, seconds)
    tokens = (size // 16) ** 2
    row = [how, str(size), str(batch), f"{tokens:,}", f"{Latency.of(times['softmax']).median:.2f}"]
    for name in RECIPES:
        row += [f"{Latency.of(times[name]).median:.2f}", str(ratio(times["softmax"], times[name]))]
    return row


def markdown(rows: list[list[str]]) -> str:
    head = ["", "pixels", "batch", "tokens", "softmax, ms"]
    for name in RECIPES:
        head += [f"{name}, ms", "ratio"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small cases, printed")
    quick = parser.parse_args().quick
    if not torch.cuda.is_available():
        sys.exit("no GPU that torch can use: nothing to measure")
    torch.manual_seed(0)
    plain = timm.create_model("deit_small_patch16_224", **({"depth": 2} if quick else {}))
    softmax: Any = softmax_baseline_(plain)
    models = {"softmax": softmax} | {name: castled_twin(softmax, cc.Recipe.load(name)) for name in RECIPES}
    cases = (("eager", 224, 1), ("compiled", 224, 1)) if quick else CASES
    rows = []
    for case in cases:
        started = time.perf_counter()
        rows.append(one_case(models, *case, 0.2 if quick else SECONDS))
        print(" | ".join(rows[-1]), f"({time.perf_counter() - started:.0f} s)", flush=True)
        torch.cuda.empty_cache()
    text = f"""# Latency of DeiT-S in torch on a GPU

{torch.cuda.get_device_name()}, torch {torch.__version__}, float16, one CUDA graph a call, random weights,
medians of interleaved calls. Ratios are softmax, with fused attention, over castled: above 1 castling is faster; in
brackets the 95 % bootstrap interval. Compiled is `torch.compile` of every block, of the softmax model too.
Made by `python benchmarks/gpu.py`.

{markdown(rows)}
"""
    print(text)
    if not quick:
        TABLE.write_text(text)


if __name__ == "__main__":
    main()
