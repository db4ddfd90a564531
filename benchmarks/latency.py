"""Latency of castled against softmax DeiT-S, by resolution, runtime and precision.

    python benchmarks/latency.py             every case that is not in latency.jsonl yet, then latency.md and .png
    python benchmarks/latency.py --anew      every case
    python benchmarks/latency.py --table     the page and the plot from the cases that are there
    python benchmarks/latency.py --quick     every runtime and precision at 224 pixels for a moment; a smoke test

Weights are random: latency does not depend on them. Every case is one interleaved run in a process of its
own, as `castling bench` makes it, and one line of `latency.jsonl`; an interrupted table goes on where it
stopped. The machine should have nothing else to do. About 70 minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from dense import latencies
from families import latencies as latencies_of_families
from families import read as runs_of_families
from torch import Tensor, nn

import castling_convert as cc
from castling_convert.analysis.analyze import castled_twin
from castling_convert.attention.angular import FoldedAngular
from castling_convert.bench.bench import measure, softmax_baseline_
from castling_convert.bench.cases import CASTLED, FUSED, PLAIN, Case, Result
from castling_convert.bench.fused import fuse_attention
from castling_convert.bench.latency import Latency, Ratio
from castling_convert.bench.plot import plot_latency
from castling_convert.bundle.versions import versions
from castling_convert.families import family_of

HERE = Path(__file__).parent
RESULTS, TABLE, PLOT = HERE / "latency.jsonl", HERE / "latency.md", HERE / "latency.png"
MODEL = "deit_small_patch16_224"
SIZES = (224, 384, 512, 768, 1024)
RUNS = (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8"), ("torch", "fp32"))
TARGETS = {
    ("onnx", "fp32"): (1.05, 1.20, 1.45, 2.0, 2.7),
    ("openvino", "fp32"): (1.15, 1.3, 1.5, 2.1, 2.8),
    ("openvino", "int8"): (1.15, 1.35, 1.55, 2.2, 3.0),
}
BEST_TARGETS = (2.4, 3, 3.5, 5, 6.5)
FREE, BARE, SINGLE = "attention left out", "castled attention without norms, mean and constant", "softmax fp32"
FORMS = ("castling", "castling-window")
"""Shipped recipes that are measured beside `castling-fast`, in the same run."""
THREADS, SECONDS = 2, 10


class Unmixed(nn.Module):
    """Attention without attention: all its linear layers, and v straight through. What no attention can beat."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.size = source.qkv, source.proj, source.num_heads * source.head_dim

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return self.proj(self.qkv(x)[..., 2 * self.size :])


