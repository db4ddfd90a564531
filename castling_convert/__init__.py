"""castling-convert: turn a pretrained softmax Vision Transformer into a linear-attention one that ships.

    load -> castle -> distill (masks anneal to zero) -> fold -> save / export -> verify

The public verbs are imported on first use, so that importing this package costs nothing. timm learns
the architecture `castled` as soon as both are imported, in either order; `timm.create_model(
"local-dir:BUNDLE", pretrained=True)` then loads a bundle.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from .version import __version__

if TYPE_CHECKING:
    from .attention.config import AttentionConfig
    from .bundle import load, save
    from .castle import castle, castle_
    from .distill.loop import distill
    from .errors import CastlingError
    from .export import export
    from .fold import fold, fold_
    from .pipeline import convert
    from .recipe import Recipe
    from .session import Session

_HOMES = {
    "AttentionConfig": "attention.config",
    "CastlingError": "errors",
    "Recipe": "recipe",
    "Session": "session",
    "castle": "castle",
    "castle_": "castle",
    "convert": "pipeline",
    "distill": "distill.loop",
    "export": "export",
    "fold": "fold",
    "fold_": "fold",
    "load": "bundle",
    "save": "bundle",
}

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
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Some verbs live in a module of their own name. Importing that module, from anywhere, would put it
    in the verb's place; here the verb keeps it, and `from castling_convert.castle import ...` still works."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


@wrapt.when_imported("timm")
def _register_with_timm(_timm: Any) -> None:
    import_module(".timm_entry", __name__)
