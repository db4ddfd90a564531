"""Writing a bundle: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..attention import FoldedAttention
from ..castling import Castling
from ..errors import PATH, BundleError, FoldError, ModelError, RecipeError, Wanted, takes
from ..families import family_of
from ..files import expanded, recover, refuse_long_name, require_space, sha256, writing, written_half
from ..recipe import Recipe
from ..version import __version__
from .checking import read_json
from .layout import ARCHITECTURE, CONFIG, FORMAT, IN_TRAIN, METRICS, RECIPE, SUMMARY, TRACKED, TRAIN, TRAINED, WEIGHTS
from .versions import origin, versions


def _is_record(value: Any) -> bool:
    try:
        return isinstance(value, dict) and bool(json.dumps(value))
    except (TypeError, ValueError):
        return False


@takes(
    model=Wanted(nn.Module, ModelError, "a model from fold()"),
    path=Wanted(PATH, BundleError, "a folder"),
    recipe=Wanted(Recipe, RecipeError, "a Recipe"),
    summary=Wanted(_is_record, BundleError, "a dict of what JSON can hold"),
    metrics=Wanted(PATH, BundleError, "the path of a file"),
    trained=Wanted(nn.Module, ModelError, "a model from distill()"),
)
def save(
    model: nn.Module,
    path: str | Path,
    *,
    recipe: Recipe | None = None,
    summary: dict[str, Any] | None = None,
    metrics: str | Path | None = None,
    trained: nn.Module | None = None,
    tracked: Path | None = None,
    force: bool = False,
) -> Path:
    """Write a folded model as a bundle; the folder appears whole or not at all.

    Args:
        model: from `fold`, made from a model that timm created.
        path: the folder.
        recipe, summary, metrics: how the model was made; what is left out is left out of the bundle.
        trained: the student before folding, kept in `train/` so that `verify` can compare with it.
        tracked: an output folder, whose trackers' folders in `train/` are kept.
        force: replace a bundle that is there.

    Raises:
        FoldError: the model is not folded.
        BundleError: something is in the way, or timm did not create the model.
        OutputError: no space or no permission.
    """
    path = expanded(path)
    if not any(isinstance(module, FoldedAttention) for module in model.modules()):
        raise FoldError("only a folded model can be saved as a bundle; call fold() first")
    refuse_in_the_way(path, force=force)
    require_space(path, 2 * state_bytes(model) + (state_bytes(trained) if trained is not None else 0))
    config = _config(model)
    with writing(path) as folder:
        save_file(_state(model), folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2))
        if recipe is not None:
            (folder / RECIPE).write_text(recipe.to_yaml())
        if metrics is not None and expanded(metrics).is_file():
            (folder / METRICS).write_bytes(expanded(metrics).read_bytes())
        if trained is not None:
            (folder / TRAIN).mkdir()
            save_file(_state(trained), folder / TRAINED, metadata={"format": "pt"})
        for name in TRACKED:
            if tracked is not None and (tracked / name).is_dir():
                shutil.copytree(tracked / name, folder / name)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        hashes = {p.relative_to(folder).as_posix(): sha256(p) for p in files}
        record = {
            "format": FORMAT, **(summary or {}), "versions": versions(), **origin(), "sha256": hashes,
            "bundle_sha256": bundle_sha256(hashes),
        }  # fmt: skip
        (folder / SUMMARY).write_text(json.dumps(record, indent=2))
    return path


def bundle_sha256(hashes: Mapping[str, str]) -> str:
    """One hash for what a bundle is: of the weights, the config and the recipe, and of nothing that says when, where or
    how fast it was made. It is what `sha256sum config.json model.safetensors recipe.yaml | sha256sum` says.

    Args:
        hashes: SHA-256 of the bundle's files by name.
    """
    lines = [f"{hashes[name]}  {name}\n" for name in (CONFIG, WEIGHTS, RECIPE) if name in hashes]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refuse_in_the_way(path: Path, *, force: bool) -> None:
    """Raise BundleError when `path` exists and may not be replaced; `force` replaces bundles only. A conversion that
    was killed before it had saved a step is nothing to lose, and in nobody's way.

    Raises:
        OutputError: its name is too long.
    """
    refuse_long_name(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir():
        raise BundleError(f"{path} is a file; give a folder with --output")
    if not _is_ours(path):
        raise BundleError(f"{path} exists and is no bundle, so it is not replaced; give another --output")
    if not force:
        if (path / CONFIG).is_file():
            raise BundleError(f"{path} exists; replace it with --force, or give another --output")
        if {file.name for file in (path / TRAIN).iterdir()} <= {METRICS, *(Path(name).name for name in TRACKED)}:
            return
        raise BundleError(f"{path} holds an unfinished conversion; go on with --resume, or start over with --force")


def recover_from_kill(path: Path) -> None:
    """What a conversion into `path` that was killed while it wrote has left half-written is removed, and what it had
    moved aside is back."""
    for target in (path, *(path / TRAIN / name for name in IN_TRAIN)):
        recover(target)


def _is_ours(path: Path) -> bool:
    """Whether a folder is a bundle or an unfinished conversion, and so may be replaced when asked to."""
    if (path / CONFIG).is_file():
        try:
            return isinstance(read_json(path / CONFIG).get("castling"), dict)
        except BundleError:
            return False
    if [file.name for file in path.iterdir()] != [TRAIN]:
        return False
    return {written_half(file) or file.name for file in (path / TRAIN).iterdir()} <= IN_TRAIN


def named_by_timm(model: nn.Module) -> str:
    """The name of the architecture that timm knows `model` by.

    Raises:
        BundleError: timm did not create it, or it returns more than a bundle's model does.
    """
    several = family_of(model).several(model)
    if several is not None:
        raise BundleError(f"{type(model).__name__} can't be saved: {several}")
    said: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    name = said.get("architecture")
    if not name:
        raise BundleError(
            f"only models from timm.create_model can be saved: a bundle is rebuilt by timm from its name, and this "
            f"{type(model).__name__} has none; export() it as it is, and keep its state_dict()"
        )
    if said.get("mean", ()) is None:
        raise BundleError(
            f"this {type(model).__name__} does not say how its images are normalised, which a bundle does; add the "
            "preprocessor_config.json of the original to its folder"
        )
    return str(name)


def _config(model: nn.Module) -> dict[str, Any]:
    """timm's own description of the model, with the softmax architecture moved to `model_args.base`."""
    import tempfile

    from timm.models._hub import save_config_for_hf

    named_by_timm(model)
    castling: Castling = model.castling  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        save_config_for_hf(model, f"{folder}/{CONFIG}")
        config: dict[str, Any] = json.loads(Path(folder, CONFIG).read_text())
    if config["architecture"] != ARCHITECTURE:
        section: dict[str, Any] = {"attention": castling.attention.model_dump(), "layers": castling.choice}
        if "task" in vars(model):  # said of this one, and not by its class
            section["task"] = model.task
        arguments = {
            "base": config["architecture"],
            "base_args": config.get("model_args", {}),
            "castling": section,
        }
        config |= {"architecture": ARCHITECTURE, "model_args": arguments}
    config["castling"] = {"format": FORMAT, "made_by": __version__, **castling.to_dict()}
    return config


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def state_bytes(model: nn.Module) -> int:
    """Size of the model's weights on disk."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
