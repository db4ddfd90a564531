"""castling-convert: turn a pretrained softmax Vision Transformer into a linear-attention one that ships.

    load -> castle -> distill (masks anneal to zero) -> fold -> save / export -> verify

The public verbs are imported on first use, so that importing this package costs nothing: a millisecond, in which
Ctrl-C finds the command line without an answer. timm learns the architecture `castled` as soon as both are imported,
in either order; `timm.create_model("local-dir:BUNDLE", pretrained=True)` then loads a bundle.
"""

from __future__ import annotations

import sys

from .version import __version__

TYPE_CHECKING = False  # typing, where it is from, takes longer than all of this
if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from .attention.config import AttentionConfig
    from .bundle import load, save
    from .castling import castle, castle_
    from .distillation.loop import distill
    from .errors import CastlingError
    from .exporting import export
    from .folding import fold, fold_
    from .pipeline.conversion import convert
    from .recipe import Recipe
    from .session import Session

_HOMES = {
    "AttentionConfig": "attention",
    "CastlingError": "errors",
    "Recipe": "recipe",
    "Session": "session",
    "castle": "castling",
    "castle_": "castling",
    "convert": "pipeline",
    "distill": "distillation.loop",
    "export": "exporting",
    "fold": "folding",
    "fold_": "folding",
    "load": "bundle",
    "save": "bundle",
}
"""Where each public name is. No module has the name of a verb, so importing one never hides the other."""

__all__ = [
    "AttentionConfig",
    "CastlingError",
    "Recipe",
    "Session",
    "__version__",
    "castle",
    "castle_",
    "convert",
    "distill",
    "export",
    "fold",
    "fold_",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def _module(name: str) -> ModuleType:
    from importlib import import_module

    return import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted(__all__)


class _WhenTimmIsImported:
    """Finds timm, and nothing else, as the other finders do; its loader then has one thing more to do."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)  # type: ignore[assignment]  # it has what the loader has
        return spec


class _ThenRegister:
    """timm's own loader, for all but the end of its import."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, timm: ModuleType) -> None:
        assert timm.__spec__ is not None
        timm.__spec__.loader = timm.__loader__ = self._loader
        self._loader.exec_module(timm)
        _module("timm_entry")


if "timm" in sys.modules:
    _module("timm_entry")
else:
    sys.meta_path.insert(0, _WhenTimmIsImported())
