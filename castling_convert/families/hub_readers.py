"""The attention of Hugging Face's vision models: three projections to q, k and v, one back, and an additive mask."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import Reader, Reading, Regions
from ..attention.reader import RANK, low_rank, regions_of_mask
from .sam import PlacesReader
from .windows import REGIONS


class HubReader(Reader):
    """ViT, DeiT, DINOv2, CLIP, SigLIP: nothing is added to the logits. DINOv3: q and k of patches are turned by the
    angles that the layer is called with."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.out = attention.out_proj if hasattr(attention, "out_proj") else attention.o_proj
        self.num_heads = getattr(attention, "num_attention_heads", None) or attention.num_heads
        self.head_dim = self.value_dim = attention.head_dim
        self.softmax_scale = attention.scaling if hasattr(attention, "scaling") else attention.scale
        self.dim = attention.q_proj.in_features

    def refuses(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **more: Any) -> str | None:
        if attention_mask is None:
            return None
        return "it is called with a mask of pairs of tokens, which a linear form has no entries for"

    def read(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **more: Any,
    ) -> Reading:
        """Tokens [B, N, C], and the cosines and sines of the patches' angles, [N - prefix, d] each."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (part(hidden_states).unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in projections)
        if position_embeddings is not None:
            q, k = turned(q, *position_embeddings), turned(k, *position_embeddings)
        return Reading(q, k, v)

    def write(self, y: Tensor, reading: Reading) -> tuple[Tensor, None]:
        return self.out(y), None

    def tokens(self, output: tuple[Tensor, Any]) -> Tensor:
        return output[0]


class BiasedReader(HubReader):
    """BEiT: the model makes a bias of places and hands it over as the mask. The linear form has it as factors that
    start from its singular values and are trained."""

    def start(self, bias: Tensor) -> None:
        """With what the model adds now, [heads, N, N]."""
        self.learn_places(*low_rank(bias.detach(), RANK, self.softmax_scale))

    def refuses(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **more: Any) -> str | None:
        if self.learned_places is None:
            return super().refuses(hidden_states, attention_mask)
        if attention_mask is None or attention_mask.shape[0] != 1:
            return "it is called with another mask than its bias of places"
        return None

    def read(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **more: Any) -> Reading:
        """Tokens [B, N, C] and the bias, [1, heads, N, N]."""
        reading = super().read(hidden_states)
        if self.learned_places is not None:
            reading.more, reading.bias = self.learned_places, attention_mask
        return reading


class WindowReader(BiasedReader):
    """Swin: the bias is the layer's own, and the masks of shifted windows are regions, where transformers adds -100 to
    logits: on logits of a usual size that is the same to 1e-43."""

    takes_windows = False

    def __init__(self, attention: Any) -> None:
        super().__init__(attention)
        self.places: nn.Module | None = attention.relative_position_bias
        self.start(attention.relative_position_bias()[0])
        assert self.query_places is not None
        self.grid.height = self.grid.width = math.isqrt(self.query_places.shape[1])

    def refuses(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **more: Any) -> str | None:
        return None

    def read(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **more: Any) -> Reading:
        """Windows [B·W, N, C] and the mask of the W windows of an image, [W, N, N]."""
        bias = None if self.places is None else self.places()
        reading = super().read(hidden_states, bias)
        if attention_mask is None:
            return reading
        images = hidden_states.shape[0] // attention_mask.shape[0]
        numbers = regions_of_mask(attention_mask, REGIONS).repeat(images, 1)
        reading.regions = Regions(numbers, numbers, REGIONS)
        if reading.bias is not None:
            reading.bias = reading.bias + attention_mask[:, None].repeat(images, 1, 1, 1)
        return reading

    def fold_(self) -> None:
        self.places = None


class ReducedReader(HubReader):
    """Segformer: keys of a map that a strided convolution has reduced, in all stages but the last."""

    def __init__(self, attention: Any) -> None:
        super().__init__(attention)
        self.reduction: Any = getattr(attention, "sequence_reduction", None)
        self.on_grid = self.reduction is None

    def refuses(self, hidden_states: Tensor, *places_and_mask: Any, **more: Any) -> str | None:
        return super().refuses(hidden_states, *places_and_mask[2:], **more)

    def read(self, hidden_states: Tensor, height: int, width: int, *_: Any, **more: Any) -> Reading:  # type: ignore[override]
        """Tokens [B, N, C] of a map of this height and width."""
        x = hidden_states
        self.grid.height, self.grid.width = height, width
        if self.reduction is not None:
            reduced = self.reduction.sequence_reduction(x.transpose(1, 2).unflatten(2, (height, width)))
            self.grid.height, self.grid.width = reduced.shape[-2:]
            x = self.reduction.layer_norm(reduced.flatten(2).transpose(1, 2))
        parts = self.q_proj(hidden_states), self.k_proj(x), self.v_proj(x)
        return Reading(*(part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in parts))


class HubSamReader(PlacesReader):
    """SAM: a map [B, H, W, C], of an image or of windows, and no weights beside the tokens."""

    def __init__(self, attention: Any) -> None:
        super().__init__(attention, attention.num_attention_heads, attention.use_rel_pos)

    def read(self, hidden_states: Tensor, output_attentions: bool | None = None) -> Reading:
        return super().read(hidden_states)

    def write(self, y: Tensor, reading: Reading) -> tuple[Tensor, None]:
        return super().write(y, reading), None

    def tokens(self, output: tuple[Tensor, ...]) -> Tensor:
        return output[0].flatten(1, 2)


class VitDetReader(PlacesReader):
    """ViTDet: the same, with tokens alone in what is returned."""

    def __init__(self, attention: Any) -> None:
        super().__init__(attention, attention.num_heads, attention.use_relative_position_embeddings)

    def read(self, hidden_state: Tensor, output_attentions: bool = False) -> Reading:
        return super().read(hidden_state)

    def write(self, y: Tensor, reading: Reading) -> tuple[Tensor]:
        return (super().write(y, reading),)

    def tokens(self, output: tuple[Tensor, ...]) -> Tensor:
        return output[0].flatten(1, 2)


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """The last tokens of x, [B, heads, N, d], turned by the angles of [n, d] cosines and sines; halves are pairs."""
    prefix, patches = x.split([x.shape[2] - sines.shape[-2], sines.shape[-2]], 2)
    one, other = patches.chunk(2, -1)
    return torch.cat([prefix, patches * cosines + torch.cat([-other, one], -1) * sines], 2)
