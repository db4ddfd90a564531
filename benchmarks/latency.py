"""Latency of castled against softmax DeiT-S, by resolution and runtime.

    python benchmarks/latency.py             every case, then latency.md
    python benchmarks/latency.py --table     latency.md from the cases that are there

Weights are random: latency does not depend on them. Every case is one interleaved run in a process of its
own, as `castling bench` makes it, and one line of `latency.jsonl`; an interrupted table goes on where it
stopped. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch

import castling_convert as cc
from castling_convert.analysis.bench import random_weights_
from castling_convert.bundle import versions
from castling_convert.castle import close_masks

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "latency.jsonl", HERE / "latency.md"
MODEL = "deit_small_patch16_224"
SIZES = (224, 384, 512, 768, 1024)
RUNS = (("onnx", "fp32"), ("openvino", "fp32"), ("torch", "fp32"))
THREADS, SECONDS = 2, 15


def make_bundle(folder: Path) -> Path:
    torch.manual_seed(0)
    student = cc.castle(random_weights_(timm.create_model(MODEL)))
    close_masks(student)
    return cc.save(cc.fold(student), folder / "bundle")


def read() -> dict[tuple[str, str, int], dict[str, Any]]:
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    found = map(json.loads, lines)
    return {(r["case"]["runtime"], r["case"]["precision"], r["case"]["image_size"][0]): r for r in found}


def measure() -> None:
    todo = [(runtime, precision, size) for (runtime, precision), size in product(RUNS, SIZES)]
    todo = [case for case in todo if case not in read()]
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder))
        for runtime, precision, size in todo:
            program = Path(sys.executable).with_name("castling")
            command = [program, "bench", bundle, "--runtime", runtime, "--precision", precision, "--image-size", size]
            command += ["--threads", THREADS, "--seconds", SECONDS, "--json"]
            done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True, text=True)
            (result,) = json.loads(done.stdout)
            with RESULTS.open("a") as file:
                file.write(json.dumps(result) + "\n")


def page() -> str:
    found = read()
    rows = []
    for (runtime, precision), size in product(RUNS, SIZES):
        result = found.get((runtime, precision, size))
        if result is None:
            continue
        latency, ratio = result["latency"], result["ratio"]
        castled, plain = latency["castled"]["median"], latency["softmax"]["median"]
        fused = latency.get("softmax, fused attention")
        interval = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        cells = [f"{runtime} {precision}", size, result["tokens"], f"{castled:.1f}", f"{plain:.1f}"]
        cells += [f"{fused['median']:.1f}" if fused else "", interval, f"{plain / castled:.2f}"]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    software = ", ".join(
        f"{name} {version}" for name, version in versions().items() if name in ("torch", "onnxruntime")
    )
    return (
        f"""# Latency of DeiT-S

Batch 1, {THREADS} threads, medians of interleaved calls. The ratio is softmax over castled: above 1 castling is
faster; in brackets its 95 % bootstrap interval. It is taken to the fastest softmax graph there is: in onnxruntime
the better of the plain export and one with onnxruntime's own fused attention operator, in torch the fused kernel.
Made by `python benchmarks/latency.py`.

{_processor()}, {os.cpu_count()} cores; {software}; {platform.system()}.

| runtime | image | tokens | castled, ms | softmax, ms | softmax, fused, ms | ratio to the faster | to the plain |
|---|---|---|---|---|---|---|---|
"""
        + "\n".join(rows)
        + "\n"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(": ")[2] for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only write the table")
    if not parser.parse_args().table:
        measure()
    TABLE.write_text(page())
    print(f"wrote {TABLE}")


if __name__ == "__main__":
    main()
