"""Which of timm's models can be castled, layer by layer, and why the others can't: every name, walked.

    python benchmarks/coverage.py             every name, then docs/models.md
    python benchmarks/coverage.py 'swin*'     some of them, to the terminal

Each model is built on the meta device, at full size, and asked for its attention layers; nothing is computed. What it
finds is held against the list of names that `castling models` shows. A few minutes on one core.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import timm

from castling_convert.errors import CastlingError
from castling_convert.families import FAMILIES, family_of, reason_of, skeleton, timm_names

PAGE = Path(__file__).parent.parent / "docs" / "models.md"


def walked(name: str) -> tuple[int, Counter[str]]:
    """Of one model: how many layers can be castled, and how many stay for each reason."""
    model = skeleton(name).eval()
    layers = family_of(model, name).layers(model)
    return sum(layer.castable for layer in layers), Counter(layer.reason for layer in layers if layer.reason)


def page(found: dict[str, tuple[int, Counter[str]]], refused: dict[str, str], minutes: float) -> str:
    lines = [
        "# Models",
        "",
        f"Made by `python benchmarks/coverage.py` with timm {timm.__version__}: every name of its registry, built and "
        f"walked in {minutes:.0f} minutes. **{len(found)} of {len(found) + len(refused)} can be castled.** The names: "
        "`castling models`; the refused ones with their reasons: `castling models --refused`; the layers of one: "
        "`castling inspect --model NAME --no-pretrained`.",
        "",
        "| family | timm modules | names | layers castled | layers that stay, and why |",
        "|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        names = [name for name in found if module_of(name) in family.timm_modules]
        castled = sum(found[name][0] for name in names)
        kept: Counter[str] = sum((found[name][1] for name in names), Counter())
        why = "; ".join(f"{count}: {reason}" for reason, count in sorted(kept.items()))
        lines.append(
            f"| {family.title} | {', '.join(family.timm_modules)} | {len(names)} | {castled} | {why or 'none'} |"
        )
    lines += ["", "## What becomes of their attention", ""]
    for family in FAMILIES:
        about = (inspect.getmodule(type(family)).__doc__ or "").strip()  # type: ignore[union-attr]
        lines += [f"### {family.title}", "", about, ""]
    lines += ["## Refused", "", "| names | why | of timm's modules |", "|---|---|---|"]
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, why in refused.items():
        by_reason[why].append(name)
    for why, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        modules = ", ".join(sorted({module_of(name) for name in names}))
        lines.append(f"| {len(names)} | {why} | {modules} |")
    return "\n".join(lines) + "\n"


def module_of(name: str) -> str:
    return timm.models.model_entrypoint(name).__module__.removeprefix("timm.models.")


def main() -> int:
    pattern = sys.argv[1] if len(sys.argv) > 1 else "*"
    started, wrong = time.monotonic(), []
    found: dict[str, tuple[int, Counter[str]]] = {}
    refused: dict[str, str] = {}
    for name in timm_names(pattern):
        why = reason_of(name)
        if why is not None:
            refused[name] = why
            continue
        try:
            found[name] = walked(name)
        except CastlingError as error:
            wrong.append(f"{name}: {error}")
            continue
        if not found[name][0]:
            wrong.append(f"{name}: it is listed, and nothing of it can be castled")
        print(f"{name}: {found[name][0]} castled, {found[name][1].total()} stay", flush=True)
    for line in wrong:
        print(f"WRONG {line}")
    print(f"{len(found)} can be castled, {len(refused)} are refused, {len(wrong)} are wrong")
    if pattern == "*" and not wrong:
        PAGE.write_text(page(found, refused, (time.monotonic() - started) / 60), encoding="utf-8")
        print(f"wrote {PAGE}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
