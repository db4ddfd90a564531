"""What castling would bring on this machine, measured before anything is trained: weights are random, which
latency does not depend on."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from rich.console import Console
from torch import nn

from ..attention import AttentionCost, Shape
from ..bench.bench import check_cases, measure, random_weights_, softmax_baseline_
from ..bench.cases import Case, Result
from ..bench.latency import Ratio
from ..bench.layers import BreakEven, LayerLatency, Layers
from ..castling import castle_, close_masks, costs
from ..data.probe import probe_images
from ..distillation.budget import settled
from ..distillation.pace import measure_pace
from ..evaluation.probe import looked_at
from ..families import AttentionLayer, family_of
from ..folding import fold_
from ..recipe import Recipe

ROUNDS = 5
"""Fewest calls of each variant: enough to tell a gain, and a large model at 1024x1024 does not take minutes."""
FEW = 4
"""Images of a training step that is timed."""
LARGE, MODERATE = 1.5, 1.15
WORTH = 1.03
"""Below this ratio castling is not worth a distillation."""


@dataclass(frozen=True)
class LayerAnalysis:
    """The attention layers of one shape at one image size. `latency` is by runtime, in float32."""

    names: list[str]
    image_size: tuple[int, int]
    tokens: int
    num_heads: int
    head_dim: int
    softmax: AttentionCost
    castled: AttentionCost
    latency: dict[str, LayerLatency]


@dataclass(frozen=True)
class Advice:
    """In plain words what one case would gain. `gain` is large, moderate, small or none; `layers` what to castle."""

    gain: str
    layers: list[str]
    sentence: str


@dataclass(frozen=True)
class Analysis:
    """All that was measured: layers and whole models at every image size, and the break-even by runtime.

    `minutes` is how long a conversion by `recipe` would train on this machine at the first image size.
    """

    model: str
    threads: int
    layers: list[LayerAnalysis]
    break_even: list[BreakEven]
    cases: list[Result]
    advice: list[Advice]
    recipe: str
    minutes: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def analyze(
    name: str,
    model: nn.Module,
    *,
    recipe: Recipe,
    image_sizes: tuple[tuple[int, int], ...] = (),
    runtimes: tuple[str, ...] = ("onnx",),
    precisions: tuple[str, ...] = ("fp32",),
    batch: int = 1,
    threads: int | None = None,
    seconds: float = 2.0,
    console: Console | None = None,
) -> Analysis:
    """Measure a softmax model and its castled twin, layer by layer and whole, in every combination.

    Args:
        model: left as it is; its weights are of no account. name: what it is called in the result.
        image_sizes: (height, width); the model's own when left out.
        seconds: of measurement for each whole model; a layer gets a tenth.

    Raises:
        ModelError: nothing of it can be castled, or an image size holds no patch.
        ExportError: a runtime or precision is not available.
    """
    check_cases(runtimes, precisions)
    model = softmax_baseline_(copy.deepcopy(model))
    sizes = tuple(dict.fromkeys(image_sizes)) or (family_of(model).image_size(model),)
    # Each size has models of its own: not every one can be made another size once it is castled.
    softmax = {size: resized(model, size) for size in sizes}
    folded = {size: castled_twin(softmax[size], recipe) for size in sizes}
    found = [layer for size in sizes for layer in shapes(softmax[size], folded[size], recipe, size)]
    say = console.print if console is not None else lambda line: None
    break_even: list[BreakEven] = []
    for first, runtime in product(dict.fromkeys(layer.names[0] for layer in found), runtimes):
        for layer in (layer for layer in found if layer.names[0] == first):
            say(f"measuring {first} in {runtime}, {'x'.join(map(str, layer.image_size))} ...")
            alone = Layers(folded[layer.image_size], softmax[layer.image_size], first, runtime, threads)
            layer.latency[runtime] = alone.as_called(seconds / 10, ROUNDS)
        if alone.any_length:
            say(f"looking for the break-even of {first} in {runtime} ...")
            break_even.append(alone.break_even(seconds / 10, ROUNDS))
    cases: list[Result] = []
    for size, runtime, precision in product(sizes, runtimes, precisions):
        case = Case(runtime, precision, size, batch)
        say(f"measuring the whole model, {case} ...")
        cases.append(
            measure(
                case,
                folded[size],
                softmax[size],
                threads=threads,
                seconds=seconds,
                rounds=ROUNDS,
                trained=False,
                memory=False,
            )
        )
    advice = [
        advise(result, [layer for layer in found if layer.image_size == result.case.image_size]) for result in cases
    ]
    say("timing a few training steps ...")
    minutes = training_minutes(softmax[sizes[0]], recipe)
    return Analysis(
        model=name, threads=cases[0].threads, layers=found, break_even=break_even, cases=cases, advice=advice,
        recipe=recipe.name, minutes=minutes,
    )  # fmt: skip


def resized(softmax: Any, size: tuple[int, int]) -> Any:
    """A copy for images of `size`, (height, width); ModelError when that holds no patch."""
    family = family_of(softmax)
    family.layers(softmax, size)
    softmax = copy.deepcopy(softmax)
    family.resize_(softmax, size)
    return softmax


def training_minutes(softmax: Any, recipe: Recipe) -> float:
    """How long a conversion by `recipe` trains here: from a few steps of FEW images, in proportion to the batch."""
    teacher = copy.deepcopy(softmax)
    student = castle_(copy.deepcopy(teacher), recipe)
    here = settled(recipe, student, teacher)
    few = min(FEW, here.distill.batch_size)
    pace = measure_pace(student, teacher, [probe_images(teacher, few)], here.override(f"distill.batch_size={few}"))
    times = here.distill.batch_size / few
    return pace.minutes(here.distill, looked_at(here, teacher) / times) * times


def castled_twin(softmax: Any, recipe: Recipe) -> Any:
    """A folded model as distillation would leave it, with random weights."""
    student = random_weights_(castle_(copy.deepcopy(softmax), recipe))
    close_masks(student)
    return fold_(student)


def shapes(softmax: Any, folded: Any, recipe: Recipe, size: tuple[int, int]) -> list[LayerAnalysis]:
    """The layers that `recipe` castles, those of one shape together, with what each costs by formula at images of
    `size`, (height, width); ModelError when that holds no patch."""
    found: dict[Shape, list[AttentionLayer]] = {}
    for layer in family_of(softmax).layers(softmax, size):
        if layer.name in folded.castling.castled:
            found.setdefault(layer.shape, []).append(layer)
    return [
        LayerAnalysis(
            names=[layer.name for layer in group], image_size=size, tokens=shape.tokens, num_heads=shape.num_heads,
            head_dim=shape.head_dim, softmax=softmax, castled=castled, latency={},
        )
        for shape, group in found.items()
        for softmax, castled in [costs(group[0], recipe.attention)]
    ]  # fmt: skip


def advise(result: Result, layers: list[LayerAnalysis]) -> Advice:
    """What to do, from the whole model's ratio and, in its runtime, those of its layers."""
    case, ratio = result.case, result.ratio
    names = [name for layer in layers for name in layer.names]
    paying = [name for layer in layers if layer.latency[case.runtime].ratio > 1 for name in layer.names]
    gain = _gain(ratio)
    if gain == "none":
        what, chosen = "castling is not worth it here", []
    elif len(paying) in (0, len(names)):  # a gain in int8, say, that single layers in float32 do not show
        what, chosen = f"castle all {len(names)} layers", names
    else:
        what, chosen = f"castle these layers: {', '.join(paying)}", paying
    if gain == "small":
        what += ", if a few per cent are worth a distillation to you"
    size = "small to none" if gain == "none" else gain
    return Advice(gain, chosen, f"{case}: the gain is {size}, {ratio}; {what}")


def _gain(ratio: Ratio) -> str:
    if ratio.low <= 1 or ratio.value < WORTH:
        return "none"
    return "large" if ratio.value >= LARGE else "moderate" if ratio.value >= MODERATE else "small"
