"""Castled against the original softmax model: same runtime, precision, threads and input, in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from .. import bundle
from ..artifact.options import ExportOptions
from ..artifact.precision import PRECISIONS
from ..artifact.runner import Runner
from ..artifact.signature import DETECTIONS
from ..data.probe import probe_images
from ..errors import ExportError
from ..exporting import FORMATS, find_format, format_of
from ..families import family_of
from ..verification.target import open_target
from .cases import CASTLED, FUSED, PLAIN, Case, Result
from .fused import fuse_attention
from .latency import FEWEST_ROUNDS, Latency, interleave, ratio
from .memory import peak_memory
from .runtimes import RUNTIMES, runner, torch_threads


def bench(
    target: Path,
    *,
    runtimes: tuple[str, ...] = ("onnx",),
    precisions: tuple[str, ...] = ("fp32",),
    image_sizes: tuple[tuple[int, int], ...] = (),
    batches: tuple[int, ...] = (1,),
    threads: int | None = None,
    seconds: float = 10.0,
    calibration: str | None = None,
    memory: bool = True,
    console: Console | None = None,
) -> Iterator[Result]:
    """Measure a bundle in every combination, or an artifact as it is, against the softmax model exported alike.

    The softmax model is the one that the bundle was made of, with random weights, which latency does not depend
    on. In int8 every layer of it is quantised, while those of the castled model whose accuracy needs it stay in
    float. LayerScale is absorbed in both. In onnxruntime the softmax model is measured
    twice, as it is exported and with onnxruntime's own fused attention; the faster one is the baseline. In
    torch it is the fused kernel that timm uses.

    Args:
        image_sizes: (height, width); the bundle's own when left out. seconds: of measurement for each case.
        threads: the runtime's; all cores when left out. calibration: for int8, as in `ExportOptions`.
        memory: measure its peak, too.

    Raises:
        BundleError, ExportError: the target can't be read, or a runtime or precision is not available.
    """
    folded, softmax, artifact = models_of(target)
    if artifact is not None:
        size, precision = artifact.signature.input_size[1:], artifact.precision
        runtimes, precisions, image_sizes = (format_of(target).name,), (precision,), ((size[0], size[1]),)
        batches = (artifact.batch,) if artifact.batch is not None else batches
    check_cases(runtimes, precisions)
    own = probe_images(folded, 1).shape[-2:]
    cases = [
        Case(runtime, precision, (size[0], size[1]), batch)
        for runtime in runtimes for precision in precisions for size in image_sizes or (own,) for batch in batches
    ]  # fmt: skip
    for case in cases:
        if console is not None:
            console.print(f"measuring {case} ...")
        yield measure(
            case, folded, softmax, artifact=None if artifact is None else target,
            threads=threads, seconds=seconds, calibration=calibration, memory=memory,
        )  # fmt: skip


def check_cases(runtimes: tuple[str, ...], precisions: tuple[str, ...]) -> None:
    """Raise ExportError for what can't be measured here."""
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise ExportError(f"what is measured runs in {', '.join(RUNTIMES)}, not in '{runtime}'")
        for precision in precisions:
            find_format(runtime, precision)
        reason = FORMATS[runtime].exporter.missing()
        if reason is not None:
            raise ExportError(f"runtime {runtime} {reason}")


def exported_as(artifact: Path) -> ExportOptions:
    """The options that say what an artifact takes and gives.

    Raises:
        ExportError: it gives detections, which the softmax model is not exported to.
    """
    run = format_of(artifact).exporter.open_artifact(artifact)
    signature = run.signature
    if signature.output == DETECTIONS:
        raise ExportError(f"{artifact} suppresses detections, the softmax model does not; export it without --nms")
    span = (signature.smallest, signature.largest) if signature.stride else None
    return ExportOptions.make(
        batch=run.batch or "dynamic", image_size=signature.input_size[1:], image_range=span,
        preprocess=signature.input == "pixels", io="fp32" if signature.dtype == "float32" else "same",
    )  # fmt: skip


