"""Where the patches of the current image lie in the token sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class TokenGrid:
    """Height and width of the patch grid, and the number of prefix tokens before it.

    One object is shared by all castled layers that see the same tokens. Attention receives only tokens, and N
    alone does not tell a 7 x 28 grid from a 14 x 14 one, so the grid is read where it is known, at the patch
    embedding; the model's family sees to it. A model that accepts several image sizes must not run two of
    different shape at once from two threads; give each thread its own copy.

    Where images of a batch have grids of their own, `places`, [B, N - prefix], says where on the grid each patch lies,
    row by row; more than one may lie at a place if all but one are zero.
    """

    places: Tensor | None = None

    def __init__(self, height: int, width: int, prefix: int) -> None:
        self.height = height
        self.width = width
        self.prefix = prefix

    @property
    def tokens(self) -> int:
        """N, prefix tokens included."""
        return self.prefix + (self.height * self.width if self.places is None else self.places.shape[1])

    def shape_for(self, tokens: int) -> tuple[int, int]:
        """The grid for a sequence of `tokens`; RuntimeError when they do not fill it."""
        if self.tokens != tokens:
            raise RuntimeError(
                f"{tokens} tokens do not fill a {self.height}x{self.width} patch grid with "
                f"{self.prefix} prefix tokens; this layer was castled for another image size, or patches were dropped"
            )
        return self.height, self.width
