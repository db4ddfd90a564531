"""Plots of latency against tokens."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError
from ..files import writing_file
from .cases import CASTLED, Result

FORMATS = (".svg", ".png")


def check_format(path: Path) -> None:
    """Raise OutputError for a file name that no plot can be written to."""
    if path.suffix not in FORMATS:
        raise OutputError(f"--plot {path}: give a name that ends in {' or '.join(FORMATS)}")


def crossover(tokens: list[int], ratios: list[float]) -> float | None:
    """The number of tokens from which on castling is faster, between two that were measured; None where
    the ratio does not rise through 1, or falls below it again."""
    logs = np.log(ratios)
    if logs[-1] < 0:
        return None
    for left in reversed(range(len(tokens) - 1)):
        if logs[left] < 0 <= logs[left + 1]:
            share = -logs[left] / (logs[left + 1] - logs[left])
            first, last = np.log(tokens[left]), np.log(tokens[left + 1])
            return float(np.exp(first + share * (last - first)))
    return None


def latency_figure(results: list[Result]) -> Any:
    """Latency of both models against tokens, a colour for each runtime, precision and batch, crossovers marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    def key(result: Result) -> str:
        return f"{result.case.runtime} {result.case.precision}, batch {result.case.batch}"

    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for index, (title, group) in enumerate(groupby(sorted(results, key=lambda r: (key(r), r.tokens)), key=key)):
        found = list(group)
        tokens, colour = [result.tokens for result in found], f"C{index}"
        castled = [result.latency[CASTLED].median for result in found]
        softmax = [result.latency[result.baseline].median for result in found]
        axis.plot(tokens, castled, color=colour, marker="o", label=f"castled, {title}")
        axis.plot(tokens, softmax, color=colour, marker="s", ls="--", label=f"softmax, {title}")
        at = crossover(tokens, [result.ratio.value for result in found])
        if at is not None:
            axis.axvline(at, color=colour, lw=1, ls=":", label=f"even at {at:.0f} tokens")
    axis.set(xlabel="tokens", ylabel="ms a call, median", xscale="log", yscale="log")
    shown = sorted({result.tokens for result in results})
    axis.set_xticks(shown, labels=[f"{tokens:,}" for tokens in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def plot_latency(results: list[Result], path: Path) -> None:
    """Write `latency_figure` to `path`, in the format that its name ends in."""
    figure = latency_figure(results)
    with writing_file(path) as fresh:
        figure.savefig(fresh, format=path.suffix[1:], dpi=150)
