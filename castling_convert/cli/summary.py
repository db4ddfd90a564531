"""The table that ends a conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from ..tasks import find_task
from .options import fewer_or_more, print_table, result_console


def print_summary(summary: dict[str, Any], output: Path, parity: Any = None) -> None:
    """Teacher beside castled: accuracy, MACs, parameters; then parity and files."""
    console = result_console()
    table = Table(title=f"{summary['model']} -> {output}", title_justify="left")
    for column, justify in (("", "left"), ("teacher", "right"), ("castled", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    accuracy, (key, word) = summary["accuracy"], find_task(summary["task"]).score
    if accuracy["measured"]:
        where = "held out" if accuracy["held_out"] else "TRAINING images"
        table.add_row(f"{word}, {accuracy['teacher']['images']} {where}",
                      *(f"{accuracy[name][key]:.2f} %" for name in ("teacher", "castled")))  # fmt: skip
        error = accuracy["castled"].get("standard_error")  # bundles of before don't say
        if error is not None:
            lost = accuracy["teacher"][key] - accuracy["castled"][key]
            table.add_row("points lost", "", f"{lost:.2f}, give or take {error:.2f}")
    if "castled" in accuracy:
        table.add_row("agreement with teacher", "", f"{accuracy['castled']['agreement']:.2f} %")
    elif "features" in accuracy:
        alike = accuracy["features"]
        table.add_row(f"features' cosine, {alike['images']} images", "", f"{alike['cosine']:.4f}")
        table.add_row("same nearest neighbour", "", f"{alike['neighbours']:.2f} %")
    else:
        table.add_row(word, "unmeasured", "unmeasured")
    macs, parameters = summary["macs"], summary["parameters"]
    table.add_row("MACs an image", f"{macs['teacher'] / 1e6:,.1f} M",
                  f"{macs['castled'] / 1e6:,.1f} M ({fewer_or_more(macs['teacher'], macs['castled'])})")  # fmt: skip
    table.add_row("parameters", *(f"{parameters[name]:,}" for name in ("teacher", "castled")))
    layers = summary["layers"]
    castled = sum(layer["status"] == "castled" for layer in layers)
    run = summary["distill"]
    resumed = f" from step {run['first_step'] + 1} on" if run["first_step"] else ""
    table.add_row("distillation", "", f"{run['steps']} steps, {run['seconds']:.0f} s{resumed}")
    table.add_row("softmax layers", str(len(layers)), str(len(layers) - castled))
    table.add_row("folding error, float64", "", f"{summary['fold']['float64_logits']:.1e}")
    if parity is not None:
        table.add_row("ONNX parity, max error", "", f"{parity.max_error:.1e}")
    print_table(table)
    for layer in layers:
        if layer["status"] == "kept":
            console.print(f"kept as softmax: {layer['name']}: {layer['why']}")
    if not accuracy["measured"]:
        console.print(f"accuracy is unmeasured: {accuracy['why']} (recipe {summary['recipe']})")
    if not summary["pretrained_weights"]:
        console.print("the weights are random (--no-pretrained): this bundle is good for timing, not for use")
    for file in sorted(path for path in output.rglob("*") if path.is_file()):
        console.print(f"  {file}  {file.stat().st_size / 1e6:.2f} MB")
