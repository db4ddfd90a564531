"""castling bench"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PATH, json_option, measuring_options, print_json, print_table, progress_console

if TYPE_CHECKING:
    from ..bench.cases import Result


@click.command("bench", epilog="Example, after castling demo: castling bench castled/digits --seconds 2")
@click.argument("target", type=PATH, metavar="BUNDLE_OR_ARTIFACT")
@click.option("--runtime", "runtimes", multiple=True, help="onnx, openvino or torch; repeatable [default: onnx].")
@measuring_options("the bundle's", seconds=10.0)
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Repeatable [default: 1].")
@click.option("--calibration", help="Images for int8: as --data of convert [default: generated].")
@click.option("--plot", type=PATH, help="Write a plot of latency against tokens there: .svg or .png.")
@json_option
def command(
    target: Path,
    runtimes: tuple[str, ...],
    precisions: tuple[str, ...],
    image_sizes: tuple[tuple[int, int], ...],
    batches: tuple[int, ...],
    threads: int | None,
    seconds: float,
    calibration: str | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """The castled model against the original softmax model: same runtime, precision, threads and input, in turn.

    An artifact is measured as it is; of a bundle every combination of the options. The ratio is that of the
    medians, softmax over castled: above 1 castling is faster. Its interval is a 95 % bootstrap interval. In int8
    the castled model has the layers in float that its accuracy needs so, the softmax model has none.
    """
    from ..bench.bench import bench
    from ..bench.plot import check_format, plot_latency

    if plot is not None:
        check_format(plot)
    results = list(
        bench(
            target,
            runtimes=runtimes or ("onnx",),
            precisions=precisions or ("fp32",),
            image_sizes=image_sizes,
            batches=batches or (1,),
            threads=threads,
            seconds=seconds,
            calibration=calibration,
            console=progress_console(),
        )
    )
    if as_json:
        print_json([result.to_dict() for result in results])
    else:
        _print_table(target, results)
    if plot is not None:  # last: what was measured is not lost with a plot that can't be written
        plot_latency(results, plot)
        click.echo(f"plot: {plot}", err=True)


def _print_table(target: Path, results: list[Result]) -> None:
    from rich.table import Table

    from ..bench.cases import CASTLED

    table = Table(title=f"{target}, {results[0].threads} threads", title_justify="left")
    for column in ("case", "tokens", "castled, ms (p95)", "softmax, ms (p95)", "softmax is", "ratio [95 %]",
                   "peak memory, MB"):  # fmt: skip
        table.add_column(column)
    for result in results:
        castled, softmax = result.latency[CASTLED], result.latency[result.baseline]
        table.add_row(
            str(result.case), str(result.tokens), f"{castled.median:.2f} ({castled.p95:.2f})",
            f"{softmax.median:.2f} ({softmax.p95:.2f})", result.baseline.partition(", ")[2] or "plain",
            str(result.ratio),
            f"{result.memory[CASTLED] / 1e6:.0f}, softmax {result.memory[result.baseline] / 1e6:.0f}"
            if result.memory else "",
        )  # fmt: skip
    print_table(table)
