"""A bundle's report: one self-contained HTML file with its tables and plots."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import bundle
from ..bench.bench import bench
from ..bench.cases import CASTLED
from ..bench.plot import latency_figure
from ..data.probe import probe_images
from ..errors import BundleError, CastlingError
from ..families import family_of
from ..files import writing_file

LATENCY_SIZES = (1, 1.5, 2)
"""Image sizes of the latency plot, in the model's own."""
MOST_TOKENS = 2500
"""More would take minutes."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }} td, th {{ padding: .25em .8em; border-bottom: 1px solid #ddd }}
td.number {{ text-align: right }} th {{ text-align: left }} svg {{ width: 100%; height: auto }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def write_report(
    path: Path, output: Path | None = None, *, latency: bool = True, console: Console | None = None
) -> Path:
    """Write the report of the bundle `path` to `output`, by default `report.html` inside the bundle.

    With `latency` the model is measured against its softmax original in onnxruntime, at its own image size and
    at larger ones.

    Raises:
        BundleError: no finished bundle there, or one that was saved without its history.
        OutputError: the file can't be written.
    """
    bundle.read_config(path)
    summary = bundle.read_summary(path)
    metrics = path / bundle.METRICS
    if "accuracy" not in summary or not metrics.is_file():
        raise BundleError(f"{path} was saved without its history; only bundles of castling convert have a report")
    steps = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    body = _table(_facts(summary)) + _plan(summary) + _plots(steps) + "<h2>Layers</h2>"
    body += _table(_layers(summary, steps))
    if latency:
        body += _latency(path, console)
    output = output or path / "report.html"
    with writing_file(output) as fresh:
        fresh.write_text(_PAGE.format(title=html.escape(f"{summary['model']}, castled"), body=body), encoding="utf-8")
    return output


def _latency(path: Path, console: Console | None) -> str:
    """Both models against tokens, measured now and here."""
    model: Any = bundle.load(path)
    own, patch = probe_images(model, 1).shape[-2:], family_of(model).patch_size(model)
    sizes = [
        (patch[0] * round(factor * own[0] / patch[0]), patch[1] * round(factor * own[1] / patch[1]))
        for factor in LATENCY_SIZES
    ]
    few = [size for size in sizes if size[0] * size[1] <= MOST_TOKENS * patch[0] * patch[1]]
    try:
        results = list(bench(path, image_sizes=tuple(few or sizes[:1]), seconds=1, memory=False, console=console))
    except CastlingError as error:
        return f"<h2>Latency</h2><p>It could not be measured: {html.escape(str(error))}</p>"
    rows: list[tuple[str, ...]] = [("image", "tokens", "castled, ms", "softmax, ms", "ratio")]
    for result in results:
        castled, softmax = result.latency[CASTLED].median, result.latency[result.baseline].median
        times = (f"{value:.2f}" for value in (castled, softmax))
        size = "x".join(map(str, result.case.image_size))
        rows.append((size, str(result.tokens), *times, f"{result.ratio.value:.2f}x"))
    text = (
        f"<p>onnxruntime, float32, batch 1, {results[0].threads} threads, on the machine that wrote this report; the "
        "softmax model is the fastest there is in onnxruntime. More runtimes and precisions: castling bench.</p>"
    )
    return f"<h2>Latency</h2>{text}{_table(rows)}{_svg(latency_figure(results))}"


def _svg(figure: Any) -> str:
    """A figure as it stands in a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return "".join(out.getvalue().partition("<svg")[1:])


def _facts(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("", "teacher", "castled")]
    accuracy, macs, parameters = summary["accuracy"], summary["macs"], summary["parameters"]
    if accuracy["measured"]:
        where = "held out" if accuracy["held_out"] else "training images"
        top1 = (f"{accuracy[name]['top1']:.2f} %" for name in ("teacher", "castled"))
        rows.append((f"top-1 ({accuracy['teacher']['images']} {where})", *top1))
    else:
        rows.append(("accuracy", "unmeasured", accuracy["why"]))
    if "features" in accuracy:
        rows.append(("cosine of features with the teacher's", "", f"{accuracy['features']['cosine']:.4f}"))
        rows.append(("same nearest neighbour as the teacher's", "", f"{accuracy['features']['neighbours']:.2f} %"))
    if "castled" in accuracy:
        rows.append(("agreement with the teacher", "", f"{accuracy['castled']['agreement']:.2f} %"))
    rows.append(("MACs an image", *(f"{macs[name] / 1e6:,.1f} M" for name in ("teacher", "castled"))))
    rows.append(("parameters", *(f"{parameters[name]:,}" for name in ("teacher", "castled"))))
    rows.append(
        ("folding error (float64, float32)", "", "{float64_logits:.1e}, {float32_logits:.1e}".format(**summary["fold"]))
    )
    run = summary["distill"]
    rows.append(("recipe and images", "", f"{summary['recipe']}, {summary['identity']['data']}"))
    rows.append(
        ("distillation", "", f"{run['steps']} steps, {run['seconds']:.0f} s, {run['images_per_second']:.0f} images/s")
    )
    return rows


