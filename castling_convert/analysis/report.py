"""A bundle's report: one self-contained HTML file with its tables and plots."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import bundle
from ..bench.bench import bench
from ..bench.cases import CASTLED, Result
from ..bench.plot import latency_figure
from ..data.probe import probe_images
from ..errors import BundleError, CastlingError
from ..families import family_of
from ..files import writing_file
from ..tasks import find_task
from .curves import curves
from .page import page, svg, table
from .samples import samples

LATENCY_SIZES = (1, 1.5, 2)
"""Image sizes of the latency plot, in the model's own."""
MOST_TOKENS = 2500
"""More would take minutes."""


def write_report(
    path: Path, output: Path | None = None, *, latency: bool = True, images: bool = True, console: Console | None = None
) -> Path:
    """Write the report of the bundle `path` to `output`, by default `report.html` inside the bundle.

    Args:
        latency: measure the model against its softmax original in onnxruntime, at its own image size and at larger
            ones.
        images: show a dozen validation images with the answers of both models, where they and the teacher can be had.

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
    results = _measured(path, console) if latency else None
    body = f'<p class="verdict">{html.escape(verdict(summary, results))}</p>' + table(_facts(summary))
    body += samples(path, summary, console) if images else ""
    body += _plan(summary) + curves(steps) + "<h2>Layers</h2>" + table(_layers(summary, steps))
    body += _latency(results) if latency else ""
    body += _origin(summary)
    output = output or path / "report.html"
    with writing_file(output) as fresh:
        fresh.write_text(page(f"{summary['model']}, castled", body), encoding="utf-8")
    return output


def verdict(summary: dict[str, Any], results: list[Result] | CastlingError | None) -> str:
    """What a reader who reads one paragraph should know: what was lost, and what was gained and where."""
    accuracy, (key, word) = summary["accuracy"], _score(summary)
    if accuracy["measured"]:
        teacher, castled = accuracy["teacher"], accuracy["castled"]
        lost = teacher[key] - castled[key]
        how = "as accurate as its teacher" if abs(lost) < 0.005 else (
            f"{abs(lost):.2f} points of {word} {'below' if lost > 0 else 'above'} its teacher"
        )  # fmt: skip
        error = castled.get("standard_error")  # bundles of before don't say
        sure = "" if error is None else f"; give or take {error:.2f} points, one standard error"
        where = "held-out images" if accuracy["held_out"] else "images, which it was trained on"
        said = f"The castled model is {how} ({castled[key]:.2f} % against {teacher[key]:.2f} % of "
        said += (
            f"{castled['images']} {where}{sure}), and gives the same answer for {castled['agreement']:.1f} % of them."
        )
    elif "castled" in accuracy:
        castled = accuracy["castled"]
        said = f"The castled model gives its teacher's answer for {castled['agreement']:.1f} % of {castled['images']} "
        said += "images; without usable labels its accuracy is not known."
    elif "features" in accuracy:
        alike = accuracy["features"]
        said = f"The castled model's features have a cosine of {alike['cosine']:.4f} with its teacher's over "
        said += f"{alike['images']} images, and the same nearest neighbour for {alike['neighbours']:.1f} %."
    else:
        said = "What castling cost in accuracy is not known: no images were given."
    if not summary.get("pretrained_weights", True):
        said += " Its weights are random: it is good for timing, not for use."
    if not results or isinstance(results, CastlingError):
        return f"{said} How fast it is was not measured here."
    return f"{said} {_speed(results)}"


def _speed(results: list[Result]) -> str:
    each = ", ".join(f"{r.ratio.value:.2f} at {'x'.join(map(str, r.case.image_size))}" for r in results)
    faster = [result for result in results if result.ratio.low > 1]
    if len(faster) == len(results):
        word = "It is faster than the softmax model at every size measured here"
    elif not faster:
        word = "It is not faster than the softmax model at the sizes measured here"
    else:
        size = "x".join(map(str, faster[0].case.image_size))
        word = f"It is faster than the softmax model from {size} pixels on"
    return f"{word} (onnxruntime, float32; times as fast: {each})."


def _measured(path: Path, console: Console | None) -> list[Result] | CastlingError:
    """Both models at a few sizes, or why not."""
    model: Any = bundle.load(path)
    own, patch = probe_images(model, 1).shape[-2:], family_of(model).patch_size(model)
    sizes = [
        (patch[0] * round(factor * own[0] / patch[0]), patch[1] * round(factor * own[1] / patch[1]))
        for factor in LATENCY_SIZES
    ]
    few = [size for size in sizes if size[0] * size[1] <= MOST_TOKENS * patch[0] * patch[1]]
    try:
        return list(bench(path, image_sizes=tuple(few or sizes[:1]), seconds=1, memory=False, console=console))
    except CastlingError as error:
        return error


def _latency(results: list[Result] | CastlingError | None) -> str:
    """Both models against tokens, measured now and here."""
    if not results or isinstance(results, CastlingError):
        return f"<h2>Latency</h2><p>It could not be measured: {html.escape(str(results))}</p>"
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
    return f"<h2>Latency</h2>{text}{table(rows)}{svg(latency_figure(results))}"


def _facts(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("", "teacher", "castled")]
    accuracy, macs, parameters = summary["accuracy"], summary["macs"], summary["parameters"]
    if accuracy["measured"]:
        where = "held out" if accuracy["held_out"] else "training images"
        key, word = _score(summary)
        measured = (f"{accuracy[name][key]:.2f} %" for name in ("teacher", "castled"))
        rows.append((f"{word} ({accuracy['teacher']['images']} {where})", *measured))
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


def _score(summary: dict[str, Any]) -> tuple[str, str]:
    """What was measured, by its name in the summary and in words; older bundles are to classify."""
    return find_task(summary.get("task", "classify")).score


def _layers(summary: dict[str, Any], steps: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    folding = summary["fold"]["float64_blocks"]
    attention = steps[-1]["layer_losses"] if steps else {}
    rows: list[tuple[str, ...]] = [
        ("layer", "became", "why", "error against the teacher at the end", "folding error of its block")
    ]
    for layer in summary["layers"]:
        name = layer["name"]
        error = next((folding[block] for block in folding if name.startswith(f"{block}.")), None)
        cells = (f"{attention[name]:.3f}" if name in attention else "", "" if error is None else f"{error:.1e}")
        rows.append((name, layer["status"], layer["why"], *cells))
    return rows


def _plan(summary: dict[str, Any]) -> str:
    """What `layers=auto` measured and decided."""
    plan = summary.get("plan")
    if not plan:
        return ""
    rows: list[tuple[str, ...]] = [("block", f"divergence when castled alone, {plan.get('unit', 'nats')}", "agreement")]
    for entry in plan["sensitivity"]:
        rows.append((str(entry["block"]), f"{entry['divergence']:.3g}", f"{entry['agreement']:.1f} %"))
    trials: list[tuple[str, ...]] = [("softmax kept in blocks", f"points lost on {plan['images']} planning images")]
    for trial in plan["trials"]:
        trials.append((", ".join(map(str, trial["kept"])) or "none", f"{trial['drop']:.2f}"))
    budget = f"<p>The budget is {plan['max_drop']:g} points of {html.escape(plan['measure'])}.</p>"
    return f"<h2>Which layers to castle</h2>{table(rows)}{table(trials)}{budget}"


def _origin(summary: dict[str, Any]) -> str:
    """How to make the bundle again, and how to know that it is this one."""
    rows: list[tuple[str, ...]] = [("", "")]
    for key, word in (("command", "command"), ("commit", "commit of castling-convert"), ("bundle_sha256", "bundle")):
        if summary.get(key):
            rows.append((word, str(summary[key])))
    versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
    environment = ", ".join(f"{name}: {value}" for name, value in summary.get("environment", {}).items() if value)
    rows += [(word, text) for word, text in (("versions", versions), ("machine", environment)) if text]
    rows += [(f"SHA-256 of {name}", digest) for name, digest in summary.get("sha256", {}).items()]
    return f"<h2>Where it comes from</h2>{table(rows)}"
