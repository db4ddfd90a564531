"""Images made here, for a conversion without data.

Dead leaves, after Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001: discs whose
radii follow a power law cover each other, each filled with noise of a natural (1/f) spectrum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset


class GeneratedImages(Dataset[tuple[Tensor, int]]):
    """`count` dead-leaves images of `size` (height, width); image i depends on the seed and i alone."""

    def __init__(
        self,
        size: tuple[int, int],
        mode: str,
        transform: Callable[[Image.Image], Tensor],
        count: int = 4096,
        seed: int = 0,
    ) -> None:
        self.size, self.mode, self.transform, self.count, self.seed = size, mode, transform, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng((self.seed, index))
        return self.transform(dead_leaves(self.size, rng).convert(self.mode)), -1


def dead_leaves(size: tuple[int, int], rng: np.random.Generator, leaves: int = 60) -> Image.Image:
    """One RGB image of `size` (height, width)."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    canvas = rng.uniform(0, 255, 3) + 40 * natural_noise(size, rng)
    span = min(height, width)
    for _ in range(leaves):
        # Radii between 2 % and 50 % of the image with density r^-3.
        low, high = 0.02 * span, 0.5 * span
        radius = (low**-2 + rng.uniform() * (high**-2 - low**-2)) ** -0.5
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        texture = rng.uniform(0, 60) * natural_noise(size, rng)
        canvas[inside] = (rng.uniform(0, 255, 3) + texture)[inside]
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def natural_noise(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Noise [H, W, 1] with amplitude spectrum 1/f, zero mean, unit deviation."""
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    shape = frequency.shape
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / frequency
    noise = np.fft.irfft2(spectrum, s=size)
    return ((noise - noise.mean()) / max(float(noise.std()), 1e-8))[..., None]