class Bare(FoldedAngular):
    """The two products and the convolution, without which there is no castled attention, and nothing else of it:
    no norms of q and k, no centring, no constant. It computes nothing of use."""

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q @ (k.transpose(-2, -1) @ v * (self.head_scale / k.shape[-2]))

    def attend_channels_first(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        heads, d, size = self.num_heads, self.head_dim, self.num_heads * self.head_dim
        joint, v = self.channels(x, 2 * size, size)
        q, k = joint.reshape(B, 2 * heads, d, N).split(heads, 1)
        context = v.reshape(B, heads, d, N) @ k.transpose(-1, -2)
        y = ((context * (self.head_scale / N)) @ q).reshape(B, size, N)
        return (y + self.residual(v)).transpose(1, 2)


def bare(folded: Any) -> Any:
    model = copy.deepcopy(folded)
    for module in model.modules():
        if isinstance(module, FoldedAngular):
            module.__class__ = Bare
    return model


def without_attention(softmax: Any) -> Any:
    model, family = copy.deepcopy(softmax), family_of(softmax)
    for layer in family.layers(model):
        model.set_submodule(layer.name, Unmixed(family.projections(model, layer)))
    return model


def one_case(runtime: str, precision: str, size: int, seconds: float = SECONDS) -> Result:
    """Measured in this process."""
    torch.manual_seed(0)
    softmax: Any = softmax_baseline_(timm.create_model(MODEL))
    twin = castled_twin(softmax, cc.Recipe.load("castling-fast"))
    others = {name: (castled_twin(softmax, cc.Recipe.load(name)), precision) for name in FORMS}
    others |= {FREE: (without_attention(softmax), precision), BARE: (bare(twin), precision)}
    if precision != "fp32":
        others[SINGLE] = (fuse_attention(softmax) if runtime == "onnx" else softmax, "fp32")
    case = Case(runtime, precision, (size, size), 1)
    return measure(case, twin, softmax, threads=THREADS, seconds=seconds, trained=False, others=others)


def read() -> dict[tuple[str, str, int], Result]:
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    found = [_result(json.loads(line)) for line in lines]
    return {(r.case.runtime, r.case.precision, r.case.image_size[0]): r for r in found}


def _result(values: dict[str, Any]) -> Result:
    """The inverse of `Result.to_dict`."""
    case = Case(**values["case"] | {"image_size": tuple(values["case"]["image_size"])})
    latency = {name: Latency(**one) for name, one in values["latency"].items()}
    others = {name: Ratio(**one) for name, one in values["others"].items()}
    return Result(**values | {"case": case, "latency": latency, "ratio": Ratio(**values["ratio"]), "others": others})


def run() -> None:
    for (runtime, precision), size in product(RUNS, SIZES):
        if (runtime, precision, size) in read():
            continue
        print(f"measuring {runtime} {precision} at {size}x{size} ...", flush=True)
        words = [sys.executable, __file__, "--case", runtime, precision, str(size)]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
        with RESULTS.open("a") as file:
            file.write(done.stdout.splitlines()[-1] + "\n")


def page() -> str:
    """latency.md"""
    found = read()
    about = versions()
    about["openvino"] = version("openvino")
    software = ", ".join(f"{name} {about[name]}" for name in ("torch", "onnxruntime", "openvino"))
    return f"""# Latency of DeiT-S

Batch 1, {THREADS} threads, medians of interleaved calls, random weights. Ratios are softmax over castled: above 1
castling is faster; a column for each shipped recipe, all of one run, and for `castling-fast` in brackets the 95 %
bootstrap interval. The softmax model is the fastest there is in the same runtime and precision: in onnxruntime the
better of the plain export and one with onnxruntime's own fused attention operator, in OpenVINO the plain export, whose
attention OpenVINO fuses itself, in torch the fused kernel. int8 is against int8.
Made by `python benchmarks/latency.py --anew`.

{_processor()}, {os.cpu_count()} cores; {software}; {platform.system()}. Each line is one
run, some of another day: compare ratios between lines, not milliseconds.

![latency against tokens](latency.png)

{_table(found)}

*target* is what was aimed at. *bare* and *most* are ratios of medians to the same softmax model in the same run, as
uncertain as the others: *bare* of `castling-fast` without norms of q and k, centring and constant, so that all that is
left of its attention are the two products and the convolution; *most* of a model with all linear layers and **no
attention at all**. They say about what is within reach, *bare* of these graphs and *most* of any; where *bare* is near
a ratio or *target*, the intervals do not tell them apart.

## Dense models

A ViT-S/16 alone, and with the light heads of `segmenter` and `detector` (21 classes, upsampling to all pixels
included), onnxruntime fp32, the recipe `castling`. Made by `python benchmarks/dense.py --latency`.

{latencies()}

## Other families

{latencies_of_families(runs_of_families())}

Made by `python benchmarks/families.py --latency`.

## The best castled artifact against the softmax model in float32

int8 against the softmax model in fp32 with fused attention, in the same runtime and the same run.

{_best(found)}

## Where the rest of the time goes

Milliseconds of a call: what linear layers, norms and activations take alone, and what attention adds to it; of castled
attention also the two products and the convolution alone.

{_floor(found)}
"""


def _table(found: dict[tuple[str, str, int], Result]) -> str:
    head = ["runtime", "image", "tokens", "castling-fast, ms", "softmax, ms", "softmax, fused, ms"]
    rows = [[*head, "castling-fast", *FORMS, "target", "bare", "most", "peak memory, MB: castling-fast, softmax"]]
    for (runtime, precision), (index, size) in product(RUNS, enumerate(SIZES)):
        result = found.get((runtime, precision, size))
        if result is None:
            continue
        latency, target = result.latency, TARGETS.get((runtime, precision))
        reach = [
            f"{latency[result.baseline].median / latency[name].median:.2f}" if name in latency else ""
            for name in (*FORMS, BARE, FREE)
        ]
        rows.append(
            [
                f"{runtime} {precision}", f"{size}", f"{result.tokens}", f"{latency[CASTLED].median:.1f}",
                f"{latency[PLAIN].median:.1f}", f"{latency[FUSED].median:.1f}" if FUSED in latency else "",
                str(result.ratio), *reach[:2], f"{target[index]:.2f}" if target else "", *reach[2:],
                ", ".join(f"{result.memory[name] / 1e6:.0f}" for name in (CASTLED, result.baseline) if result.memory),
            ]
        )  # fmt: skip
    return _markdown(rows)


def _best(found: dict[tuple[str, str, int], Result]) -> str:
    head = ["runtime", "recipe", *(f"{size}" for size in SIZES)]
    rows = [head, ["target", "", *(f"{target:.1f}" for target in BEST_TARGETS)]]
    for runtime in ("onnx", "openvino"):
        results = [found.get((runtime, "int8", size)) for size in SIZES]
        rows.append([runtime, "castling-fast", *(str(result.others[SINGLE]) if result else "" for result in results)])
        for name in FORMS:
            medians = [result.latency if result else {} for result in results]
            ratios = [f"{m[SINGLE].median / m[name].median:.2f}" if name in m else "" for m in medians]
            rows.append([runtime, name, *ratios])
    return _markdown(rows)


def _floor(found: dict[tuple[str, str, int], Result]) -> str:
    rows = [["runtime", "image", "without attention", "castled adds", "products, convolution alone", "softmax adds"]]
    for (runtime, precision), size in product(RUNS, SIZES):
        result = found.get((runtime, precision, size))
        if result is not None:
            free, castled, softmax = (result.latency[name].median for name in (FREE, CASTLED, result.baseline))
            alone = f"{result.latency[BARE].median - free:.1f}" if BARE in result.latency else ""
            cells = (f"{free:.1f}", f"{castled - free:.1f}", alone, f"{softmax - free:.1f}")
            rows.append([f"{runtime} {precision}", f"{size}", *cells])
    return _markdown(rows)


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(": ")[2] for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anew", action="store_true", help="forget the cases that are there")
    parser.add_argument("--table", action="store_true", help="only write the page and the plot")
    parser.add_argument("--case", nargs=3, metavar=("RUNTIME", "PRECISION", "SIZE"), help="measure one and print it")
    parser.add_argument("--quick", action="store_true", help="the smallest size for a moment, printed")
    given = parser.parse_args()
    if given.quick:
        for runtime, precision in RUNS:
            result = one_case(runtime, precision, SIZES[0], seconds=1)
            print(f"{runtime} {precision}: {result.ratio}, " + ", ".join(f"{k} {v}" for k, v in result.others.items()))
        return
    if given.case is not None:
        runtime, precision, size = given.case
        print(json.dumps(one_case(runtime, precision, int(size)).to_dict()))
        return
    if given.anew:
        RESULTS.unlink(missing_ok=True)
    if not given.table:
        run()
    TABLE.write_text(page())
    plot_latency(list(read().values()), PLOT)
    print(f"wrote {TABLE} and {PLOT}")


if __name__ == "__main__":
    main()
