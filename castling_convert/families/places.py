"""Biases of places that are exact as factors.

Decomposed relative positions add to the logits what a query says of the distance of rows, and of that of columns:

    bias_ij = q_i·Rh[row_i - row_j] + q_i·Rw[column_i - column_j]

For each query that is one number for every row of keys, and one for every column, so with one-hot vectors of the keys'
rows and columns it is a product of height + width factors, and nothing of N x N is made.

Source: Li et al., "MViTv2", CVPR 2022, arXiv 2112.01526, equation 4.
"""

from __future__ import annotations

import torch
from torch import Tensor


def distances(side: int, device: torch.device | None = None) -> Tensor:
    """The place in a table of 2·side - 1 distances of every query and key on one axis, [side, side]."""
    places = torch.arange(side, device=device)
    return places[:, None] - places + side - 1


def one_hot_places(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """The row and the column of every place of a grid, [height·width, height + width]."""
    rows = torch.eye(height, device=device).repeat_interleave(width, 0)
    return torch.cat([rows, torch.eye(width, device=device).repeat(height, 1)], 1)


def bias_of_rows_and_columns(q: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
    """What queries on a grid, [B, heads, height·width, d], say of all its rows and columns, [B, heads, N, height +
    width].

    Args:
        of_rows: Rh of every two rows, [height, height, d]. of_columns: Rw of every two columns, [width, width, d].
    """
    B, heads, N, d = q.shape
    height, width = of_rows.shape[0], of_columns.shape[0]
    # Products of three axes: every runtime has them.
    by_row = q.reshape(B * heads, height, width, d).transpose(0, 1).reshape(height, -1, d)  # height, B·heads·width, d
    rows = (by_row @ of_rows.transpose(1, 2)).reshape(height, B * heads, width, height).transpose(0, 1)
    by_column = q.reshape(-1, width, d).transpose(0, 1)  # width, B·heads·height, d
    columns = (by_column @ of_columns.transpose(1, 2)).transpose(0, 1)
    return torch.cat([rows.reshape(B, heads, N, height), columns.reshape(B, heads, N, width)], -1)