def models_of(target: Path) -> tuple[Any, Any, Runner | None]:
    """The folded model, the softmax model it was made of with random weights, and the artifact if it is one."""
    import timm

    path, artifact = open_target(target)
    folded = bundle.load(path)
    arguments = bundle.read_config(path)["model_args"]
    return folded, softmax_baseline_(timm.create_model(arguments["base"], **arguments["base_args"])), artifact


def softmax_baseline_(model: nn.Module) -> Any:
    """A fresh softmax model as it is measured: weights random, LayerScale absorbed as it is in a folded one."""
    family_of(model).absorb_layer_scale_(model)
    return random_weights_(model).eval()


@torch.no_grad()
def random_weights_(model: nn.Module) -> nn.Module:
    """Noise on every parameter of a fresh model, biases above all: a simplifier drops what adds zero, and no
    trained model has that."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def measure(
    case: Case,
    folded: nn.Module,
    softmax: Any,
    *,
    artifact: Path | None = None,
    threads: int | None = None,
    seconds: float = 10.0,
    rounds: int = FEWEST_ROUNDS,
    calibration: str | None = None,
    trained: bool = True,
    memory: bool = True,
    others: Mapping[str, tuple[nn.Module, str]] | None = None,
) -> Result:
    """One case, of two models or of an artifact and a softmax model, which is exported as the artifact was.

    Args:
        trained: whether the castled weights are; int8 leaves layers of such a model in float where accuracy
            needs that. Of random ones every layer is quantised, which those of `softmax` are.
        memory: measure it, too. others: further models, each with its precision.
    """
    made = ExportOptions.make(batch=case.batch) if artifact is None else exported_as(artifact)
    options = replace(
        made, precision=case.precision, image_size=case.image_size,
        verify=False, calibration=calibration if PRECISIONS[case.precision].quantized else None,
    )  # fmt: skip
    quick = replace(options, latency_only=True, calibration=None)
    given = {name: (model, quick) for name, model in variants(folded, softmax, case.runtime).items()}
    given |= {name: (model, replace(quick, precision=precision)) for name, (model, precision) in (others or {}).items()}
    if trained:
        given[CASTLED] = folded, options
    with tempfile.TemporaryDirectory() as folder, torch_threads(threads) as used:
        runs: dict[str, Callable[[], object]] = {}
        peaks: dict[str, int] = {}
        for name, (model, how) in given.items():
            file = Path(folder) / f"{len(runs)}{FORMATS[case.runtime].suffix}"
            if name == CASTLED and artifact is not None:
                file = artifact
            else:
                FORMATS[case.runtime].exporter.export(model, file, how)
            run = runner(case.runtime, file, used)
            images = probe_images(model, 1, size=case.image_size).repeat(case.batch, 1, 1, 1)
            values = run.signature.inputs(images).numpy()
            runs[name] = partial(run.run, values)
            peak = peak_memory(case.runtime, file, used, values.shape, values.dtype.name) if memory else None
            peaks |= {} if peak is None else {name: peak}
        times = interleave(runs, seconds, rounds)
    latency = {name: Latency.of(values) for name, values in times.items()}
    baseline = baseline_of({name: found.median for name, found in latency.items()})
    tokens = max(layer.tokens for layer in family_of(softmax).layers(softmax, case.image_size))
    return Result(
        case=case,
        tokens=tokens,
        threads=used,
        latency=latency,
        baseline=baseline,
        ratio=ratio(times[baseline], times[CASTLED]),
        memory=peaks,
        others={name: ratio(times[name], times[CASTLED]) for name in others or ()},
    )


def variants(folded: nn.Module, softmax: Any, runtime: str) -> dict[str, nn.Module]:
    """What is measured in `runtime`: the castled model, and every softmax one that could be the fastest there."""
    found: dict[str, nn.Module] = {CASTLED: folded, PLAIN: softmax}
    fused = fuse_attention(softmax) if runtime == "onnx" else None
    return found if fused is None else found | {FUSED: fused}


def baseline_of(medians: Mapping[str, float]) -> str:
    """The faster of the softmax variants."""
    return min((name for name in medians if name in (PLAIN, FUSED)), key=medians.__getitem__)
