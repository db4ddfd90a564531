"""castling-convert: turn a pretrained softmax Vision Transformer into a linear-attention one that ships.

    load -> castle -> distill (masks anneal to zero) -> fold -> save / export -> verify

The public verbs are imported on first use, so that importing this package costs nothing. timm learns
the architecture `castled` as soon as both are imported, in either order; `timm.create_model(
"local-dir:BUNDLE", pretrained=True)` then loads a bundle.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

from .version import __version__

if TYPE_CHECKING:
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
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


@wrapt.when_imported("timm")
def _register_with_timm(_timm: Any) -> None:
    import_module(".timm_entry", __name__)
