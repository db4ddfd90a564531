"""The bundle: a folder with the folded model and everything known about how it came to be."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from .attention import FoldedAttention, before_forms
from .bundle_config import check_config, check_structure
from .castle import Castling
from .errors import BundleError, CastlingError, FoldError, first_line
from .files import expanded, recover, refuse_long_name, require_space, sha256, writing, written_half
from .recipe import Recipe
from .version import __version__

FORMAT = 2
"""Version of the `castling` section in `config.json`: 1 had no `attention.form`, and is read as well."""

CONFIG, WEIGHTS, RECIPE, METRICS, SUMMARY = (
    "config.json", "model.safetensors", "recipe.yaml", "metrics.jsonl", "summary.json"
)  # fmt: skip
TRAIN = "train"
TRAINED = "train/trained.safetensors"
STATE = "train/state"
REJECTED = "train/rejected"
PLAN = "train/plan.json"
ALIGNED = "train/aligned.safetensors"
IN_TRAIN = {Path(name).name for name in (TRAINED, STATE, REJECTED, PLAN, ALIGNED, METRICS)}


def save(
    model: nn.Module,
    path: str | Path,
    *,
    recipe: Recipe | None = None,
    summary: dict[str, Any] | None = None,
    metrics: Path | None = None,
    trained: nn.Module | None = None,
    force: bool = False,
) -> Path:
    """Write a folded model as a bundle; the folder appears whole or not at all.

    Args:
        model: from `fold`, made from a model that timm created.
        path: the folder.
        recipe, summary, metrics: how the model was made; what is left out is left out of the bundle.
        trained: the student before folding, kept in `train/` so that `verify` can compare with it.
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
        if metrics is not None and metrics.is_file():
            (folder / METRICS).write_bytes(metrics.read_bytes())
        if trained is not None:
            (folder / TRAIN).mkdir()
            save_file(_state(trained), folder / TRAINED, metadata={"format": "pt"})
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        hashes = {p.relative_to(folder).as_posix(): sha256(p) for p in files}
        record = {"format": FORMAT, **(summary or {}), "versions": versions(), "sha256": hashes}
        (folder / SUMMARY).write_text(json.dumps(record, indent=2))
    return path


def load(path: str | Path) -> nn.Module:
    """The folded model of a bundle, in eval mode on the CPU, with `model.castling` as it was.

    Raises:
        BundleError: no bundle there, an unfinished one, or a file that differs from its recorded hash.
    """
    import timm

    from . import timm_entry  # noqa: F401 - registers the architecture

    path = expanded(path)
    config = check(path)
    with _loading(path):
        model = timm.create_model(f"local-dir:{path.resolve()}", pretrained=True).eval()
    model.castling = Castling.from_dict(config["castling"])
    return model


