"""open_clip's own `VisionTransformer`, the image encoder of its CLIP and CoCa models: a class token and
`nn.MultiheadAttention`.

open_clip itself is not imported here: a model of it that is in memory has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ..attention import Reader, TokenGrid
from .base import Size
from .called import CalledFamily
from .multihead import MultiheadReader

MODULE = "open_clip.transformer"


class OpenClipFamily(CalledFamily):
    """Its two parts are the encoder up to the last tokens, and pooling and projection; the vector of an image is what
    counts where it returns tokens, too."""

    title = "open_clip VisionTransformer"
    one_size = True
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {nn.MultiheadAttention: MultiheadReader}

    @property
    def reasons(self) -> Mapping[type[nn.Module], str]:  # type: ignore[override]
        why = "it scales or normalises heads as no published model of open_clip does"
        return {sys.modules[MODULE].Attention: why}

    def matches(self, model: nn.Module) -> bool:
        """Of a version whose model can be run in two parts, from 2.32 on."""
        found = sys.modules.get(MODULE)
        return found is not None and isinstance(model, found.VisionTransformer) and hasattr(model, "_embeds")

    def kept_because(self, module: nn.Module) -> str | None:
        pools = isinstance(module, nn.MultiheadAttention) and not module._qkv_same_embed_dim
        return "attention pooling has a fixed number of queries and is already linear in the tokens" if pools else None

    def classes(self, model: Any) -> int:
        return 0

    def token_grid(self, model: Any) -> TokenGrid:
        height, width = model.grid_size
        return TokenGrid(height, width, 1)

    def image_size(self, model: Any) -> Size:
        height, width = model.image_size
        return height, width

    def patch_size(self, model: Any) -> Size:
        height, width = model.patch_size
        return height, width

    def features(self, model: Any, images: Tensor) -> Tensor:
        return model.transformer(model._embeds(images))

    def head(self, model: Any, features: Tensor) -> Tensor:
        pooled, _ = model._pool(features)
        return pooled if model.proj is None else pooled @ model.proj
