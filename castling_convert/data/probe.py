"""Images to probe a model with where nobody gave any."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def probe_images(model: nn.Module, count: int, seed: int = 0, size: tuple[int, int] | None = None) -> Tensor:
    """`count` generated images with the model's own preprocessing, [count, C, H, W], float32; of `size`
    (H, W), or the model's own when left out.

    A model that takes neither one nor three channels, or does not say how its images are normalised, gets noise.
    """
    from ..errors import DataError
    from ..families import input_size_of
    from .loaders import some_images
    from .preprocessing import Preprocessing
    from .spec import open_data

    try:
        data = open_data("generated", Preprocessing.of(model).at(size), "validation", seed=seed)
    except DataError:
        channels, *model_size = input_size_of(model)
        return torch.randn(count, channels, *(size or model_size), generator=torch.Generator().manual_seed(seed))
    return some_images(data, count)
