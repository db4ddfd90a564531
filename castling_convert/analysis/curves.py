"""The plots of a run: accuracy, losses, errors and masks over the steps."""

from __future__ import annotations

import math
from typing import Any

from .page import svg

FOLLOWED = {"top1": "top-1", "pixels": "right pixels", "f1": "F1 at IoU 0.5"}
"""What the tasks follow of a student beside its teacher."""
POINTS = 400
"""On a line: one of every step would be mostly noise, and megabytes."""
KINDS = ("losses", "layer_losses", "density")


def curves(steps: list[dict[str, Any]]) -> str:
    """Accuracy, losses, per-layer attention error and mask density over the steps, as inline SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    if not steps:
        return ""
    probed = [(step["step"], step["probe"]) for step in steps if "probe" in step]
    each = math.ceil(len(steps) / POINTS)
    steps = averaged(steps, each)
    of_each = f", means of {each} steps" if each > 1 else ""
    at = [step["step"] for step in steps]
    figure = Figure(figsize=(9, 13), layout="constrained")
    axes = figure.subplots(4, 1, sharex=True)
    accuracy, losses, errors, density = axes
    for name, label in (
        *((key, f"castled, {word}") for key, word in FOLLOWED.items()),
        ("agreement", "agreement with the teacher"),
    ):
        points = [(step, probe[name]) for step, probe in probed if name in probe]
        if points:
            accuracy.plot(*zip(*points, strict=True), marker=".", label=label)
    for key, word in FOLLOWED.items():
        if probed and f"teacher_{key}" in probed[0][1]:
            accuracy.axhline(probed[0][1][f"teacher_{key}"], color="black", ls="--", lw=1, label=f"teacher, {word}")
    accuracy.set(title="masks closed, on a part of the validation images", ylabel="%")
    for name in ("attention", "logits", "features"):
        points = [(step["step"], step["losses"][name]) for step in steps if name in step["losses"]]
        if points:
            losses.plot(*zip(*points, strict=True), label=name, lw=1)
    losses.set(title=f"losses on the training batches{of_each}", yscale="log")
    layers = list(steps[-1]["density"])
    colours = matplotlib.colormaps["viridis"].resampled(max(len(layers), 2))
    for index, layer in enumerate(layers):
        errors.plot(at, [step["layer_losses"][layer] for step in steps], color=colours(index), label=layer, lw=1)
        density.plot(at, [step["density"][layer] for step in steps], color=colours(index), label=layer)
    errors.set(
        title=f"attention output of each layer: squared error over the teacher's variance{of_each}", yscale="log"
    )
    for axis in (losses, errors):
        axis.set_ylim(bottom=max(1e-4, axis.get_ylim()[0]))  # an open mask has no error but rounding
    closed = all(not any(step["density"].values()) for step in steps)
    title = "mask density: share of softmax entries kept" + (" (closed from the first step on)" if closed else "")
    density.set(title=title, ylim=(-0.02, 1.02), xlabel="step")
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small", ncols=3)
    return f"<h2>The run</h2>{svg(figure)}"


def averaged(steps: list[dict[str, Any]], each: int) -> list[dict[str, Any]]:
    """The means over every `each` steps, at the last of them; of a loss over those that have it."""
    found = []
    for first in range(0, len(steps), each):
        part = steps[first : first + each]
        means: dict[str, Any] = {"step": part[-1]["step"]}
        for kind in KINDS:
            names = dict.fromkeys(name for step in part for name in step[kind])
            values = {name: [step[kind][name] for step in part if name in step[kind]] for name in names}
            means[kind] = {name: sum(listed) / len(listed) for name, listed in values.items()}
        found.append(means)
    return found
