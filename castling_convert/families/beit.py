"""timm's `Beit`, BEiT and BEiT v2: tokens with a bias of places, each layer's own, the model's, or both.

Between patches the bias enters the linear form as RANK factors that start from its singular values and are trained.
What it says of the class token is exact, by one factor more: of its own row a softmax sees nothing but how far the
class token itself stands out, and its column has one entry for itself and one for each patch.

Sources: Bao et al., "BEiT", ICLR 2022, arXiv 2106.08254; Peng et al., "BEiT v2", arXiv 2208.06366.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.beit import Attention, Beit, Block
from torch import Tensor, nn

from ..attention import FoldedAttention, Reader, Reading
from ..attention.reader import RANK, low_rank, split_heads
from .base import Size
from .called import CalledFamily
from .eva import with_bias
from .vit import scale_outputs_


class BeitReader(Reader):
    index: Tensor

    def __init__(self, attention: Any, grid: Size, shared: Tensor | None) -> None:
        """`shared`: the bias that the model hands its layers, [heads, N, N]."""
        super().__init__(prefix=1)
        self.qkv = with_bias(attention.qkv, attention)
        self.proj, self.proj_drop = attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = self.value_dim = attention.qkv.out_features // 3 // attention.num_heads
        self.dim = attention.qkv.in_features
        self.grid.height, self.grid.width = grid
        self.table: nn.Parameter | None = attention.relative_position_bias_table
        self.register_buffer("index", attention.relative_position_index, persistent=False)
        bias = self.bias(shared)
        if bias is not None:
            self.learn_places(*factors(bias, attention.scale))

    def bias(self, shared: Tensor | None) -> Tensor | None:
        """[heads, N, N]."""
        if self.table is None:
            return shared
        own = self.table[self.index].permute(2, 0, 1)
        return own if shared is None else own + shared

    def read(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Reading:
        """Tokens x, [B, N, C], the class token first, and the bias of all layers, [heads, N, N]."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        if self.learned_places is None:
            return Reading(q, k, v)
        bias = self.bias(shared_rel_pos_bias)
        return Reading(q, k, v, self.learned_places, None if bias is None else bias[None])

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y))

    def fold_(self) -> None:
        self.table = None
        del self.index


@torch.no_grad()
def factors(bias: Tensor, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """The factors of a bias, [heads, N, N], whose first token is the class token: [heads, N, RANK + 1] each."""
    f, g = low_rank(bias[:, 1:, 1:], RANK, softmax_scale)
    itself, others = bias[:, :1, 0] - bias[:, 0, 1:2], bias[:, 1:, 0]  # heads, 1 and heads, N - 1
    towards = torch.cat([itself, others], 1)[..., None] / softmax_scale
    is_class = F.pad(torch.ones_like(towards[:, :1]), (0, 0, 0, bias.shape[1] - 1))
    return torch.cat([F.pad(f, (0, 0, 1, 0)), towards], -1), torch.cat([F.pad(g, (0, 0, 1, 0)), is_class], -1)


class BeitFamily(CalledFamily):
    title = "timm BEiT"
    timm_modules = ("beit",)
    models = (Beit,)
    readers: ClassVar[Mapping[type[nn.Module], type[Any]]] = {Attention: BeitReader}

    def reader(self, model: Any, name: str) -> Reader:
        shared = None if model.rel_pos_bias is None else model.rel_pos_bias().detach()
        return BeitReader(model.get_submodule(name), model.patch_embed.grid_size, shared)

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features, model.num_prefix_tokens

    def absorb_layer_scale_(self, model: Any) -> int:
        if all(isinstance(block.attn, FoldedAttention) for block in model.blocks):
            model.rel_pos_bias = None  # N x N entries that no layer looks at any more
        absorbed = 0
        for block in model.modules():
            if not isinstance(block, Block) or block.gamma_1 is None:
                continue
            projection = getattr(block.attn, "reader", block.attn).proj
            for linear, scale in ((projection, block.gamma_1), (block.mlp.fc2, block.gamma_2)):
                scale_outputs_(linear, scale)
                absorbed += 1
            block.gamma_1 = block.gamma_2 = None
        return absorbed