def check(path: Path) -> dict[str, Any]:
    """Check a bundle against its own record, hashes included, and return its `config.json`.

    Raises:
        BundleError: as `load`.
    """
    config = read_config(path)
    recorded = read_summary(path).get("sha256")
    if not isinstance(recorded, dict) or WEIGHTS not in recorded or CONFIG not in recorded:
        raise BundleError(f"{path / SUMMARY} records no hashes; convert again with --force")
    for name in (CONFIG, WEIGHTS):
        file = path / name
        if not file.is_file():
            raise BundleError(f"{path} is damaged: {name} is missing; convert again with --force, or copy it again")
        if sha256(file) != recorded[name]:
            raise BundleError(
                f"{path} is damaged: {name} is not the file that was written (truncated or edited); "
                "copy the bundle again, or convert again with --force"
            )
    check_structure(config, path / CONFIG, (path / WEIGHTS).stat().st_size)
    return config


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a bundle; BundleError with what is the matter."""
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}; make one with: castling convert --model NAME --output {path}")
    if not (path / CONFIG).is_file():
        if (path / REJECTED).is_dir():
            raise BundleError(f"{path} was not published, it lost more than --max-drop; see {path / REJECTED}")
        if (path / STATE).is_dir():
            raise BundleError(f"{path} holds an unfinished conversion; finish it with castling convert ... --resume")
        raise BundleError(f"{path} is no bundle: it has no {CONFIG}")
    config = _read_json(path / CONFIG)
    section = config.get("castling")
    if not isinstance(section, dict):
        raise BundleError(
            f"{path} is a plain timm model, not a bundle; castle it: castling convert --model local-dir:{path}"
        )
    if not isinstance(section.get("format"), int):
        raise BundleError(f"{path / CONFIG} is damaged: castling.format is no number; copy the bundle again")
    if section["format"] > FORMAT:
        raise BundleError(
            f"{path} was made by castling-convert {section.get('made_by')}; "
            "upgrade with: pip install -U castling-convert"
        )
    check_config(config, path / CONFIG)
    return config


def read_summary(path: Path) -> dict[str, Any]:
    """`summary.json` of a bundle."""
    if not (path / SUMMARY).is_file():
        raise BundleError(f"{path} is damaged: {SUMMARY} is missing; convert again with --force")
    return _read_json(path / SUMMARY)


def load_trained(path: Path) -> nn.Module | None:
    """The student before folding, masks closed; None when the bundle does not keep it."""
    import timm

    from .castle import castle_, close_masks
    from .load import read_state_dict

    if not (path / TRAINED).is_file():
        return None
    arguments = check(path)["model_args"]
    if sha256(path / TRAINED) != read_summary(path)["sha256"].get(TRAINED):
        raise BundleError(f"{path} is damaged: {TRAINED} is not the file that was written; delete it or copy it again")
    castling = arguments["castling"]
    recipe = Recipe.parse({"attention": before_forms(castling["attention"])}, str(path))
    with _loading(path):
        base = timm.create_model(arguments["base"], pretrained=False, **arguments["base_args"])
        student = castle_(base, recipe, castling["layers"])
        student.load_state_dict(read_state_dict(path / TRAINED))
    close_masks(student)
    return student.eval()


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    """Around what makes a model of a bundle: weights that do not fit its config are one line."""
    try:
        yield
    except CastlingError:
        raise
    except Exception as error:  # noqa: BLE001 - timm and torch fail in their own ways
        first = first_line(error)
        raise BundleError(f"{path} can't be loaded: {first}; copy the bundle again, or don't trust it") from None


def refuse_in_the_way(path: Path, *, force: bool) -> None:
    """Raise BundleError when `path` exists and may not be replaced; `force` replaces bundles only.

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
        if [file.name for file in (path / TRAIN).iterdir()] == [METRICS]:
            raise BundleError(f"{path} holds a conversion without a saved step; start over with --force")
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
            return isinstance(_read_json(path / CONFIG).get("castling"), dict)
        except BundleError:
            return False
    if [file.name for file in path.iterdir()] != [TRAIN]:
        return False
    return {written_half(file) or file.name for file in (path / TRAIN).iterdir()} <= IN_TRAIN


def newest(root: Path = Path("castled")) -> Path:
    """The bundle under `root` that was written last.

    Raises:
        BundleError: there is none.
    """
    found = [file.parent for file in root.glob(f"*/{SUMMARY}")]
    if not found:
        raise BundleError(f"no bundle under {root}/; make one with castling convert, or give its path")
    return max(found, key=lambda bundle: (bundle / SUMMARY).stat().st_mtime)


def versions() -> dict[str, str]:
    """What made a bundle."""
    packages = ("torch", "timm", "onnx", "onnxruntime", "onnxscript", "onnxsim", "accelerate", "safetensors")
    return {"castling-convert": __version__, "python": platform.python_version()} | {p: version_of(p) for p in packages}


def version_of(package: str) -> str:
    """The installed version of a package, or of another that brings the same module, as onnxruntime-gpu does."""
    try:
        return version(package)
    except PackageNotFoundError:
        others = packages_distributions().get(package, [])
        return f"{version(others[0])} ({others[0]})" if others else "not installed"


def _config(model: nn.Module) -> dict[str, Any]:
    """timm's own description of the model, with the softmax architecture moved to `model_args.base`."""
    import tempfile

    from timm.models._hub import save_config_for_hf

    from .timm_entry import ARCHITECTURE

    if not getattr(model, "pretrained_cfg", None):
        raise BundleError("only models from timm.create_model can be saved: a bundle is rebuilt by timm from its name")
    castling: Castling = model.castling  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        save_config_for_hf(model, f"{folder}/{CONFIG}")
        config: dict[str, Any] = json.loads(Path(folder, CONFIG).read_text())
    if config["architecture"] != ARCHITECTURE:
        section = {"attention": castling.attention.model_dump(), "layers": castling.blocks}
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise BundleError(f"{path} is damaged: it is not JSON; copy the bundle again") from None
    if not isinstance(values, dict):
        raise BundleError(f"{path} is damaged: it is not a JSON object; copy the bundle again")
    return values
