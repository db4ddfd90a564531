"""castling export"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import PATH, ImageSizes, json_option, print_json, progress_console


@click.command("export", epilog="Example, after castling demo: castling export castled/digits --batch 1:8:16")
@click.argument("bundle", type=PATH, required=False)
@click.option("--format", "format_", default="onnx", show_default=True, help="See castling doctor.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, fp16, bf16 or int8.")
@click.option("--batch", default="dynamic", show_default=True, help="dynamic, N, or MIN:OPT:MAX.")
@click.option(
    "--image-size", type=ImageSizes(), help="224, HEIGHTxWIDTH, or MIN:OPT:MAX of them [default: the bundle's]."
)
@click.option("--opset", type=int, help="ONNX operator set, 18 to 24 [default: 23, for TensorRT 20].")
@click.option("--simplify/--no-simplify", default=True, help="Run onnxsim [default].")
@click.option("--preprocess/--no-preprocess", default=False, help="uint8 [B, H, W, C] in, probabilities out.")
@click.option("--io", default="fp32", show_default=True, help="Inputs and outputs of an fp16 file: fp32, same.")
@click.option("--calibration", help="Images for int8, at least 100: as --data of convert [default: generated].")
@click.option(
    "--onnx-only",
    is_flag=True,
    help="For trt, trt-rtx: the checked ONNX graph, and NVIDIA's command line to build it with.",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    metavar="X.Y",
    multiple=True,
    help="For trt-rtx: of a GPU to build for, such as 8.9; repeatable [default: Ampere and later].",
)
@click.option(
    "--nms", is_flag=True, help="For onnx, openvino: detections [M, 7] of a detector in place of its raw boxes."
)
@click.option("--triton", type=PATH, help="Also write a model repository for NVIDIA's Triton Inference Server there.")
@click.option("--output", "-o", type=PATH, help="The file [default: model[.PRECISION].SUFFIX inside the bundle].")
@click.option("--atol", type=float, help="Allowed absolute error on a logit [default: by the precision].")
@click.option("--rtol", type=float, help="Allowed relative error on a logit [default: by the precision].")
@click.option("--no-verify", is_flag=True, help="Skip the parity check.")
@json_option
def command(
    bundle: Path | None,
    format_: str,
    precision: str,
    output: Path | None,
    triton: Path | None,
    no_verify: bool,
    as_json: bool,
    image_size: tuple[tuple[int, int], Any] | None,
    **options: Any,
) -> None:
    """Export BUNDLE (default: the newest under castled/) and check it against the folded model."""
    from ..bundle.reading import newest
    from ..errors import ExportError
    from ..exporting import export_bundle, find_format
    from ..exporting.triton import refuse_suffix, refuse_target, serve

    chosen = find_format(format_, precision)
    if triton is not None:
        refuse_suffix(chosen.suffix)
        if options["nms"]:
            raise ExportError("Triton's batches are of outputs an image, which detections are not; leave out --nms")
    path = bundle or newest()
    if triton is not None:
        refuse_target(triton, path.resolve().name)
    console = progress_console()
    console.print(f"exporting {path} as {format_} {precision} ...")
    best, span = image_size or (None, None)
    made = export_bundle(
        path, output, format=format_, precision=precision, image_size=best, image_range=span, verify=not no_verify,
        console=console, **options,
    )  # fmt: skip
    artifact, parity = made.artifact, made.parity
    served = serve(made, path, triton, options["batch"]) if triton is not None else None
    if as_json:
        print_json({"artifact": str(artifact), "parity": parity.to_dict() if parity else None, **made.notes})
        return
    nodes = f", {sum(made.notes['nodes'].values())} nodes" if "nodes" in made.notes else ""
    click.echo(f"wrote {artifact} ({artifact.stat().st_size / 1e6:.1f} MB{nodes})")
    if "quantized" in made.notes:
        left = made.notes["float"]
        click.echo(
            f"{made.notes['quantized']} linear layers in int8, {len(left)} left in float, {', '.join(left)}".rstrip(
                ", "
            )
        )
    if "products" in made.notes:
        counted = ", ".join(f"{count} in {word}" for word, count in sorted(made.notes["products"].items()))
        click.echo(f"products of matrices, as TensorRT reads them: {counted}")
    if "warning" in made.notes:
        click.echo(f"warning: {made.notes['warning']}", err=True)
    if parity is None:
        click.echo("parity was not checked (--no-verify)")
    else:
        of = f" of {made.notes['parity_of']}" if "parity_of" in made.notes else ""
        click.echo(
            f"parity{of} with the folded model: max error {parity.max_error:.1e}, mean {parity.mean_error:.1e}, "
            f"noise {parity.noise:.1e} of the spread"
        )
    if served is not None:
        click.echo(f"Triton: {served}")
    if "trtexec" in made.notes:
        click.echo(f"on the GPU machine: {made.notes['trtexec']}")
    if "tensorrt_rtx" in made.notes:
        click.echo(f"with TensorRT for RTX: {made.notes['tensorrt_rtx']}")
    if "engine" in made.notes:
        click.echo(made.notes["engine"])
        return
    if options["nms"]:
        click.echo(f"next: castling evaluate {artifact} --data SPEC")
        return
    found = artifact.resolve().parent == path.resolve() or path.resolve().parent == Path("castled").resolve()
    click.echo(f"next: castling verify {artifact}{'' if found else f' --bundle {path}'}")
