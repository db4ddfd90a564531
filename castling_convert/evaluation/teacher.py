"""The teacher of a bundle, as far as it can be had again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from rich.console import Console
from torch import nn

from .. import bundle
from ..data.randomness import undone_randomness
from ..distillation.state import weights_sha256
from ..errors import BundleError, WeightsError
from ..families import input_size_of
from ..files import expanded
from ..loading import load_model
from ..recipe import Recipe
from ..tasks import task_of


def teacher_of(
    path: Path,
    folded: nn.Module,
    name: str | None = None,
    weights: Path | None = None,
    console: Console | None = None,
) -> nn.Module:
    """The softmax model that the bundle `path` was made of, at the image size of its `folded` model; or another one,
    by `name` and `weights`.

    Raises:
        CastlingError: it can't be had here; the message says what to give.
    """
    identity = bundle.read_summary(path).get("identity", {})
    asked = name is not None
    name = name or identity.get("model")
    if name is None:
        raise BundleError("the bundle does not name its teacher; name it with --teacher")
    recorded = identity.get("weights")
    if weights is None and not asked:
        if recorded == "random":
            return _random_teacher(path, name, folded, identity)
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
    _, *size = input_size_of(folded)
    left_out = ("img_size", "num_classes", "in_chans", "global_pool")
    extra = {key: value for key, value in _arguments(path).items() if key not in left_out}
    if name.startswith(("local-dir:", "hf-hub:")):
        extra = {}
    try:
        return _for_task_of(folded, load_model(name, weights=weights, image_size=(size[0], size[1]), model_args=extra))
    except WeightsError as error:  # which speaks of the options of convert
        raise WeightsError(f"{str(error).partition('; ')[0]}; give them with --teacher-weights FILE") from error


def _arguments(path: Path) -> dict[str, Any]:
    """What timm made the softmax model of a bundle with."""
    return bundle.read_config(path)["model_args"]["base_args"]


def _made_as(path: Path, folded: nn.Module) -> dict[str, Any]:
    """How `load_model` made it; a folder of transformers says all but the size itself."""
    if bundle.read_config(path)["model_args"]["base"] == "transformers":
        _, height, width = input_size_of(folded)
        return {"image_size": (height, width)}
    return {"model_args": _arguments(path)}


def _for_task_of(folded: nn.Module, teacher: Any) -> nn.Module:
    """Without its classifier, where the bundle is converted without it."""
    task = task_of(folded)
    if task.output == "features" and not task.matches(teacher):
        teacher.reset_classifier(0)
    return teacher


def _random_teacher(path: Path, name: str, folded: nn.Module, identity: dict[str, Any]) -> nn.Module:
    """The weights that the seed of a conversion with --no-pretrained made, if it makes the same ones here."""
    with undone_randomness():
        set_seed(Recipe.load(path / bundle.RECIPE).distill.seed)
        teacher = load_model(name, pretrained=False, **_made_as(path, folded))
    teacher = _for_task_of(folded, teacher)
    if weights_sha256(teacher) != identity.get("teacher_weights"):
        raise BundleError(
            "the bundle's teacher had random weights (--no-pretrained), which do not come out the same here; name "
            "another with --teacher"
        )
    return teacher
