"""timm's `FastVit`, MobileCLIP's image encoders too: attention on maps in the last stages, convolutions before.

Source: Vasu et al., "FastViT: A Fast Hybrid Vision Transformer", ICCV 2023, arXiv 2303.14189.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from timm.models.fastvit import Attention, FastVit
from torch import nn

from ..attention import Reader
from .plain import LinearMapReader, MapsFamily
from .refused import CONVOLUTIONS


class FastVitFamily(MapsFamily):
    title = "timm FastViT"
    timm_modules = ("fastvit",)
    models = (FastVit,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {Attention: LinearMapReader}
    excluded: Mapping[str, str] = dict.fromkeys(("fastvit_t8", "fastvit_t12", "fastvit_s12"), CONVOLUTIONS)
