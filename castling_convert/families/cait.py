"""timm's `Cait`: talking heads, which stay.

Softmax there is of logits that are mixed over the heads, and its weights are mixed once more. Mixed logits are products
of all heads' queries and keys side by side, and mixed weights act on all heads' values, so talking heads are plain
heads that are `heads` times as wide, exactly. Castled with M landmarks a head they would cost 5·heads·M·C
multiply-accumulates a token, where softmax has N·(2·C + 2·heads²): with 64 landmarks more than softmax below 591 tokens
(C = 192), 853 (288), 1,097 (384) and 1,920 (768). timm's models have 196 and 576 of them, the largest one 784, so there
is none that it would make cheaper. Class attention has a single query.

Source: Touvron et al., "Going deeper with Image Transformers", ICCV 2021, arXiv 2103.17239.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import timm
from timm.models.cait import Cait, ClassAttn, TalkingHeadAttn
from torch import nn

from .called import CalledFamily

_TALKING = (
    "talking heads mix the logits of all heads: without softmax each would be as wide as all of them, which costs more "
    "than softmax at any size that timm's models of this kind have"
)


class CaitFamily(CalledFamily):
    title = "timm CaiT"
    timm_modules = ("cait",)
    excluded: Mapping[str, str] = dict.fromkeys(timm.list_models(module="cait"), _TALKING)
    models = (Cait,)
    readers: ClassVar[Mapping[type[nn.Module], type[Any]]] = {}
    reasons: ClassVar[Mapping[type[nn.Module], str]] = {
        TalkingHeadAttn: _TALKING,
        ClassAttn: "class attention has a single query and is already linear in the tokens",
    }