def _layers(summary: dict[str, Any], steps: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    folding = summary["fold"]["float64_blocks"]
    attention = steps[-1]["layer_losses"] if steps else {}
    rows: list[tuple[str, ...]] = [
        ("layer", "became", "why", "error against the teacher at the end", "folding error of its block")
    ]
    for layer in summary["layers"]:
        name = layer["name"]
        error = folding.get(".".join(name.split(".")[:2]))
        cells = (f"{attention[name]:.3f}" if name in attention else "", "" if error is None else f"{error:.1e}")
        rows.append((name, layer["status"], layer["why"], *cells))
    return rows


def _plan(summary: dict[str, Any]) -> str:
    """What `layers=auto` measured and decided."""
    plan = summary.get("plan")
    if not plan:
        return ""
    rows: list[tuple[str, ...]] = [("block", "divergence when castled alone, nats", "agreement")]
    for entry in plan["sensitivity"]:
        rows.append((str(entry["block"]), f"{entry['divergence']:.3g}", f"{entry['agreement']:.1f} %"))
    trials: list[tuple[str, ...]] = [("softmax kept in blocks", f"points lost on {plan['images']} planning images")]
    for trial in plan["trials"]:
        trials.append((", ".join(map(str, trial["kept"])) or "none", f"{trial['drop']:.2f}"))
    budget = f"<p>The budget is {plan['max_drop']:g} points of {html.escape(plan['measure'])}.</p>"
    return f"<h2>Which layers to castle</h2>{_table(rows)}{_table(trials)}{budget}"


def _table(rows: list[tuple[str, ...]]) -> str:
    head, *rest = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rest]
    return f"<table>{''.join(lines)}</table>"


def _cell(text: str) -> str:
    return f'<td class="number">{text}</td>' if text[:1] in tuple("+-0123456789") else f"<td>{text}</td>"


def _plots(steps: list[dict[str, Any]]) -> str:
    """Accuracy, losses, per-layer attention error and mask density over the steps, as inline SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    if not steps:
        return ""
    at = [step["step"] for step in steps]
    figure = Figure(figsize=(9, 13), layout="constrained")
    axes = figure.subplots(4, 1, sharex=True)
    accuracy, losses, errors, density = axes
    probed = [(step["step"], step["probe"]) for step in steps if "probe" in step]
    for name, label in (("top1", "castled, top-1"), ("agreement", "agreement with the teacher")):
        points = [(step, probe[name]) for step, probe in probed if name in probe]
        if points:
            accuracy.plot(*zip(*points, strict=True), marker=".", label=label)
    if probed and "teacher_top1" in probed[0][1]:
        accuracy.axhline(probed[0][1]["teacher_top1"], color="black", ls="--", lw=1, label="teacher, top-1")
    accuracy.set(title="masks closed, on a part of the validation images", ylabel="%")
    for name in ("attention", "logits", "features"):
        points = [(step["step"], step["losses"][name]) for step in steps if name in step["losses"]]
        if points:
            losses.plot(*zip(*points, strict=True), label=name, lw=1)
    losses.set(title="losses on the training batches", yscale="log")
    layers = list(steps[-1]["density"])
    colours = matplotlib.colormaps["viridis"].resampled(max(len(layers), 2))
    for index, layer in enumerate(layers):
        errors.plot(at, [step["layer_losses"][layer] for step in steps], color=colours(index), label=layer, lw=1)
        density.plot(at, [step["density"][layer] for step in steps], color=colours(index), label=layer)
    errors.set(title="attention output of each layer: squared error over the teacher's mean square", yscale="log")
    for axis in (losses, errors):
        axis.set_ylim(bottom=max(1e-4, axis.get_ylim()[0]))  # an open mask has no error but rounding
    closed = all(not any(step["density"].values()) for step in steps)
    title = "mask density: share of softmax entries kept" + (" (closed from the first step on)" if closed else "")
    density.set(title=title, ylim=(-0.02, 1.02), xlabel="step")
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="x-small", ncols=4)
    return f"<h2>The run</h2>{_svg(figure)}"
