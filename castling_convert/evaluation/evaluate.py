"""Evaluate a bundle or an artifact beside its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from .. import bundle
from ..data.preprocessing import Preprocessing
from ..data.spec import open_data
from ..errors import BundleError, CastlingError, WeightsError
from ..files import expanded
from ..tasks import Outputs, Score, task_of


def evaluate(
    target: Path,
    data: str,
    *,
    teacher: str | None = None,
    teacher_weights: Path | None = None,
    limit: int | None = None,
    console: Console | None = None,
) -> tuple[Mapping[str, Score], list[str]]:
    """The scores of teacher (first, where it can be had) and castled model on the validation part of `data`.

    Returns:
        The results by name, and notes on what could not be measured: labels of other classes than the
        model's, a teacher that the bundle names and that can't be loaded. A teacher that was asked for
        and can't be loaded is an error.

    Raises:
        CastlingError: the target, the data, or a teacher that was asked for is not usable.
    """
    from ..verification.target import open_target

    path, runner = open_target(target)
    folded: Any = bundle.load(path)
    task = task_of(folded)
    castled: Outputs = runner if runner is not None else folded
    opened, unmeasured = task.usable(open_data(data, Preprocessing.of(folded), "validation"), folded)
    try:
        original = _teacher(path, folded, teacher, teacher_weights, console)
    except CastlingError as error:
        if teacher is not None or teacher_weights is not None or task.output == "features":
            raise  # of features nothing is known without a teacher
        notes = [f"without the teacher: {error}", *([unmeasured] if unmeasured else [])]
        return task.measure({"castled": castled}, opened, limit), notes
    return task.measure({"teacher": original, "castled": castled}, opened, limit), [unmeasured] if unmeasured else []


def _teacher(
    path: Path, folded: nn.Module, name: str | None, weights: Path | None, console: Console | None
) -> nn.Module:
    from timm.models import get_model_input_config

    from ..loading import load_model

    identity = bundle.read_summary(path).get("identity", {})
    asked = name is not None
    name = name or identity.get("model")
    if name is None:
        raise BundleError("the bundle does not name its teacher; name it with --teacher")
    recorded = identity.get("weights")
    if weights is None and not asked:
        if recorded == "random":
            raise BundleError("the bundle's teacher had random weights (--no-pretrained); name another with --teacher")
        if recorded == "given":
            raise BundleError(
                "the bundle's teacher was handed over in Python; name it with --teacher and --teacher-weights"
            )
        if recorded != "pretrained":
            weights = Path(recorded)
            if not weights.is_file():
                raise BundleError(
                    f"the bundle's teacher is {name} with the weights in {weights}, which are not on this machine; "
                    "give them with --teacher-weights FILE"
                )
    folder = expanded(name.removeprefix("local-dir:")) if name.startswith("local-dir:") else None
    if folder is not None and not folder.is_dir():
        raise BundleError(
            f"the teacher is the model in {folder}, which is not on this machine; give it with --teacher local-dir:DIR"
        )
    if console is not None:
        console.print(f"loading the teacher {name} ...")
    size = get_model_input_config(folded)["input_size"]
    arguments = bundle.read_config(path)["model_args"]["base_args"]
    extra = {
        key: value
        for key, value in arguments.items()
        if key not in ("img_size", "num_classes", "in_chans", "global_pool")
    }
    if name.startswith(("local-dir:", "hf-hub:")):
        extra = {}
    try:
        return load_model(name, weights=weights, image_size=tuple(size[1:]), model_args=extra)
    except WeightsError as error:  # which speaks of the options of convert
        raise WeightsError(f"{str(error).partition('; ')[0]}; give them with --teacher-weights FILE") from error
