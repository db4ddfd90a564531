"""What `castling analyze` predicts before training against what `castling bench` measures of the bundle.

    python benchmarks/prediction.py            writes prediction.md; about 8 minutes on two cores
    python benchmarks/prediction.py --quick    one small case, into benchmarks/.cache; a smoke test

Both commands are run as a user runs them, each in a process of its own. The bundle's weights are random, other
ones than those of the prediction: latency does not depend on them. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch

import castling_convert as cc
from castling_convert.analysis.analyze import castled_twin
from castling_convert.bench.bench import softmax_baseline_
from castling_convert.loading import resolve_name

TABLE = Path(__file__).with_suffix(".md")
MODELS, RUNTIMES, THREADS = {"deit_s": (224, 1024), "vit_b": (224, 384)}, ("onnx",), 2
QUICK = {"deit_t": (224,)}


def castling(*words: object) -> Any:
    program = Path(sys.executable).with_name("castling")
    return json.loads(subprocess.run([program, *map(str, words)], stdout=subprocess.PIPE, check=True, text=True).stdout)


def make_bundle(model: str, path: Path) -> Path:
    torch.manual_seed(1)
    softmax = softmax_baseline_(timm.create_model(resolve_name(model)))
    return cc.save(castled_twin(softmax, cc.Recipe.load("castling-fast")), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small case, into benchmarks/.cache")
    quick = parser.parse_args().quick
    models, table = (QUICK, TABLE.parent / ".cache" / "prediction-quick.md") if quick else (MODELS, TABLE)
    rows, off = [], []
    for model, sizes in models.items():
        options: list[object] = ["--threads", THREADS, "--json"]
        options += [word for size in sizes for word in ("--image-size", size)]
        options += [word for runtime in RUNTIMES for word in ("--runtime", runtime)]
        print(f"{model}: analyze ...", flush=True)
        found = castling("analyze", "--model", model, "--recipe", "castling-fast", *options)
        predicted = {_key(case): (case, advice) for case, advice in zip(found["cases"], found["advice"], strict=True)}
        print(f"{model}: bench ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            measured = castling("bench", make_bundle(model, Path(folder) / "bundle"), *options, "--seconds", 5)
        for case in measured:
            before, advice = predicted[_key(case)]
            off.append(before["ratio"]["value"] / case["ratio"]["value"] - 1)
            runtime, _, (size, _), _ = _key(case)
            cells = [model, runtime, size, *(f"{one['ratio']['value']:.2f}" for one in (before, case))]
            rows.append([*cells, f"{off[-1]:+.1%}", advice["gain"]])
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    table.parent.mkdir(exist_ok=True)
    table.write_text(f"""# Predicted before training, measured after

Ratios, softmax over castled, of whole models of recipe `castling-fast` in float32, batch 1, {THREADS} threads: what
`castling analyze` predicts with random weights, and what `castling bench` then measures of a bundle with other ones,
each in a process of its own.
Largest difference: {max(map(abs, off)):.1%}. Made by `python benchmarks/prediction.py`.

| model | runtime | image | predicted | measured | difference | predicted gain |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}
""")
    print(f"wrote {table}")


def _key(case: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in case["case"].values())


if __name__ == "__main__":
    main()
