"""A model from a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import nn

from ..attention import before_forms
from ..castling import Castling, castle_, close_masks
from ..errors import PATH, BundleError, CastlingError, Wanted, first_line, takes
from ..files import expanded, sha256
from ..loading import read_state_dict
from ..recipe import Recipe
from .checking import check, read_summary
from .layout import SUMMARY, TRAINED


@takes(path=Wanted(PATH, BundleError, "the folder of a bundle"))
def load(path: str | Path) -> nn.Module:
    """The folded model of a bundle, in eval mode on the CPU, with `model.castling` as it was.

    Raises:
        BundleError: no bundle there, an unfinished one, or a file that differs from its recorded hash.
    """
    import timm

    path = expanded(path)
    config = check(path)
    with _loading(path):
        model = timm.create_model(f"local-dir:{path.resolve()}", pretrained=True).eval()
    choice = config["model_args"]["castling"]["layers"]
    model.castling = replace(Castling.from_dict(config["castling"]), choice=choice)
    return model


def load_trained(path: Path) -> nn.Module | None:
    """The student before folding, masks closed; None when the bundle does not keep it."""
    import timm

    if not (path / TRAINED).is_file():
        return None
    arguments = check(path)["model_args"]
    if sha256(path / TRAINED) != read_summary(path)["sha256"].get(TRAINED):
        raise BundleError(f"{path} is damaged: {TRAINED} is not the file that was written; delete it or copy it again")
    castling = arguments["castling"]
    recipe = Recipe.parse({"attention": before_forms(castling["attention"])}, str(path))
    with _loading(path):
        base = timm.create_model(arguments["base"], pretrained=False, **arguments["base_args"])
        if castling.get("task") is not None:
            base.task = castling["task"]
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


def newest(root: Path = Path("castled")) -> Path:
    """The bundle under `root` that was written last.

    Raises:
        BundleError: there is none.
    """
    found = [file.parent for file in root.glob(f"*/{SUMMARY}")]
    if not found:
        raise BundleError(f"no bundle under {root}/; make one with castling convert, or give its path")
    return max(found, key=lambda bundle: (bundle / SUMMARY).stat().st_mtime)
